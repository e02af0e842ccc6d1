"""The shelf: carries snapshots from the engine's memory to the disk tier, and back when a request can use them.

Files are written and read on threads of their own, so whoever generates does not wait for a disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Protocol

from qwench.cache.disk import DiskTier, Entry, Loaded
from qwench.cache.prefix import Snapshot
from qwench.cache.tree import pack
from qwench.engine.request import Request, Status
from qwench.engine.scheduler import Scheduler

PATIENCE = 0.05  # seconds to wait for a file before asking whether anything else is to be done


class Carrier(Protocol):
    """What the runner does with bytes."""

    def read(self, snapshot: Snapshot, first_page: int) -> tuple[memoryview, memoryview]: ...

    def write(
        self, snapshot: Snapshot, filled: int, runs: Sequence[tuple[int, memoryview]], state: memoryview
    ) -> None: ...


@dataclass(frozen=True)
class Shelf:
    disk: DiskTier
    scheduler: Scheduler
    runner: Carrier
    _reader: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "qwench-recall"))
    _arriving: dict[Request, tuple[Entry, Future[Loaded | None]]] = field(default_factory=dict)

    def store(self, kept: Sequence[tuple[Snapshot, list[int]]]) -> None:
        """Copy snapshots out and have them written, but for those that are there or near already."""
        for snapshot, token_ids in kept:
            entry = self.disk.plan(pack(token_ids), self.scheduler.cache.policy.near)
            if entry is not None and snapshot.node is not None:
                self.disk.put(entry, *self.runner.read(snapshot, entry.first_page))

    def recall(self) -> int:
        """Have what is stored of requests that may begin now read, and bring in what was; how many tokens more that is
        than memory held."""
        for request in self.scheduler.unsought():
            self._seek(request)
        done = [request for request, (_, loaded) in self._arriving.items() if loaded.done()]
        return sum(self._bring(request) for request in done)

    def wait(self) -> bool:
        """Wait a moment for what is being read; False if nothing is."""
        wait([loaded for _, loaded in self._arriving.values()], PATIENCE, FIRST_COMPLETED)
        return bool(self._arriving)

    def close(self) -> None:
        """Finish writing; what is being read is for nobody."""
        self._reader.shutdown(cancel_futures=True)
        self.disk.close()

    def _seek(self, request: Request) -> None:
        request.sought = True
        limit, cache = self.scheduler.reusable(request), self.scheduler.cache
        known = request.identities()
        entry = self.disk.find(pack(known), limit)
        if entry is not None and entry.position - cache.find(known, limit).position >= cache.policy.near:
            request.arriving = True
            self._arriving[request] = entry, self._reader.submit(self.disk.load, entry)

    def _bring(self, request: Request) -> int:
        entry, future = self._arriving.pop(request)
        request.arriving, loaded = False, future.result()
        if loaded is None or request.status is not Status.WAITING:
            return 0
        cache = self.scheduler.cache
        gain = entry.position - cache.find(request.identities(), entry.position).position
        adopted = self.scheduler.adopt(request, entry.position) if gain >= cache.policy.near else None
        if adopted is None:
            return 0
        snapshot, filled = adopted
        try:
            self.runner.write(snapshot, filled, loaded.runs, loaded.state)
        except ValueError as error:
            cache.drop(snapshot)
            self.disk.lose(entry, str(error))
            return 0
        snapshot.tier = "disk"
        request.expected = entry.position
        return gain
