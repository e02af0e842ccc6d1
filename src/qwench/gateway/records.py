"""What the ledger keeps, as plain records: tasks, attempts and how they ended, outcomes, events.

    Task ─┬─ Attempt + Ending   one row each: a call that generates, verifies, judges, embeds or routes
          ├─ Outcome            what a verifier, a test, a judge or a user found; any number, the most trusted counts
          └─ Event              whatever else happened: refusals, halts, erasures, imports

Records hold accounts, never words of a prompt or an answer (those are ``Ending.contents``, kept apart and erasable) and
never a secret: ``Task.key`` is the name of an API key. Knows no SQL, no HTTP and no clock.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from qwench.gateway.prices import UNPRICED, Cost
from qwench.gateway.usage import SILENT, Usage


def new_id() -> str:
    """A fresh id of a task or an attempt."""
    return uuid.uuid4().hex


class Kind(StrEnum):
    """What an attempt was for. All of them count as spending on the task."""

    GENERATE = "generate"
    VERIFY = "verify"
    JUDGE = "judge"
    EMBED = "embed"
    ROUTE = "route"  # what the router itself spent to decide
    TOOL = "tool"
    HUMAN = "human"


class Status(StrEnum):
    """How an attempt ended, seen from the transport; whether it was any good is an Outcome."""

    COMPLETED = "completed"  # a whole answer
    FAILED = "failed"  # refused, timed out, half a stream, malformed; ``Ending.error`` says which
    CANCELLED = "cancelled"  # the client left or the operator halted
    INTERRUPTED = "interrupted"  # the process died; written by the next one that opens the ledger


class Verdict(StrEnum):
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    ABANDONED = "abandoned"


class Judge(StrEnum):
    """Who found an outcome, the most trusted first: of several about one task, that of the first here counts."""

    USER = "user"
    TEST = "test"
    VERIFIER = "verifier"
    JUDGE = "judge"  # a model
    TIMEOUT = "timeout"


@dataclass(frozen=True)
class Task:
    """What somebody wants done, over one request or many. The first record of an ``id`` is the one that is kept.

    ``name``: the task class the router found, empty where it abstained. ``data``: the data class of the gates.
    ``key``: the name of the API key that asked. ``value``: what a completed task is worth, in the currency of prices.
    """

    id: str = field(default_factory=new_id)
    name: str = ""
    data: str = ""
    key: str = ""
    value: float | None = None


@dataclass(frozen=True)
class Attempt:
    """One call, as it is known when it begins.

    ``parent``: the attempt this one checks, repeats or escalates. ``thinking``: "off", "on", "budget 1024", or empty
    where nobody said. ``decision``: the router's signals and numbers, JSON values only and no words of the prompt.
    """

    kind: Kind
    tier: str
    provider: str
    model: str
    thinking: str = ""
    recipe: str = ""
    parent: str = ""
    decision: Mapping[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=new_id)


@dataclass(frozen=True)
class Ending:
    """The same call, as it is known when it is over. Times are seconds of a monotonic clock; None is not measured.

    ``stop``: the reason the upstream gave ("stop", "length", "tool_calls"). ``error``: our own short code
    ("connect", "timeout", "http_429", "half_a_stream", "malformed"), never an upstream's text, which may repeat a key.
    ``engine`` and ``weights``: what answered, where it says so (version; SHA-256 of the checkpoint).
    ``contents``: texts to keep until they are erased, by part ("request", "response"); empty unless they shall be kept.
    """

    status: Status
    usage: Usage = SILENT
    cost: Cost = UNPRICED
    stop: str = ""
    error: str = ""
    queued: float | None = None
    first: float | None = None
    took: float | None = None
    engine: str = ""
    weights: str = ""
    contents: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What ``judge`` found about a task, or about one ``attempt`` at it. ``detail``: a short code, no prose."""

    task: str
    verdict: Verdict
    judge: Judge
    attempt: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Event:
    """Something the accounts must show that is no attempt.

    ``kind``: "refused", "halted", "resumed", "configured", "alert"; the ledger itself writes "erased", "imported",
    "anchored". ``detail``: JSON values only.
    """

    kind: str
    task: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Receipt:
    """A committed row: its number and the hash of the chain up to it. Kept elsewhere, it anchors the ledger."""

    seq: int
    hash: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"
