"""The shelf: carries snapshots from the engine's memory to the disk tier, and back when a request can use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from qwench.cache.disk import DiskTier
from qwench.cache.prefix import Snapshot
from qwench.cache.tree import pack
from qwench.engine.request import Request
from qwench.engine.scheduler import Scheduler


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

    def store(self, kept: Sequence[tuple[Snapshot, list[int]]]) -> None:
        """Copy snapshots out and have them written, but for those that are there or near already."""
        for snapshot, token_ids in kept:
            entry = self.disk.plan(pack(token_ids), self.scheduler.cache.policy.near)
            if entry is not None and snapshot.node is not None:
                self.disk.put(entry, *self.runner.read(snapshot, entry.first_page))

    def recall(self) -> int:
        """Bring in what is stored of requests that may begin now; how many tokens more that is than memory held."""
        return sum(self._recall(request) for request in self.scheduler.unsought())

    def _recall(self, request: Request) -> int:
        request.sought = True
        limit, cache = self.scheduler.reusable(request), self.scheduler.cache
        known = request.identities()
        entry = self.disk.find(pack(known), limit)
        if entry is None:
            return 0
        gain = entry.position - cache.find(known, limit).position
        if gain < cache.policy.near or (loaded := self.disk.load(entry)) is None:
            return 0
        adopted = self.scheduler.adopt(request, entry.position)
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
