"""How sure the model was of what it wrote, from the raw log-probabilities of the drawn tokens. Pure.

A thought is as good as its weakest stretch: what counts is the lowest mean over any ``window`` tokens in a row.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence


class LowestWindow:
    """The lowest mean over ``window`` values in a row, value by value; the mean of all while there are fewer."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._values: deque[float] = deque()
        self._lowest = math.inf

    def push(self, value: float) -> None:
        self._values.append(value)
        if len(self._values) > self._window:
            self._values.popleft()
        if len(self._values) == self._window:
            self._lowest = min(self._lowest, math.fsum(self._values) / self._window)

    @property
    def full(self) -> bool:
        """Whether a whole window was seen: before that a low value may still be made up for."""
        return self._lowest < math.inf

    @property
    def value(self) -> float:
        """The lowest mean; minus infinity before the first value."""
        if self.full:
            return self._lowest
        return math.fsum(self._values) / len(self._values) if self._values else -math.inf


def floor_of(confidences: Sequence[float], keep: float) -> float:
    """The least confidence among the most confident ``keep`` (a share, rounded up) of the samples."""
    if not confidences:
        return -math.inf
    kept = max(1, math.ceil(keep * len(confidences)))
    return sorted(confidences, reverse=True)[kept - 1]
