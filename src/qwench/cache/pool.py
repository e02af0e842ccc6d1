"""Pool: numbered things (pages of keys and values, slots of recurrent state) handed out with reference counts.

Plain Python; it does not know what lies behind a number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


class Pool:
    """``size`` numbers from 0; each is free or held by one or more owners."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = list(range(size - 1, -1, -1))  # a stack: the lowest numbers, and the latest freed, go out first
        self._owners = [0] * size

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.size - len(self._free)

    def allocate(self, count: int) -> list[int] | None:
        """``count`` numbers with one owner each, or None (and nothing changes) where fewer are free."""
        if count > len(self._free):
            return None
        taken = [self._free.pop() for _ in range(count)]
        for number in taken:
            self._owners[number] = 1
        return taken

    def share(self, numbers: Iterable[int]) -> None:
        """One more owner for each number."""
        for number in numbers:
            assert self._owners[number] > 0, f"{number} is free and cannot be shared"
            self._owners[number] += 1

    def release(self, numbers: Iterable[int]) -> None:
        """One owner less for each number; without owners it is free again."""
        for number in numbers:
            assert self._owners[number] > 0, f"{number} is released more often than it was taken"
            self._owners[number] -= 1
            if self._owners[number] == 0:
                self._free.append(number)

    def check(self, held: Iterable[int]) -> None:
        """Assert that ``held``, every owner's numbers in one list, is exactly what is handed out."""
        counted = Counter(held)
        for number, owners in enumerate(self._owners):
            assert counted[number] == owners, f"{number} has {owners} owners on the books and {counted[number]} in fact"
        assert sorted(self._free) == [n for n, owners in enumerate(self._owners) if owners == 0], "free list is wrong"
