"""Other programs' logs as attempts: OpenAI's answers and batch files, LiteLLM's logs, our own exports.

A line that is not understood is named, with the reason; nothing of such a file is taken unless that is asked for. Ids
are derived from the log's, so reading a log twice adds nothing. Knows no ledger.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from qwench.errors import UsageError
from qwench.gateway.prices import Cost, Prices
from qwench.gateway.records import Attempt, Ending, Judge, Kind, Outcome, Status, Task, Verdict
from qwench.gateway.rows import read_attempt
from qwench.gateway.usage import NOTHING, Unknown, Usage, openai_usage

TOKENS = ("prompt_tokens", "completion_tokens", "total_tokens")
LITELLM_KINDS = {"embedding": Kind.EMBED, "aembedding": Kind.EMBED}


@dataclass(frozen=True)
class Setting:
    """What the log cannot say: under which names its attempts are booked, and by which prices."""

    tier: str = "imported"
    provider: str = ""
    name: str = ""
    prices: Prices = field(default_factory=Prices)


@dataclass(frozen=True)
class Entry:
    """One attempt of a log."""

    task: Task
    attempt: Attempt
    ending: Ending
    started: float


class _Odd(Exception):
    """Why a line is not understood."""


def read_log(text: str, name: str, setting: Setting) -> tuple[list[Entry | Outcome], list[str]]:
    """Everything in a log, JSON lines or one JSON array, and a sentence for each line that is not understood.

    Raises UsageError where nothing is.
    """
    found: list[Entry | Outcome] = []
    wrong: list[str] = []
    tasks: dict[str, Task] = {}
    for place, said in _objects(text):
        try:
            if isinstance(said, str):
                raise _Odd(said)
            entry = _entry(said, setting, tasks)
            found += [entry] if entry is not None else []
        except _Odd as odd:
            wrong.append(f"{name}, {place}: {odd}.")
    if not found:
        reason = wrong[0] if wrong else f"{name} is empty."
        raise UsageError(f"there is nothing to import. {reason}")
    return found, wrong


def _objects(text: str) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    """Each JSON object with its place; a string says why there is none. What stands before the brace is a log's own."""
    if text.lstrip().startswith("["):
        try:
            for number, item in enumerate(json.loads(text), 1):
                yield f"entry {number}", item if isinstance(item, dict) else "is no JSON object"
        except ValueError as error:
            yield "as a whole", f"is no JSON ({error})"
        return
    for number, line in enumerate(text.splitlines(), 1):
        brace = line.find("{")
        if not line.strip():
            continue
        try:
            item = json.loads(line[brace:]) if brace >= 0 else None
        except (ValueError, RecursionError):
            item = None
        yield f"line {number}", item if isinstance(item, dict) else "is no JSON object"


def _entry(said: Mapping[str, Any], setting: Setting, tasks: dict[str, Task]) -> Entry | Outcome | None:
    if "table" in said:
        return _own(said, tasks)
    if "response_cost" in said or ("spend" in said and "request_id" in said):
        return _litellm(said, setting)
    return _openai(said, setting)


def _own(said: Mapping[str, Any], tasks: dict[str, Task]) -> Entry | Outcome | None:
    try:
        if said["table"] == "task":
            task = Task(**{name: said[name] for name in ("id", "name", "data", "key", "value")})
            tasks[task.id] = task
        elif said["table"] == "attempt":
            attempt, started, ending = read_attempt(said)
            return Entry(tasks.get(said["task"], Task(said["task"])), attempt, ending, started)
        elif said["table"] == "outcome":
            verdict, judge = Verdict(said["verdict"]), Judge(said["judge"])
            return Outcome(said["task"], verdict, judge, said["attempt"], said["detail"])
    except (KeyError, ValueError, TypeError) as error:
        raise _Odd(f"is no row of a ledger ({type(error).__name__}: {error})") from None
    return None  # events tell of the ledger they happened in


