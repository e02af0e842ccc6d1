"""The ledger's tables, and what one row says as one canonical text. Knows no file and no connection.

``task``, ``attempt``, ``outcome`` and ``event`` are the chain: they share one count, ``seq``, and each row ends with
``hash``, that of its own text and of the row before it. Rows are only ever added. ``pending`` is work in progress and
``content`` what may be erased; neither is an account.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import BigInteger, Column, Double, Index, Integer, MetaData, String, Table

VERSION = 1
metadata = MetaData()
_NUMBER = BigInteger().with_variant(Integer, "sqlite")  # there an INTEGER key is the row's own number, and 64 bits


def _chained(name: str, *columns: Column[Any]) -> Table:
    """``seq``: the row's number in the whole ledger; ``at``: when it was written, in seconds since 1970."""
    first: tuple[Column[Any], ...] = (
        Column("seq", _NUMBER, primary_key=True, autoincrement=False),
        Column("at", Double, nullable=False),
    )
    return Table(name, metadata, *first, *columns, Column("hash", String, nullable=False))


def _words(*names: str) -> list[Column[Any]]:
    return [Column(name, String, nullable=False) for name in names]


def _counts(*names: str) -> list[Column[Any]]:
    return [Column(name, BigInteger) for name in names]


def _reals(*names: str) -> list[Column[Any]]:
    return [Column(name, Double) for name in names]


TASK = _chained(
    "task", Column("id", String, nullable=False, unique=True), *_words("name", "data", "key"), *_reals("value")
)
ATTEMPT = _chained(
    "attempt",
    Column("id", String, nullable=False, unique=True),
    *_words("task", "parent", "kind", "tier", "provider", "model", "thinking", "recipe", "decision"),
    *_words("status", "stop", "error", "engine", "weights"),
    Column("started", Double, nullable=False),  # seconds since 1970; the others are durations in seconds
    *_reals("queued", "first", "took"),
    *_counts("input", "cached", "written", "output", "reasoning"),
    *_words("reported"),
    *_reals("price_input", "price_cached", "price_written", "price_output"),  # for a million tokens, frozen
    *_reals("price_marginal_input", "price_marginal_output"),
    *_counts("price_over"),
    *_words("price_source", "price_date"),
    *_reals("amount", "marginal"),
    *_words("currency", "basis"),
    *_words("unknown"),  # JSON: for every number that is NULL above, why
    *_words("contents"),  # JSON: part -> SHA-256 of salt and text, of what was kept
)
OUTCOME = _chained("outcome", *_words("task", "attempt", "verdict", "judge", "detail"))
EVENT = _chained("event", *_words("kind", "task", "detail"))
CHAIN = (TASK, ATTEMPT, OUTCOME, EVENT)

LEDGER = Table(
    "ledger",
    metadata,
    Column("id", String, primary_key=True),
    Column("made", Double, nullable=False),
    Column("version", Integer, nullable=False),
)
HEAD = Table(
    "head",
    metadata,
    Column("one", Integer, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, nullable=False),
    Column("at", Double, nullable=False),
    Column("hash", String, nullable=False),
)
PENDING = Table(
    "pending",
    metadata,
    Column("attempt", String, primary_key=True),
    Column("writer", String, nullable=False),
    Column("started", Double, nullable=False),
    Column("task", String, nullable=False),
    Column("record", String, nullable=False),  # the Attempt as JSON
)
CONTENT = Table(
    "content",
    metadata,
    Column("attempt", String, primary_key=True),
    Column("part", String, primary_key=True),
    Column("salt", String, nullable=False),
    Column("text", String, nullable=False),
)
Index("attempt_task", ATTEMPT.c.task)
Index("attempt_at", ATTEMPT.c.at)
Index("outcome_task", OUTCOME.c.task)


def first_hash(ledger: str, made: float, version: int) -> str:
    """What the chain begins with: two ledgers' rows are not interchangeable."""
    return hashlib.sha256(f"qwench ledger {ledger} {made!r} {version}".encode()).hexdigest()


def row_hash(before: str, table: str, row: Mapping[str, Any]) -> str:
    """The chain's next link. What is NULL is left out, so a later version's new columns leave old rows as they are."""
    said = {name: value for name, value in row.items() if value is not None and name != "hash"}
    text = json.dumps([before, table, said], sort_keys=True, separators=(",", ":"), default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def content_hash(salt: str, text: str) -> str:
    """Of a kept text. The salt goes when the text goes, so what stays tells nobody whether a guess is right."""
    return hashlib.sha256(f"{salt}{text}".encode()).hexdigest()
