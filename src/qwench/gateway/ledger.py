"""The ledger: an append-only, hash-chained account of every attempt, in SQLite (WAL) or PostgreSQL.

How an attempt is written::

    with ledger.attempt(task, attempt) as running:   # returns at once; its beginning is written behind it
        ...call the upstream, stream to the client...
        done = running.end(Ending(Status.COMPLETED, usage, cost, ...))
    await asyncio.wrap_future(done)                  # before the client is told that the answer is complete

* The beginning goes to a table of what is pending, outside the chain; ``end`` appends the attempt's one row and removes
  the pending one in the same transaction. There is no way to two rows: the first ``end`` counts, later ones return its
  future; and none to no row: leaving the block without ``end`` writes FAILED (CANCELLED for a cancelled task), with
  usage and cost not reported.
* The future is done when the row is committed and on the disk (``synchronous=FULL``). Whoever tells a client that its
  answer is complete only after that has every finished request in the ledger, whatever happens to the process.
* A process that dies leaves its pending rows; the next that opens the ledger ends them as INTERRUPTED. Another living
  writer's pending rows are left alone.
* One thread of the ledger writes, many rows to a transaction, so the event loop never waits for the disk.
* Where the disk is full or the file is locked, rows wait in memory and are tried again; meanwhile ``attempt`` raises
  LedgerUnavailable (503, ``ledger_unavailable``) with the reason, so nothing begins that could not be accounted for.
  It recovers without a restart.

All methods may be called from any thread. Knows no HTTP and no router.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Self

import sqlalchemy as sa

from qwench.errors import LedgerError, UsageError
from qwench.gateway import anchor as anchors
from qwench.gateway import rows, tables
from qwench.gateway.anchor import Anchor
from qwench.gateway.history import Tally, read_cases, tally
from qwench.gateway.imports import Entry
from qwench.gateway.records import Attempt, Ending, Event, Outcome, Receipt, Status, Task
from qwench.gateway.store import Store, connect
from qwench.gateway.usage import SILENT
from qwench.gateway.writer import Batch, Job, Writer, write_now

__all__ = ["Ledger", "Running", "Spending", "Tally"]

ERASED_AT_ONCE = 200  # texts that one event of the chain names

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Spending:
    """What a key spent. ``amounts``: by currency. ``unknown``: attempts whose cost nobody knows, not in the amounts."""

    amounts: dict[str, float]
    attempts: int
    unknown: int


class Running:
    """An attempt that has begun."""

    def __init__(self, ledger: Ledger, task: Task, attempt: Attempt, started: float) -> None:
        self.task, self.attempt, self.started = task, attempt, started
        self._ledger = ledger
        self._done: Future[Receipt] | None = None

    def end(self, ending: Ending) -> Future[Receipt]:
        """Append the attempt's row. Only the first call counts."""
        if self._done is None:
            self._done = self._ledger.record(self.task, self.attempt, ending, started=self.started)
        return self._done

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        left = kind is not None and issubclass(kind, asyncio.CancelledError | GeneratorExit | KeyboardInterrupt)
        self.end(Ending(Status.CANCELLED if left else Status.FAILED, error="unfinished"))


