"""The one thread that writes: takes what waits, many rows to a transaction, and tries again until the disk obeys.

A job is a function of the open transaction. Futures are done after the commit; a job that raises one of our errors
fails alone. Knows what a chain is, but not what the rows mean.
"""

from __future__ import annotations

import json
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from qwench.errors import LedgerError, LedgerUnavailable, QwenchError
from qwench.gateway import tables
from qwench.gateway.anchor import Anchor
from qwench.gateway.records import Receipt
from qwench.gateway.rows import Row
from qwench.gateway.store import Store, reason_of

AT_ONCE = 200  # jobs of one transaction
MOST_WAITING = 20_000  # jobs in memory; who makes more than the disk takes is told so
FIRST_PAUSE, LAST_PAUSE = 0.05, 1.0  # seconds between tries
LAST_TRIES = 5.0  # seconds that ``close`` goes on trying
LINGER = 0.005  # seconds that beginnings wait for company: a commit in the same moment would slow what they begin
BACKWARDS = 1.0  # seconds that a clock may be set back without a word

logger = logging.getLogger(__name__)
_TROUBLES = (DBAPIError, sqlite3.Error, OSError)


class Batch:
    """One open transaction at the end of the chain. ``again``: it was tried before and may have been written.

    What is added is gathered and goes to the database table by table, so its cost is shared by all jobs.
    """

    def __init__(self, connection: sa.Connection, clock: Callable[[], float], *, again: bool = False) -> None:
        head = connection.execute(sa.select(tables.HEAD.c.seq, tables.HEAD.c.hash, tables.HEAD.c.at)).one()
        self.connection, self.again = connection, again
        self.head, self.at = Receipt(head.seq, head.hash), float(head.at)
        self.tasks: set[str] = set()  # known after this
        self.backwards = 0.0  # seconds
        self._clock, self._first = clock, head.seq
        self._rows: dict[sa.Table, list[Row]] = {}
        self._begun: dict[str, Row] = {}
        self._over: list[Row] = []

    def append(self, table: sa.Table, row: Row) -> Receipt:
        """Put a row at the end of the chain."""
        now = float(self._clock())
        self.backwards = max(self.backwards, self.at - now)
        whole = {**row, "seq": self.head.seq + 1, "at": now}
        whole["hash"] = tables.row_hash(self.head.hash, table.name, whole)
        self.add(table, whole)
        self.head, self.at = Receipt(whole["seq"], whole["hash"]), now
        return self.head

    def add(self, table: sa.Table, row: Row) -> None:
        self._rows.setdefault(table, []).append(row)

    def begin(self, row: Row) -> None:
        """An attempt is pending."""
        if self.again:
            self._over.append({"id": row["attempt"]})
        self._begun[row["attempt"]] = row

    def end(self, attempt: str) -> None:
        """It is no longer."""
        if self._begun.pop(attempt, None) is None:
            self._over.append({"id": attempt})

    def holds(self, table: sa.Table, row_id: str) -> bool:
        self._flush(table)
        return self.connection.execute(HOLDS[table.name], {"id": row_id}).first() is not None

    def close(self) -> None:
        for table in tuple(self._rows):
            self._flush(table)
        if self._over:
            self.connection.execute(OVER, self._over)
        if self._begun:
            self.connection.execute(tables.PENDING.insert(), list(self._begun.values()))
        if self.head.seq > self._first:
            values = {"seq": self.head.seq, "hash": self.head.hash, "at": self.at}
            self.connection.execute(tables.HEAD.update(), values)

    def _flush(self, table: sa.Table) -> None:
        rows = self._rows.pop(table, None)
        if rows:
            self.connection.execute(table.insert(), rows)


OVER = tables.PENDING.delete().where(tables.PENDING.c.attempt == sa.bindparam("id"))
HOLDS = {
    table.name: sa.select(table.c.seq).where(table.c.id == sa.bindparam("id"))
    for table in (tables.TASK, tables.ATTEMPT)
}


@dataclass
class Job:
    """``row``: what it adds to the accounts, for the log should it never be written. ``hurried``: somebody waits."""

    run: Callable[[Batch], Receipt]
    row: Row = field(default_factory=dict)
    hurried: bool = True
    future: Future[Receipt] = field(default_factory=Future)


