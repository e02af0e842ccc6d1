"""Token counts as upstreams report them, and three ways not to know a number. Knows neither prices nor HTTP.

A provider's words differ: OpenAI's prompt tokens include what was cached, Anthropic's input tokens do not. Here ``input``
always means everything the model was given; what was sent is kept beside it in ``reported``, untouched.
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
    ``reported``: the upstream's own JSON, shortened; empty where it sent none.
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
    """``usage`` of chat completions, completions, responses or embeddings; anything unbelievable is not reported."""
    raise NotImplementedError


def anthropic_usage(reported: object) -> Usage:
    """``usage`` of a message, or the merged ``usage`` of message_start and message_delta."""
    raise NotImplementedError


def _kept(reported: object) -> str:
    return json.dumps(reported, sort_keys=True)[:LONGEST_REPORT] if isinstance(reported, Mapping) else ""


def _count(reported: Mapping[str, Any], name: str) -> Count:
    value = reported.get(name)
    believable = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST
    return value if believable else Unknown.NOT_REPORTED
