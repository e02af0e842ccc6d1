"""Whether a stream of token ids goes in circles: an exact period, or the same phrases again and again.

One token at a time, at a cost that does not grow with the length. Knows no model and no text.
"""

from __future__ import annotations

from collections import deque
from copy import copy

PHRASE = 8  # tokens; shorter ones recur in any text
LEAST = 96  # tokens that must equal those one period before; rules and tables repeat too, but not for so long
COPIES = 2  # that follow the first, whatever the period
WINDOW = 512  # tokens over which stale phrases are counted
STALE = 3  # times a phrase was there before; writing a draft out once more, or twice, is work
SHARE = 0.6  # of the window that is stale in a circle


class LoopDetector:
    """Push tokens; ``looping`` stays true once a loop was seen."""

    def __init__(self) -> None:
        self.looping = False
        self._tokens: list[int] = []
        self._seen: dict[int, tuple[int, int]] = {}  # a phrase's hash -> how often it was there, where it ended last
        self._period = 0
        self._matched = 0  # the latest tokens that equal those one period before
        self._stale: deque[bool] = deque(maxlen=WINDOW)
        self._num_stale = 0

    def __copy__(self) -> LoopDetector:
        other = LoopDetector()
        vars(other).update({name: copy(value) for name, value in vars(self).items()})
        return other

    def push(self, token: int) -> None:
        tokens, place = self._tokens, len(self._tokens)
        tokens.append(token)
        times, before = 0, place
        if place + 1 >= PHRASE:
            phrase = hash(tuple(tokens[-PHRASE:]))
            times, before = self._seen.get(phrase, (0, place))
            self._seen[phrase] = times + 1, place
        if self._period and token == tokens[place - self._period]:
            self._matched += 1
        else:  # where the phrase ended last is where a period would begin
            self._period = place - before
            self._matched = PHRASE if self._period else 0
        self._count(times >= STALE)
        repeats = self._matched >= max(LEAST, COPIES * self._period)
        circles = len(self._stale) == WINDOW and self._num_stale >= SHARE * WINDOW
        self.looping = self.looping or repeats or circles

    def _count(self, stale: bool) -> None:
        if len(self._stale) == WINDOW:
            self._num_stale -= self._stale[0]
        self._stale.append(stale)
        self._num_stale += stale