class Writer:
    """Owns the end of the chain for one process."""

    def __init__(self, store: Store, anchor: Anchor, clock: Callable[[], float]) -> None:
        self.trouble: str | None = None
        self.known: set[str] = set()  # tasks that are in the ledger
        self._store, self._anchor, self._clock = store, anchor, clock
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._until = float("inf")
        self._left: list[Job] = []
        self._thread = threading.Thread(target=copy_context().run, args=(self._work,), name="ledger", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> Future[Receipt]:
        assert not self._closing.is_set(), "the ledger is closed"
        job.future.set_running_or_notify_cancel()  # who stops waiting for a row does not keep it from being written
        self._queue.put(job)
        return job.future

    def check(self) -> None:
        """Raises LedgerUnavailable while nothing new should begin."""
        trouble = self.trouble
        if trouble is None and self._queue.qsize() > MOST_WAITING:
            trouble = f"the ledger {self._store.name} is {MOST_WAITING:,} rows behind; its disk is too slow."
        if trouble is None and not self._thread.is_alive():
            trouble = f"the ledger {self._store.name} is no longer written; restart the gateway."
        if trouble is not None:
            raise LedgerUnavailable(trouble)

    def close(self) -> None:
        """Write what waits. Raises LedgerUnavailable when that cannot be done; the rows are in the log then."""
        self._until = time.monotonic() + LAST_TRIES
        self._closing.set()
        self._queue.put(None)
        self._thread.join()
        if self._left:
            for job in self._left:
                logger.error("not written to the ledger: %s", json.dumps(job.row))
                job.future.set_exception(LedgerUnavailable(self.trouble or "the ledger was closed."))
            missing = f"{len(self._left):,} rows are" if len(self._left) > 1 else "1 row is"
            raise LedgerUnavailable(
                f"{missing} missing in {self._store.name}: {self.trouble} What is missing was logged as JSON; "
                "`qwench ledger import` reads the log."
            )

    def _work(self) -> None:
        going = True
        while going:
            jobs, going = self._take()
            if jobs:
                self._write(jobs)

    def _take(self) -> tuple[list[Job], bool]:
        """What waits, at most AT_ONCE; False with the last. Where nobody is in a hurry, also what comes in a moment."""
        jobs: list[Job] = []
        job = self._queue.get()
        until, late = time.monotonic() + LINGER, False
        while job is not None:
            jobs.append(job)
            late = late or job.hurried or time.monotonic() >= until
            if len(jobs) == AT_ONCE or (late and self._queue.empty()):
                return jobs, True
            try:
                job = self._queue.get(timeout=None if late else max(until - time.monotonic(), 0.0))
            except queue.Empty:
                return jobs, True
        return jobs, False

    def _write(self, jobs: list[Job]) -> None:
        pause, again = FIRST_PAUSE, False
        while True:
            try:
                self._commit(jobs, again=again)
            except (IntegrityError, DataError) as error:  # one of them is wrong, and trying again will not mend it
                if len(jobs) > 1:
                    for job in jobs:
                        self._write([job])
                    return
                logger.error("the ledger refuses a row (%s): %s", reason_of(error), json.dumps(jobs[0].row))
                jobs[0].future.set_exception(LedgerError(f"the ledger refuses a row: {reason_of(error)}."))
                return
            except _TROUBLES as error:
                trouble = f"the ledger {self._store.name} cannot be written: {reason_of(error)}."
                if trouble != self.trouble:
                    logger.error("%s Rows wait in memory, and new requests are refused.", trouble)
                self.trouble, again = trouble, True
                self._store.close()  # a fresh connection for the next try
                if time.monotonic() > self._until:
                    self._left += jobs
                    return
                time.sleep(pause)
                pause = min(2 * pause, LAST_PAUSE)
            else:
                if self.trouble is not None:
                    logger.warning("the ledger %s is written again; nothing was lost.", self._store.name)
                    self.trouble = None
                return

    def _commit(self, jobs: list[Job], *, again: bool) -> None:
        results: list[Receipt | QwenchError] = []
        with self._store.writing() as connection:
            batch = Batch(connection, self._clock, again=again)
            for job in jobs:
                try:
                    results.append(job.run(batch))
                except QwenchError as error:
                    results.append(error)
            batch.close()
        self._anchor.write(batch.head)
        self.known = batch.tasks | (self.known if len(self.known) < MOST_WAITING else set())
        if batch.backwards > BACKWARDS:
            logger.warning(
                "the clock went back by %.0f seconds; rows of the ledger keep their order by number, and their times "
                "are what the clock said.",
                batch.backwards,
            )
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, QwenchError):
                job.future.set_exception(result)
            else:
                job.future.set_result(result)


def write_now(store: Store, anchor: Anchor, clock: Callable[[], float], run: Callable[[Batch], Any]) -> None:
    """One transaction without the thread: at the start, when nothing waits. Raises LedgerUnavailable."""
    try:
        with store.writing() as connection:
            batch = Batch(connection, clock)
            run(batch)
            batch.close()
        anchor.write(batch.head)
    except _TROUBLES as error:
        raise LedgerUnavailable(f"the ledger {store.name} cannot be written: {reason_of(error)}.") from None
