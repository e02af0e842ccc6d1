"""The shelf: carries snapshots from the engine's memory to the disk tier, and back when a request can use them.

Files are written and read on threads of their own, and pages are copied there too, so whoever generates waits for
neither. The pages that are being copied are the shelf's until it is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Protocol

from qwench.cache.disk import Coming, DiskTier, Entry, Loaded
from qwench.cache.prefix import Snapshot
from qwench.cache.tree import pack
from qwench.engine.request import Request, Status
from qwench.engine.scheduler import Scheduler

PATIENCE = 0.05  # seconds to wait for a file before asking whether anything else is to be done


class Carrier(Protocol):
    """What the runner does with bytes; with pages on any thread."""

    def page_bytes(self) -> int: ...

    def read_pages(self, pages: Sequence[int]) -> memoryview: ...

    def read_state(self, snapshot: Snapshot) -> memoryview: ...

    def write_pages(self, pages: Sequence[int], filled: int, runs: Sequence[tuple[int, memoryview]]) -> None: ...

    def write_state(self, snapshot: Snapshot, state: memoryview) -> None: ...


@dataclass
class Arrival:
    """What is stored of ``requests``: first it is ``loaded`` from its files, then the ``pages`` are ``filled``."""

    entry: Entry
    loaded: Future[Loaded | None]
    requests: list[Request]
    pages: list[int] = field(default_factory=list)
    filled: Future[None] | None = None

    @property
    def awaited(self) -> Future[Loaded | None] | Future[None]:
        return self.filled or self.loaded

    @property
    def waiting(self) -> Request | None:
        """One of those who still wait; rather not one in the background, whose snapshots give way."""
        waiting = [request for request in self.requests if request.status is Status.WAITING]
        return min(waiting, key=lambda request: request.background, default=None)


@dataclass(frozen=True)
class Shelf:
    disk: DiskTier
    scheduler: Scheduler
    runner: Carrier
    _helper: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "qwench-shelf"))
    _arriving: list[Arrival] = field(default_factory=list)
    _leaving: list[tuple[Sequence[int], Future[memoryview]]] = field(default_factory=list)

    def store(self, kept: Sequence[tuple[Snapshot, list[int]]]) -> None:
        """Have snapshots copied out and written, but for those that are there or near already."""
        for snapshot, token_ids in kept:
            entry = self.disk.plan(pack(token_ids), self.scheduler.cache.policy.near)
            if entry is not None and snapshot.node is not None:
                pages = snapshot.pages[entry.first_page :]
                self.scheduler.pages.share(pages)
                self.scheduler.hold(pages)
                copied = self._helper.submit(self.runner.read_pages, pages)
                self._leaving.append((pages, copied))
                coming = Coming(len(pages) * self.runner.page_bytes(), copied)
                self.disk.put(entry, coming, self.runner.read_state(snapshot))

    def recall(self) -> int:
        """Have what is stored of requests that may begin now read, and bring in what was; how many tokens more that is
        than memory held."""
        self._tidy()
        for request in self.scheduler.unsought():
            self._seek(request)
        return sum(self._bring(arrival) for arrival in [each for each in self._arriving if each.awaited.done()])

    def wait(self) -> bool:
        """Wait a moment for what is being copied; False if nothing is."""
        under_way: list[Future[Any]] = [
            *(each.awaited for each in self._arriving),
            *(copied for _, copied in self._leaving),
        ]
        wait(under_way, PATIENCE, FIRST_COMPLETED)
        return bool(under_way)

    def close(self) -> None:
        """Finish writing; what is being read is for nobody."""
        for arrival in self._arriving:
            arrival.awaited.cancel()
        self._helper.shutdown()
        self._tidy()
        for arrival in self._arriving:
            if arrival.pages:
                self.scheduler.give_back(arrival.pages)
        self._arriving.clear()
        self.disk.close()

    def _tidy(self) -> None:
        """Give back the pages that were copied out."""
        for pages, copied in [each for each in self._leaving if each[1].done()]:
            self._leaving.remove((pages, copied))
            self.scheduler.give_back(pages)

    def _seek(self, request: Request) -> None:
        request.sought = True
        limit, cache = self.scheduler.reusable(request), self.scheduler.cache
        known = request.identities()
        entry = self.disk.find(pack(known), limit)
        if entry is not None and entry.position - cache.find(known, limit).position >= cache.policy.near:
            request.arriving = True
            same = next((each for each in self._arriving if each.entry is entry), None)
            if same is not None:
                same.requests.append(request)
            else:
                self._arriving.append(Arrival(entry, self._helper.submit(self.disk.load, entry), [request]))

    def _bring(self, arrival: Arrival) -> int:
        """Go on with what has come; how many tokens more are kept now."""
        loaded, request = arrival.loaded.result(), arrival.waiting
        if loaded and request and not arrival.filled and self._reserve(request, arrival, loaded):
            return 0
        self._arriving.remove(arrival)
        for each in arrival.requests:
            each.arriving = False
        if loaded is None or arrival.filled is None:
            return 0
        try:
            arrival.filled.result()
            return self._adopt(request, arrival, loaded) if request else 0
        except ValueError as error:
            self.disk.lose(arrival.entry, str(error))
            return 0
        finally:
            self.scheduler.give_back(arrival.pages)

    def _reserve(self, request: Request, arrival: Arrival, loaded: Loaded) -> bool:
        """Begin to fill pages; False where there is no room for them, or no need any more."""
        scheduler, cache, position = self.scheduler, self.scheduler.cache, arrival.entry.position
        found = cache.find(request.identities(position), position)
        filled = found.position // scheduler.page_size
        needed = -(-position // scheduler.page_size) - filled
        if position - found.position < cache.policy.near or not scheduler.can_be_had(needed, found.snapshot):
            return False
        shared = found.snapshot.pages[:filled] if found.snapshot else []
        scheduler.pages.share(shared)  # they stay, whatever makes room
        own = cache.take_pages(needed, background=request.background, pinned=False)
        if own is None:
            scheduler.pages.release(shared)
            return False
        arrival.pages = shared + own
        scheduler.hold(arrival.pages)
        arrival.filled = self._helper.submit(self.runner.write_pages, arrival.pages, filled, loaded.runs)
        return True

    def _adopt(self, request: Request, arrival: Arrival, loaded: Loaded) -> int:
        """Keep what the pages hold now. Raises ValueError where the state is of another size."""
        position, cache = arrival.entry.position, self.scheduler.cache
        token_ids, background = request.identities(position), request.background
        gain = position - cache.find(token_ids, position).position
        if gain < cache.policy.near:
            return 0
        snapshot, new = cache.keep(token_ids, arrival.pages, background=background, instead=None, must=True)
        if snapshot is None or not new:
            return 0
        try:
            self.runner.write_state(snapshot, loaded.state)
        except ValueError:
            cache.drop(snapshot)
            raise
        snapshot.tier = "disk"
        for each in arrival.requests:
            each.expected = max(each.expected, position)
        return gain
