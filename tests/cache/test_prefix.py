"""What is kept and what goes: worth for its memory, age, pins, and background requests that cost nobody anything."""

from __future__ import annotations

from qwench.cache.pool import Pool
from qwench.cache.prefix import PrefixCache, PrefixPolicy, Snapshot

PAGE = 4


class Kept:
    """A cache whose sequences are short to write."""

    def __init__(self, limit: int, *, num_pages: int = 100, state_pages: float = 1.0) -> None:
        self.pages, self.slots = Pool(num_pages), Pool(limit)
        policy = PrefixPolicy(limit, state_pages)
        self.cache = PrefixCache(self.pages, self.slots, page_size=PAGE, policy=policy)

    def keep(
        self, ids: list[int], *, background: bool = False, instead: Snapshot | None = None, must: bool = False
    ) -> Snapshot | None:
        """As a request does that computed ``ids`` and is over."""
        found = self.cache.find(ids, len(ids))
        shared = found.snapshot.pages[: found.position // PAGE] if found.snapshot else []
        own = self.pages.allocate(-(-len(ids) // PAGE) - len(shared))
        assert own is not None
        self.pages.share(shared)
        snapshot, _ = self.cache.keep(ids, shared + own, background=background, instead=instead, must=must)
        self.pages.release(shared + own)
        self.check()
        return snapshot

    def check(self) -> None:
        self.pages.check(page for snapshot in self.cache for page in snapshot.pages)
        self.slots.check(snapshot.slot for snapshot in self.cache if snapshot.slot is not None)

    def positions(self) -> list[int]:
        return sorted(snapshot.position for snapshot in self.cache)


def test_the_deepest_snapshot_within_the_limit_is_found() -> None:
    kept = Kept(5)
    ids = list(range(30))
    for length in (10, 20, 30):
        kept.keep(ids[:length])
    assert [kept.cache.find([*ids, 7], limit).position for limit in (31, 30, 29, 19, 9)] == [30, 30, 20, 10, 0]
    assert kept.cache.find([*ids[:25], 99, 99], 26).matched == 25


def test_without_a_state_every_position_can_be_used() -> None:
    kept = Kept(5, state_pages=0.0)
    ids = list(range(30))
    kept.keep(ids)
    found = kept.cache.find([*ids[:17], 99], 17)
    assert (found.position, found.matched) == (17, 17)
    assert kept.slots.num_used == 0


def test_what_saves_least_for_its_memory_goes_first() -> None:
    kept = Kept(3, num_pages=200)
    ids = list(range(200))
    for length in (100, 104, 180):
        kept.keep(ids[:length])
    kept.keep([7] * 60)
    assert kept.positions() == [60, 100, 180]


def test_one_of_less_worth_is_not_kept_unless_it_must_be() -> None:
    kept = Kept(1)
    kept.keep(list(range(100)))
    assert kept.keep([9] * 5) is None
    assert kept.positions() == [100]
    assert kept.keep([9] * 6, must=True) is not None
    assert kept.positions() == [6]


def test_what_is_not_used_grows_old() -> None:
    kept = Kept(2, num_pages=200)
    kept.keep(list(range(100)))
    used = list(range(500, 600))
    kept.keep(used)
    for round_ in range(1, 100):
        kept.keep([round_] * 90)
        kept.cache.find(used, 100)
        snapshot = kept.cache.find(used, 100).snapshot
        assert snapshot is not None
        kept.cache.use(snapshot)
    assert kept.cache.find(list(range(100)), 100).position == 0


def test_pinned_ones_stay_but_for_their_own_successor() -> None:
    kept = Kept(1, num_pages=200)
    first = kept.keep(list(range(50)))
    assert first is not None
    first.pins = 1
    assert kept.keep(list(range(500, 900)), must=True) is None
    assert kept.keep(list(range(60)), instead=first) is not None
    assert kept.positions() == [60]
    assert first.node is None


def test_background_costs_a_session_nothing() -> None:
    kept = Kept(2, num_pages=40)
    kept.keep(list(range(50)))
    kept.keep(list(range(100, 120)), background=True)
    assert kept.keep([3] * 60, background=True) is not None
    assert kept.positions() == [50, 60]
    assert kept.cache.take_pages(30, background=True, pinned=False) is None
    assert kept.positions() == [50]
    assert kept.cache.take_pages(30, background=False, pinned=False) is not None
    assert kept.positions() == []


def test_pages_come_from_snapshots_but_not_from_pinned_ones() -> None:
    kept = Kept(4, num_pages=30)
    first, _ = kept.keep(list(range(40))), kept.keep(list(range(100, 140)))
    assert first is not None
    first.pins = 1
    assert kept.cache.take_pages(25, background=False, pinned=False) is None
    assert kept.positions() == [40]
    assert kept.cache.take_pages(25, background=False, pinned=True) is not None


def test_what_led_to_nonsense_is_forgotten() -> None:
    kept = Kept(4)
    for length in (20, 40):
        kept.keep(list(range(length)))
    kept.keep([5] * 30)
    kept.cache.forget(list(range(70)))
    assert kept.positions() == [30]
    kept.check()
