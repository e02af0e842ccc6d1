"""Token counts as upstreams report them, and three ways not to know a number. Knows neither prices nor HTTP.

A provider's words differ: OpenAI's prompt tokens include what was cached, Anthropic's input tokens do not. Here
``input`` always means everything the model was given; the numbers that were sent are kept beside it in ``reported``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Unknown(StrEnum):
    """Why there is no number. Zero is a number and none of these."""

    NOT_REPORTED = "not reported"  # there is such a number, and nobody told it, or nobody can believe what was told
    NOT_PRICED = "not priced"  # the amounts are known, but no price with a source is
    NOT_APPLICABLE = "not applicable"  # there is no such number here


Count = int | Unknown
Amount = float | Unknown

MOST = 2**40  # no call has a trillion tokens; who says so is not believed
LONGEST_REPORT = 2000  # characters of ``reported``


@dataclass(frozen=True)
class Usage:
    """Tokens of one call. ``cached`` and ``written`` are parts of ``input``, ``reasoning`` is a part of ``output``.

    ``cached``: read from a prompt cache; ``written``: put into one, where that is billed apart (Anthropic).
    ``reported``: the upstream's own numbers as JSON; empty where it sent none.
    """

    input: Count
    output: Count
    cached: Count = Unknown.NOT_REPORTED
    written: Count = Unknown.NOT_APPLICABLE
    reasoning: Count = Unknown.NOT_REPORTED
    reported: str = ""


SILENT = Usage(Unknown.NOT_REPORTED, Unknown.NOT_REPORTED)  # the call may have cost something; nobody said what
NOTHING = Usage(0, 0, 0, 0, 0)  # the call never reached a model: refused connection, 429, 5xx before the first byte


def openai_usage(reported: object) -> Usage:
    """``usage`` of chat completions, completions, responses or embeddings; what cannot be believed is not reported."""
    said = reported if isinstance(reported, Mapping) else {}
    given, made = _count(said, "prompt_tokens", "input_tokens"), _count(said, "completion_tokens", "output_tokens")
    if "prompt_tokens" in said and "completion_tokens" not in said and said.get("total_tokens") == given:
        made = 0  # embeddings name no completion
    given_details = _part(said, "prompt_tokens_details", "input_tokens_details")
    made_details = _part(said, "completion_tokens_details", "output_tokens_details")
    return Usage(
        given,
        made,
        cached=_within(_count(given_details, "cached_tokens"), given),
        written=_within(_count(given_details, "cache_write_tokens"), given, silent=Unknown.NOT_APPLICABLE),
        reasoning=_within(_count(made_details, "reasoning_tokens"), made),
        reported=_kept(reported),
    )


def anthropic_usage(reported: object) -> Usage:
    """``usage`` of a message, or of message_start and message_delta merged. Its input leaves out what was cached."""
    said = reported if isinstance(reported, Mapping) else {}
    fresh = _count(said, "input_tokens")
    cached, written = (_count(said, f"cache_{name}_input_tokens") for name in ("read", "creation"))
    parts = [fresh, *(part for name, part in (("read", cached), ("creation", written)) if _told(said, name))]
    known = [part for part in parts if isinstance(part, int)]
    return Usage(
        sum(known) if len(known) == len(parts) else Unknown.NOT_REPORTED,
        _count(said, "output_tokens"),
        cached=cached,
        written=_written(said, written),
        reasoning=Unknown.NOT_REPORTED,  # it is in the output, and Anthropic does not say how much of it
        reported=_kept(reported),
    )


def _written(said: Mapping[str, Any], count: Count) -> Count:
    """What is kept for an hour is dearer than what is kept for five minutes, and price lists here name the latter."""
    if not _told(said, "creation"):
        return Unknown.NOT_APPLICABLE
    hour = _count(_part(said, "cache_creation"), "ephemeral_1h_input_tokens")
    return Unknown.NOT_PRICED if isinstance(hour, int) and hour else count


def _told(said: Mapping[str, Any], name: str) -> bool:
    return said.get(f"cache_{name}_input_tokens") is not None


def _kept(reported: object) -> str:
    """The numbers of it: an upstream that sends words there does not get them into the accounts."""

    def numbers(value: object) -> object:
        if isinstance(value, Mapping):
            parts = {str(name): numbers(part) for name, part in value.items()}
            return {name: part for name, part in parts.items() if part is not None}
        return value if isinstance(value, int | float) else None

    return json.dumps(numbers(reported), sort_keys=True)[:LONGEST_REPORT] if isinstance(reported, Mapping) else ""


def _part(said: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    return next((said[name] for name in names if isinstance(said.get(name), Mapping)), {})


def _count(said: Mapping[str, Any], *names: str) -> Count:
    """The first of ``names`` that is there, if it can be a number of tokens."""
    value = next((said[name] for name in names if said.get(name) is not None), None)
    believable = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST
    return value if believable and isinstance(value, int) else Unknown.NOT_REPORTED


def _within(part: Count, whole: Count, silent: Unknown = Unknown.NOT_REPORTED) -> Count:
    """A part larger than its whole is not believed."""
    if isinstance(part, int) and isinstance(whole, int) and part > whole:
        return Unknown.NOT_REPORTED
    return part if isinstance(part, int) else silent