def _openai(said: Mapping[str, Any], setting: Setting) -> Entry:
    """A chat completion, completion, response or embedding; alone, as a line of batch output, or beside its request."""
    status: object = 200
    error, answer = said.get("error"), said
    if isinstance(said.get("response"), Mapping):
        answer = said["response"]
        status = answer.get("status_code", 200)
        answer = answer["body"] if isinstance(answer.get("body"), Mapping) else answer
    request = said.get("request")
    model = answer.get("model") or (request.get("model") if isinstance(request, Mapping) else None)
    if not isinstance(model, str):
        raise _Odd("names no model; OpenAI's and LiteLLM's logs and exports of a ledger are understood")
    started = _time(answer.get("created", answer.get("created_at", said.get("created_at"))), "created")
    failed = bool(error) or (isinstance(status, int) and status >= 400)
    usage = openai_usage(answer.get("usage")) if not failed or answer.get("usage") else NOTHING
    provider = setting.provider or "openai"
    told = str(said.get("custom_id") or answer.get("id") or "")
    ending = Ending(
        Status.FAILED if failed else Status.COMPLETED,
        usage,
        setting.prices.charge(provider, model, usage, started),
        error=(f"http_{status}" if isinstance(status, int) else "logged") if failed else "",
        stop=_stop(answer),
    )
    kind = Kind.EMBED if answer.get("object") == "list" else Kind.GENERATE
    return _booked(said, told, "", ending, Attempt(kind, setting.tier, provider, model), started, setting)


def _stop(answer: Mapping[str, Any]) -> str:
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else {}
    return str(first.get("finish_reason") or "") if isinstance(first, Mapping) else ""


def _litellm(said: Mapping[str, Any], setting: Setting) -> Entry:
    """A row of its spend logs, or the payload it hands to loggers."""
    model = said.get("model")
    if not isinstance(model, str) or not model:
        raise _Odd("names no model")
    started, ended = _time(said.get("startTime"), "startTime"), said.get("endTime")
    provider = setting.provider or str(said.get("custom_llm_provider") or "litellm")
    metadata = said.get("metadata")
    reported = metadata.get("usage_object") if isinstance(metadata, Mapping) else None
    usage = openai_usage(reported or {name: said[name] for name in TOKENS if name in said})
    failed = said.get("status") == "failure"
    first = said.get("completionStartTime")
    ending = Ending(
        Status.FAILED if failed else Status.COMPLETED,
        usage,
        _litellm_cost(said, usage, failed=failed),
        error="logged" if failed else "",
        first=_time(first, "completionStartTime") - started if first else None,
        took=max(_time(ended, "endTime") - started, 0.0) if ended else None,
    )
    kind = LITELLM_KINDS.get(str(said.get("call_type")), Kind.GENERATE)
    told = str(said.get("request_id") or said.get("id") or "")
    task = str(said.get("trace_id") or said.get("session_id") or "")
    return _booked(said, told, task, ending, Attempt(kind, setting.tier, provider, model), started, setting)


def _litellm_cost(said: Mapping[str, Any], usage: Usage, *, failed: bool) -> Cost:
    """It writes 0 where it knows no price: a zero counts only where nothing was made or a cache answered."""
    spend = said.get("response_cost", said.get("spend"))
    if not isinstance(spend, int | float) or isinstance(spend, bool) or not 0 <= spend < math.inf:
        return Cost(Unknown.NOT_REPORTED, Unknown.NOT_REPORTED)
    free = failed or said.get("cache_hit") in (True, "True", "true") or (usage.input, usage.output) == (0, 0)
    if spend == 0 and not free:
        return Cost(Unknown.NOT_PRICED, Unknown.NOT_PRICED)
    return Cost.told(float(spend), "USD", "log")


def _booked(
    said: Mapping[str, Any],
    told: str,
    task: str,
    ending: Ending,
    attempt: Attempt,
    started: float,
    setting: Setting,
) -> Entry:
    """Under ids that the same line always gets."""
    name = told or json.dumps(said, sort_keys=True)
    own = hashlib.sha256(f"{attempt.provider} {attempt.model} {name}".encode()).hexdigest()[:32]
    whole = hashlib.sha256(f"{attempt.provider} {task}".encode()).hexdigest()[:32] if task else own
    booked = Attempt(attempt.kind, attempt.tier, attempt.provider, attempt.model, id=own)
    return Entry(Task(whole, setting.name), booked, ending, started)


def _time(value: object, name: str) -> float:
    """Seconds since 1970, of a number or of ISO 8601; without a zone it is UTC, as LiteLLM writes."""
    if isinstance(value, str):
        try:
            told = datetime.fromisoformat(value)
        except ValueError:
            raise _Odd(f"has {name} {value[:40]!r}, which is no time") from None
        return (told if told.tzinfo else told.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e11:
        return float(value)
    raise _Odd(f"has no {name}; prices change, so a call without its time cannot be booked")


def attempts(entries: Iterable[Entry | Outcome]) -> list[Entry]:
    return [entry for entry in entries if isinstance(entry, Entry)]
