"""Whether the ledger is what was written: rows against the chain, its end against head and anchor, texts against rows.

Reads only, and says of each thing that is wrong what and where. Nothing is mended here.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any

import sqlalchemy as sa

from qwench.gateway import anchor as anchors
from qwench.gateway import tables
from qwench.gateway.records import Receipt
from qwench.gateway.store import Store

BACKWARDS = 1.0  # seconds


@dataclass
class Finding:
    """What was found. ``wrong`` is empty where the ledger is whole; ``remarks`` are no faults."""

    rows: dict[str, int] = field(default_factory=dict)
    texts: int = 0
    head: Receipt | None = None
    wrong: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return not self.wrong


def verify(store: Store, anchor: Receipt | None = None) -> Finding:
    """Read everything. ``anchor``: how far the chain had come, as somebody kept it; else the one beside it."""
    known = anchor or anchors.read(store.beside)  # before the rows: they may only have become more since
    found = Finding()
    with store.reading() as connection:
        kept, erased = _walk(connection, store, known, found)
        _texts(connection, kept, erased, found)
        waiting = connection.execute(sa.select(sa.func.count()).select_from(tables.PENDING)).scalar_one()
    if known is None and found.rows:
        found.wrong.append(
            f"There is no anchor at {store.beside}, so nobody could see that rows at the end are missing; give "
            "--anchor SEQ:HASH if you kept one."
        )
    if waiting:
        found.remarks.append(
            f"{waiting:,} attempts are pending: they run, or their process died and the next start ends them."
        )
    return found


def chained(connection: sa.Connection) -> Iterator[tuple[str, dict[str, Any]]]:
    """All rows of the chain with the names of their tables, in the order they were written."""

    def of(table: sa.Table) -> Iterator[tuple[int, str, dict[str, Any]]]:
        rows = connection.execute(sa.select(table).order_by(table.c.seq).execution_options(yield_per=1000))
        return ((row.seq, table.name, row._asdict()) for row in rows)

    for _, name, row in heapq.merge(*map(of, tables.CHAIN), key=itemgetter(0)):
        yield name, row


def _walk(
    connection: sa.Connection, store: Store, known: Receipt | None, found: Finding
) -> tuple[dict[tuple[str, str], str], set[tuple[str, str]]]:
    """Follow the chain. Returns what texts were kept, with their hashes, and which of them were erased."""
    last, at = Receipt(0, store.first), 0.0
    kept: dict[tuple[str, str], str] = {}
    erased: set[tuple[str, str]] = set()
    if known is not None and known.seq == 0 and known.hash != store.first:
        found.wrong.append("The anchor belongs to another ledger.")
    for table, row in chained(connection):
        _link(table, row, last, found)
        last = Receipt(row["seq"], row["hash"])
        found.rows[table] = found.rows.get(table, 0) + 1
        if isinstance(row["at"], float):
            if row["at"] < at - BACKWARDS:
                found.remarks.append(f"The clock went back {at - row['at']:,.0f} s before row {row['seq']:,}.")
            at = row["at"]
        if known is not None and row["seq"] == known.seq and row["hash"] != known.hash:
            found.wrong.append(f"Row {known.seq:,} is not the one that the anchor knows: the chain was written anew.")
        for name, text_hash in _object(row.get("contents")).items():
            kept[row["id"], name] = text_hash
        if table == "event" and row["kind"] == "erased":
            erased |= {(each[0], each[1]) for each in _object(row["detail"]).get("contents", [])}
    if known is not None and known.seq > last.seq:
        ends = f"The ledger ends at row {last.seq:,}, but its anchor knows row {known.seq:,}"
        found.wrong.append(f"{ends}: the end is missing.")
    head = connection.execute(sa.select(tables.HEAD.c.seq, tables.HEAD.c.hash)).one_or_none()
    if head is None or (head.seq, head.hash) != (last.seq, last.hash):
        told = f"row {head.seq:,}" if head is not None else "nothing"
        found.wrong.append(f"The head names {told} as the last one, the rows end with {last.seq:,}.")
    found.head = last
    return kept, erased


def _link(table: str, row: dict[str, Any], last: Receipt, found: Finding) -> None:
    seq = row["seq"]
    if seq == last.seq:
        found.wrong.append(f"The number {seq:,} is used twice: a row was inserted.")
    elif seq > last.seq + 1:
        gone = f"Row {last.seq + 1:,} is" if seq == last.seq + 2 else f"Rows {last.seq + 1:,} to {seq - 1:,} are"
        found.wrong.append(f"{gone} missing.")
    elif tables.row_hash(last.hash, table, row) != row["hash"]:
        found.wrong.append(f"Row {seq:,} ({table}{_when(row['at'])}) is not as it was written.")


def _when(at: object) -> str:
    known = isinstance(at, float) and 0 <= at < 1e11
    return f", {datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC" if known and isinstance(at, float) else ""


def _object(text: object) -> dict[str, Any]:
    """A JSON object of a row; nothing where somebody made it something else, which its hash shows anyway."""
    try:
        value = json.loads(text) if isinstance(text, str) else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _texts(
    connection: sa.Connection, kept: dict[tuple[str, str], str], erased: set[tuple[str, str]], found: Finding
) -> None:
    """Every kept text is as its row says, and a text that is gone was erased on record."""
    seen = set()
    for row in connection.execute(sa.select(tables.CONTENT).execution_options(yield_per=100)):
        name = (row.attempt, row.part)
        seen.add(name)
        found.texts += 1
        if name not in kept:
            found.wrong.append(f"A text ({row.part} of attempt {row.attempt}) belongs to no row.")
        elif tables.content_hash(str(row.salt), str(row.text)) != kept[name]:
            found.wrong.append(f"The {row.part} of attempt {row.attempt} is not as it was written.")
        elif name in erased:
            found.wrong.append(f"The {row.part} of attempt {row.attempt} was erased, and is back.")
    for attempt, part in sorted(kept.keys() - erased - seen):
        found.wrong.append(f"The {part} of attempt {attempt} is missing, and no erasure is on record.")
