"""The prefix cache: which beginnings of sequences are kept, where, and which of them goes when room is needed.

A recurrent state cannot be rolled back, so a snapshot is worth something at one position only: the slot of a state,
and a share of the pages before it. Plain integers; the runner copies what lies behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from qwench.cache.pool import Pool
from qwench.cache.tree import Node, Tree, pack


@dataclass(eq=False)
class Snapshot:
    """The first ``position`` tokens of some sequence: a share of ``pages``, and a state in ``slot`` if there is one.

    ``pins`` counts who would rather not lose it; ``node`` is None once it is gone. Until it is ``ready`` a step
    is still computing it.
    """

    position: int
    pages: list[int]
    slot: int | None
    background: bool
    used: float  # the cache's age when it was last of use
    node: Node[Snapshot] | None = None
    pins: int = 0
    ready: bool = True
    tier: Literal["live", "disk"] = "live"  # where it was when it was last needed


@dataclass(frozen=True)
class Found:
    """Of a sequence ``matched`` tokens are stored, and ``position`` of them need not be computed again.

    ``differs``: other tokens are stored behind those.
    """

    matched: int = 0
    differs: bool = False
    position: int = 0
    snapshot: Snapshot | None = None


@dataclass(frozen=True)
class PrefixPolicy:
    """At most ``limit`` snapshots. A state weighs as much as ``state_pages`` pages; 0: the model has no state.

    Snapshots stand at least ``near`` tokens apart.
    """

    limit: int = 0
    state_pages: float = 0.0
    near: int = 64


class PrefixCache:
    """Holds its own shares of pages and slots. Gives up first what costs little to compute again for what it weighs."""

    def __init__(self, pages: Pool, slots: Pool, *, page_size: int, policy: PrefixPolicy) -> None:
        self.pages = pages
        self.slots = slots
        self.page_size = page_size
        self.policy = policy
        self.evictions = 0
        self.moves = 0  # how often a snapshot came or went
        self._tree: Tree[Snapshot] = Tree()
        self._snapshots: dict[Snapshot, None] = {}  # in order of age
        self._age = 0.0  # what the last one that went was worth: whoever stays unused long enough is worth less

    def __len__(self) -> int:
        return len(self._snapshots)

    def __iter__(self) -> Iterator[Snapshot]:
        return iter(self._snapshots)

    def find(self, token_ids: Sequence[int], limit: int) -> Found:
        """The deepest use of what is stored for at most ``limit`` of the tokens."""
        matched, passed, below = self._tree.walk(pack(token_ids))
        differs = matched < below.end or bool(below.children)
        if not self.policy.state_pages:  # keys and values alone serve every position on their way
            snapshot = below.any_entry()
            position = min(matched, limit)
            return Found(matched, differs, position, snapshot) if snapshot and position else Found(matched, differs)
        for node in reversed(passed):
            if node.entry is not None and node.entry.ready and node.end <= limit:
                return Found(matched, differs, node.end, node.entry)
        return Found(matched, differs)

    def use(self, snapshot: Snapshot) -> None:
        """It was of use, and those before it on its way with it."""
        assert snapshot.node is not None
        snapshot.used = self._age
        for above in snapshot.node.entries_above():
            above.used = self._age

    def keep(
        self, token_ids: Sequence[int], pages: Sequence[int], *, background: bool, instead: Snapshot | None, must: bool
    ) -> tuple[Snapshot | None, bool]:
        """The snapshot of ``token_ids``, whose keys and values lie in ``pages``, and whether it is new: then the
        caller has its state copied into its slot. None where others are worth more than it; ``must`` overrules that,
        but not the pins of others. ``instead`` may go for it although its owner has pinned it.
        """
        if not self.policy.limit or not token_ids:
            return None, False
        node = self._tree.insert(pack(token_ids))
        if node.entry is not None:
            self.use(node.entry)
            return node.entry, False
        snapshot = Snapshot(len(token_ids), list(pages), None, background, self._age, node)
        node.entry = snapshot
        if not self._make_room(snapshot, instead, must=must):
            self._tree.remove(node)
            return None, False
        self.pages.share(snapshot.pages)
        if self.policy.state_pages:
            slot = self.slots.allocate(1)
            assert slot is not None, "running sequences hold slots that are meant for snapshots"
            snapshot.slot = slot[0]
        self._snapshots[snapshot] = None
        self.moves += 1
        return snapshot, True

    def take_pages(self, count: int, *, background: bool, pinned: bool) -> list[int] | None:
        """``count`` free pages for whoever runs, at the cost of snapshots; with ``pinned`` also of pinned ones."""
        while (pages := self.pages.allocate(count)) is None:
            victim = self._cheapest(lambda each: (pinned or not each.pins) and (each.background or not background))
            if victim is None:
                return None
            self._evict(victim)
        return pages

    def forget(self, token_ids: Sequence[int]) -> None:
        """Drop every snapshot on the way of these tokens: what they led to cannot be trusted."""
        _, passed, _ = self._tree.walk(pack(token_ids))
        for snapshot in [node.entry for node in passed if node.entry is not None]:
            self.drop(snapshot)

    def drop(self, snapshot: Snapshot) -> None:
        """Free what ``snapshot`` holds; whoever pinned it finds it gone."""
        assert snapshot.node is not None
        self._tree.remove(snapshot.node)
        snapshot.node = None
        del self._snapshots[snapshot]
        self.moves += 1
        self.pages.release(snapshot.pages)
        if snapshot.slot is not None:
            self.slots.release([snapshot.slot])

    def _make_room(self, new: Snapshot, instead: Snapshot | None, *, must: bool) -> bool:
        if len(self._snapshots) < self.policy.limit:
            return True

        def may_go(each: Snapshot) -> bool:
            return each.pins == (each is instead) and (each.background or not new.background)

        victim = self._cheapest(may_go)
        if victim is None:
            return False
        assert new.node is not None
        follows = victim is next(new.node.entries_above(), None)  # and saves more than it, in its place
        if not must and not follows and self._worth(victim) > self._worth(new):
            self._age = max(self._age, self._worth(new))
            return False
        self._evict(victim)
        return True

    def _cheapest(self, may_go: Callable[[Snapshot], bool]) -> Snapshot | None:
        return min(filter(may_go, self._snapshots), key=self._worth, default=None)

    def _evict(self, snapshot: Snapshot) -> None:
        self._age = max(self._age, self._worth(snapshot))
        self.evictions += 1
        self.drop(snapshot)

    def _worth(self, snapshot: Snapshot) -> float:
        """Tokens to compute again without it, for each page of memory it takes, from when it was last of use."""
        node = snapshot.node
        assert node is not None
        assert node.parent is not None
        is_leaf = not node.children
        own_pages = (node.end - node.parent.end) / self.page_size if is_leaf else 0.0
        if self.policy.state_pages or is_leaf:
            before = next((above.position for above in node.entries_above()), 0)
        else:
            before = node.end  # whatever follows it serves this position too
        return snapshot.used + (node.end - before) / (self.policy.state_pages + own_pages + 1)
