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

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

from qwench.gateway.records import Attempt, Ending, Event, Outcome, Receipt, Task


@dataclass(frozen=True)
class Spending:
    """What a key spent. ``amounts``: by currency. ``unknown``: attempts whose cost nobody knows, not in the amounts."""

    amounts: dict[str, float]
    attempts: int
    unknown: int


@dataclass(frozen=True)
class Tally:
    """How one option fared in one class of tasks: what a router's posterior is made of.

    Tasks count whose most trusted outcome is ACCEPTED or REJECTED, under the option of their last generating attempt.
    ``cost``: the mean amount of a generating attempt, of those whose cost is known; None where none is.
    """

    name: str
    tier: str
    model: str
    thinking: str
    recipe: str
    accepted: int
    rejected: int
    attempts: int
    cost: float | None


class Running:
    """An attempt that has begun."""

    def end(self, ending: Ending) -> Future[Receipt]:
        """Append the attempt's row. Only the first call counts."""
        raise NotImplementedError


class Ledger:
    """One ledger, open for reading and writing; several processes may have it open."""

    @classmethod
    def open(cls, where: str, *, clock: Callable[[], float] = time.time) -> Ledger:
        """A path of a file, or an SQLAlchemy URL. A new ledger is made; another version's is migrated after a backup.

        Raises LedgerError naming the file: not a ledger, of a newer version, not readable, not writable.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Write what waits, then let go. Raises LedgerUnavailable naming what could not be written."""
        raise NotImplementedError

    @property
    def trouble(self) -> str | None:
        """Why nothing can be written at the moment, one sentence; None while all is well."""
        raise NotImplementedError

    @contextmanager
    def attempt(self, task: Task, attempt: Attempt) -> Iterator[Running]:
        """Begin an attempt at ``task`` (recorded with its first attempt). Raises LedgerUnavailable."""
        raise NotImplementedError

    def record(self, task: Task, attempt: Attempt, ending: Ending) -> Future[Receipt]:
        """An attempt that is over already: small spending of the router's own."""
        raise NotImplementedError

    def outcome(self, outcome: Outcome) -> Future[Receipt]:
        """Append what was found. The future fails with UsageError where the task is not in the ledger."""
        raise NotImplementedError

    def event(self, event: Event) -> Future[Receipt]:
        raise NotImplementedError

    def spent(self, *, key: str | None = None, since: float = 0.0) -> Spending:
        """What attempts that ended since then cost, of one key or of all. Reads the file: for starts, not each request."""
        raise NotImplementedError

    def tallies(self) -> list[Tally]:
        """How every option fared so far."""
        raise NotImplementedError

    def erase(self, *, before: float | None = None, task: str | None = None, key: str | None = None) -> int:
        """Delete kept contents, all conditions together; accounts stay, and the chain stays valid. How many texts."""
        raise NotImplementedError

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
