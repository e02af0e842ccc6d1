"""Checks an answer can be put to: a JSON schema, a regular expression, arithmetic, or a command of the user's.

``read_check`` makes one from what a caller wrote and refuses what would not be checked. A remote caller may name a
checker of the operator's, never a command. Whatever a check does, hang or crash, it is a failed check and not an error.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from qwench.errors import RequestError, UsageError
from qwench.reason.answers import answer_key
from qwench.reason.arithmetic import equations, expressions, value
from qwench.reason.judge import unknown_keyword
from qwench.reason.sandbox import Bounds, run

JUDGE = Path(__file__).with_name("judge.py")
JUDGE_BOUNDS = Bounds(seconds=5.0, memory=1 << 29, confined=False)  # our own code, which opens nothing
KINDS = ("schema", "regex", "arithmetic", "command", "checker")
MAX_SECONDS = 3600.0


@dataclass(frozen=True)
class Verdict:
    """``words`` say what is wrong, for the next attempt."""

    passed: bool
    words: str = ""


class Check(Protocol):
    """Blocking; may be called from several threads at once."""

    def __call__(self, answer: str) -> Verdict: ...


@dataclass(frozen=True)
class Judged:
    """A schema or a pattern, by ``judge.py`` in a process of its own."""

    task: Mapping[str, Any]

    def __call__(self, answer: str) -> Verdict:
        command = [sys.executable, "-I", "-S", str(JUDGE)]
        ended = run(command, json.dumps({**self.task, "text": answer}), JUDGE_BOUNDS)
        return Verdict(ended.passed, "" if ended.passed else ended.sentence())


@dataclass(frozen=True)
class Command:
    """A command without a shell: the answer on standard input, exit code 0 means it passed."""

    arguments: tuple[str, ...]
    bounds: Bounds

    def __call__(self, answer: str) -> Verdict:
        try:
            ended = run(self.arguments, answer, self.bounds)
        except UsageError as error:  # it could be run when it was read; this is no fault of who asks now
            return Verdict(False, error.message)
        return Verdict(ended.passed, "" if ended.passed else ended.sentence())

    def probe(self) -> None:
        """Raise UsageError if this machine cannot run it as it should be run, before a token is spent."""
        run(["true"], "", replace(self.bounds, seconds=5.0))


@dataclass(frozen=True)
class Arithmetic:
    """Every equation in the answer holds, and if the question is one expression, the last number is its value."""

    question: str = ""

    def __call__(self, answer: str) -> Verdict:
        stated = equations(answer)
        wrong = [f"{left} = {right} is not true" for left, right, holds in stated if not holds]
        asked = expressions(self.question)
        if len(asked) == 1:
            wanted = str(value(asked[0]))
            if answer_key(answer, "number") != wanted:
                wrong.append(f"the answer to {asked[0]} is not right")
        elif not stated:
            wrong.append("there is no equation in the answer to check")
        return Verdict(not wrong, "\n".join(wrong[:10]))


def read_check(given: object, question: str, checkers: Mapping[str, Command] | None = None) -> Check:
    """The check that ``given`` describes: {"schema": {...}}, {"regex": "..."}, "arithmetic", {"command": [...]} with
    ``timeout``, ``memory`` (bytes) and ``unconfined``, or {"checker": NAME}.

    ``checkers`` are the operator's; given at all, a command is refused. Raises RequestError naming the field.
    """
    if given == "arithmetic":
        given = {"arithmetic": True}
    kinds = [kind for kind in KINDS if kind in given] if isinstance(given, Mapping) else []
    if not isinstance(given, Mapping) or len(kinds) != 1:
        raise _wrong('give one of {"schema": {...}}, {"regex": "..."}, "arithmetic", {"checker": "name"}')
    kind, options = kinds[0], {name: each for name, each in given.items() if name != kinds[0]}
    if kind == "command" and checkers is None:
        return _command(given["command"], options)
    if options:
        raise _wrong(f"it holds {next(iter(options))!r}, which {kind} does not know; leave it out")
    if kind == "schema":
        return _schema(given["schema"])
    if kind == "regex":
        return _regex(given["regex"])
    if kind == "arithmetic":
        return Arithmetic(question)
    if kind == "command":
        raise _wrong("commands are not run for clients; name a checker that the server was started with")
    if given["checker"] not in (checkers or {}):
        names = ", ".join(sorted(checkers or {})) or "none (see `qwench serve --checker`)"
        raise _wrong(f"there is no checker {str(given['checker'])!r:.60}; there is {names}")
    return (checkers or {})[given["checker"]]


def _schema(schema: object) -> Judged:
    try:
        unknown = unknown_keyword(schema)
    except RecursionError:
        unknown = "schema, which is nested too deeply"
    if unknown:
        raise _wrong(f"{unknown} cannot be checked; leave it out")
    return Judged({"schema": schema})


def _regex(pattern: object) -> Judged:
    if not isinstance(pattern, str) or len(pattern) > 10_000:
        raise _wrong("regex should be a text of at most 10,000 characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise _wrong(f"regex cannot be read ({error}); mend the pattern") from None
    return Judged({"pattern": pattern})


def _command(arguments: object, options: Mapping[str, Any]) -> Command:
    if not isinstance(arguments, Sequence) or isinstance(arguments, str) or not arguments:
        raise _wrong('command should be a list of arguments, such as ["pytest", "-q"]; there is no shell')
    if not all(isinstance(each, str) and each and "\0" not in each for each in arguments):
        raise _wrong("command holds something that is no argument; give texts that are not empty")
    strange = next((name for name in options if name not in {"timeout", "memory", "unconfined"}), None)
    if strange is not None:
        raise _wrong(f"it holds {strange!r}, which command does not know; known are timeout, memory and unconfined")
    seconds, memory = options.get("timeout", Bounds.seconds), options.get("memory", Bounds.memory)
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= MAX_SECONDS:
        raise _wrong(f"timeout is {seconds!r}; give seconds, more than 0 and at most {MAX_SECONDS:.0f}")
    if isinstance(memory, bool) or not isinstance(memory, int) or memory < 1 << 24:
        raise _wrong(f"memory is {memory!r}; give bytes, at least 16777216")
    if shutil.which(arguments[0]) is None:
        raise _wrong(f"there is no command {arguments[0]!r:.60} that can be run; give its path")
    command = Command(tuple(arguments), Bounds(float(seconds), memory, confined=not options.get("unconfined")))
    try:
        command.probe()
    except UsageError as error:
        raise RequestError(error.message, param="check") from None
    return command


def _wrong(reason: str) -> RequestError:
    return RequestError(f"check: {reason}.", param="check")