class Ledger:
    """One ledger, open for reading and writing; several processes may have it open."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        with ExitStack() as undone:
            undone.callback(store.close)
            anchored = _check_anchor(store)
            self.store = store
            self._anchor, self._clock = Anchor(store.beside), clock
            undone.callback(self._anchor.close)
            self._host = socket.gethostname() if store.shared else ""
            write_now(store, self._anchor, clock, partial(self._recover, anchored=anchored))
            undone.pop_all()
        self._writer = Writer(store, self._anchor, clock)

    @classmethod
    def open(cls, where: str, *, clock: Callable[[], float] = time.time) -> Ledger:
        """A path of a file, or a URL postgresql://. A new ledger is made; one of another version is refused.

        Raises LedgerError naming the file: not a ledger, of another version, cut short; LedgerUnavailable: not to be
        read or written at the moment.
        """
        return cls(connect(where, make=True, now=clock()), clock)

    def close(self) -> None:
        """Write what waits, then let go. Raises LedgerUnavailable naming what could not be written."""
        try:
            self._writer.close()
        finally:
            self._anchor.close()
            self.store.close()

    @property
    def trouble(self) -> str | None:
        """Why nothing can be written at the moment, one sentence; None while all is well."""
        return self._writer.trouble

    def attempt(self, task: Task, attempt: Attempt) -> Running:
        """Begin an attempt at ``task``, which is recorded with its first attempt. Raises LedgerUnavailable.

        To be used as ``with ledger.attempt(...) as running``: leaving without ``end`` is an ending too.
        """
        self._writer.check()
        running = Running(self, task, attempt, float(self._clock()))
        pending = {
            "attempt": rows.label(attempt.id),
            "writer": f"{self._host}/{self._anchor.writer}",
            "started": running.started,
            "task": rows.label(task.id),
            "record": rows.pending_record(attempt),
        }

        def begin(batch: Batch) -> Receipt:
            self._add_task(batch, task)
            batch.begin(pending)
            return batch.head

        self._writer.submit(Job(begin, hurried=False))
        return running

    def record(self, task: Task, attempt: Attempt, ending: Ending, *, started: float | None = None) -> Future[Receipt]:
        """An attempt that is over already: small spending of the router's own, lines of an imported log."""
        began = float(self._clock()) if started is None else started
        return self._writer.submit(self._ending(task, attempt, began, ending))

    def outcome(self, outcome: Outcome) -> Future[Receipt]:
        """Append what was found. The future fails with UsageError where the task is not in the ledger."""
        return self._writer.submit(self._finding(outcome))

    def event(self, event: Event) -> Future[Receipt]:
        row = rows.event_row(event)
        return self._writer.submit(Job(lambda batch: batch.append(tables.EVENT, row), {"table": "event", **row}))

    def take(self, entries: Sequence[Entry | Outcome], name: str) -> tuple[int, int]:
        """Append what a log named ``name`` holds and is not here yet: how many were added, and how many were there.

        Waits until it is done. Raises LedgerUnavailable.
        """
        fresh: dict[int, bool] = {}  # not a count: a transaction may be tried again

        def once(number: int, job: Job) -> Job:
            def add(batch: Batch) -> Receipt:
                fresh[number] = not _is_there(batch, job.row)
                return job.run(batch) if fresh[number] else batch.head

            return Job(add, job.row)

        made = (entry for entry in entries if isinstance(entry, Entry))
        jobs = [self._ending(entry.task, entry.attempt, entry.started, entry.ending) for entry in made]
        jobs += [self._finding(entry) for entry in entries if isinstance(entry, Outcome)]
        for future in [self._writer.submit(once(number, job)) for number, job in enumerate(jobs)]:
            future.result()
        added = sum(fresh.values())
        self.event(Event("imported", detail={"name": name, "added": added, "there": len(jobs) - added})).result()
        return added, len(jobs) - added

    def spent(self, *, key: str | None = None, since: float = 0.0) -> Spending:
        """What attempts that ended since then cost, of one key or of all. Reads the file: not for every request."""
        attempt = tables.ATTEMPT.c
        wanted = sa.select(
            attempt.currency, sa.func.sum(attempt.amount), sa.func.count(), sa.func.count(attempt.amount)
        ).where(attempt.at >= since)
        if key is not None:
            wanted = wanted.join(tables.TASK, tables.TASK.c.id == attempt.task).where(tables.TASK.c.key == key)
        with self.store.reading() as connection:
            found = connection.execute(wanted.group_by(attempt.currency)).all()
        amounts = {currency: float(amount) for currency, amount, _, _ in found if currency and amount is not None}
        attempts = sum(count for _, _, count, _ in found)
        return Spending(amounts, attempts, attempts - sum(known for _, _, _, known in found))

    def tallies(self) -> list[Tally]:
        """How every option fared so far: what a router's posterior is made of."""
        with self.store.reading() as connection:
            return tally(read_cases(connection))

    def erase(self, *, before: float | None = None, task: str | None = None, key: str | None = None) -> int:
        """Delete kept contents, all conditions together; accounts stay, and the chain stays valid. How many texts.

        Waits until it is done. Raises LedgerUnavailable, and UsageError without any condition.
        """
        if before is None and task is None and key is None:
            raise UsageError("say what shall be erased: contents before a time, of a task or of a key.")
        erased: list[int] = []
        condition = {"before": before, "task": task, "key": key}
        job = Job(lambda batch: _erase(batch, condition, erased), {"table": "event", "kind": "erased", **condition})
        self._writer.check()
        self._writer.submit(job).result()
        if not self.store.shared:
            with self.store.engine.connect() as connection:  # else the texts would stay in the log of what was written
                connection.execution_options(isolation_level="AUTOCOMMIT")
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return erased[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ending(self, task: Task, attempt: Attempt, started: float, ending: Ending) -> Job:
        row, texts = rows.attempt_row(task.id, attempt, started, ending)

        def end(batch: Batch) -> Receipt:
            if batch.again and batch.holds(tables.ATTEMPT, row["id"]):
                return batch.head
            self._add_task(batch, task)
            batch.end(row["id"])
            for text in texts:
                batch.add(tables.CONTENT, text)
            return batch.append(tables.ATTEMPT, row)

        return Job(end, {"table": "attempt", **row})

    def _finding(self, outcome: Outcome) -> Job:
        row = rows.outcome_row(outcome)

        def add(batch: Batch) -> Receipt:
            for table, name in ((tables.TASK, "task"), (tables.ATTEMPT, "attempt")):
                if row[name] and not batch.holds(table, row[name]):
                    raise UsageError(f"there is no {name} {row[name]!r} in the ledger {self.store.name}.", param=name)
            return batch.append(tables.OUTCOME, row)

        return Job(add, {"table": "outcome", **row})

    def _add_task(self, batch: Batch, task: Task) -> None:
        row = rows.task_row(task)
        if row["id"] in self._writer.known or row["id"] in batch.tasks:
            return
        if not batch.holds(tables.TASK, row["id"]):
            batch.append(tables.TASK, row)
        batch.tasks.add(row["id"])

    def _recover(self, batch: Batch, *, anchored: bool) -> None:
        """End what processes began that are dead now: nobody told what it used. Say so where an anchor is new."""
        if not anchored and batch.head.seq:
            logger.warning("%s had no anchor; one is made for its %d rows.", self.store.name, batch.head.seq)
            batch.append(tables.EVENT, rows.event_row(Event("anchored", detail={"rows": batch.head.seq})))
        for row in batch.connection.execute(sa.select(tables.PENDING)).all():
            host, _, writer = row.writer.rpartition("/")
            if host == self._host and not self._anchor.alive(int(writer)):
                attempt = rows.pending_attempt(row.record)
                ended, _ = rows.attempt_row(row.task, attempt, row.started, Ending(Status.INTERRUPTED, SILENT))
                batch.end(row.attempt)
                batch.append(tables.ATTEMPT, ended)


def _is_there(batch: Batch, row: rows.Row) -> bool:
    """Whether the ledger holds this attempt, or has heard of this very outcome."""
    if row["table"] == "attempt":
        return batch.holds(tables.ATTEMPT, row["id"])
    said = [tables.OUTCOME.c[name] == value for name, value in row.items() if name != "table"]
    return batch.connection.execute(sa.select(tables.OUTCOME.c.seq).where(*said)).first() is not None


def _erase(batch: Batch, condition: dict[str, float | str | None], erased: list[int]) -> Receipt:
    """Delete the texts and name them in events, so that a missing text is either on record or a finding."""
    content, attempt = tables.CONTENT.c, tables.ATTEMPT.c
    wanted = sa.select(content.attempt, content.part).join(tables.ATTEMPT, attempt.id == content.attempt)
    if condition["before"] is not None:
        wanted = wanted.where(attempt.at < condition["before"])
    if condition["task"] is not None:
        wanted = wanted.where(attempt.task == condition["task"])
    if condition["key"] is not None:
        wanted = wanted.join(tables.TASK, tables.TASK.c.id == attempt.task).where(tables.TASK.c.key == condition["key"])
    found = [list(row) for row in batch.connection.execute(wanted.order_by(content.attempt, content.part))]
    for start in range(0, len(found), ERASED_AT_ONCE):
        some = found[start : start + ERASED_AT_ONCE]
        for name, part in some:
            batch.connection.execute(tables.CONTENT.delete().where(content.attempt == name, content.part == part))
        batch.append(tables.EVENT, rows.event_row(Event("erased", detail={"contents": some})))
    erased.append(len(found))
    return batch.head


def _check_anchor(store: Store) -> bool:
    """Whether there is an anchor. Raises LedgerError where the chain lacks what it knows: going on would bury that."""
    known = anchors.read(store.beside)
    if known is None:
        return False
    with store.reading() as connection:
        if known.seq == 0:
            found = store.first
        else:
            select = sa.union_all(*(sa.select(table.c.hash).where(table.c.seq == known.seq) for table in tables.CHAIN))
            found = connection.execute(select).scalars().first() or ""
    if found != known.hash:
        raise LedgerError(
            f"{store.name} does not hold row {known.seq:,} as its anchor {store.beside} knows it: it was cut short or "
            "changed, or an older copy was put back. `qwench ledger verify` says what is missing; to go on from here, "
            "move the anchor away."
        )
    return True
