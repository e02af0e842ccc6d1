"""Turns: who reads its prompt next, and how much of it one step may read. Knows no clock: it is told what steps took.

Every stream gets its token in every step. What is open is how many prompt tokens go with it, since all of them wait
until the step is over. So a step may last ``STRETCH`` times as long as the streams' tokens alone, and what that leaves
is spent on prompts: on the API key that had least, then on the shortest prompt, and every fourth token on the oldest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from math import ceil
from statistics import median

from qwench.engine.request import Request

STRETCH = 2.6  # a step with prompt tokens against one without: below the 3 we promise, for what an estimate is off by
IDLE_STRETCH = 1.5  # the same where only background prompts are read
PATIENCE = 1.0  # seconds of a step where nobody waits for a token: so long it takes to notice that a client left
ALONE = (
    32  # prompt tokens that a weight meets in such a step, whatever they take: with fewer, reading it costs too much
)
LEAST = 8  # prompt tokens of a step, whatever they cost: nobody waits for ever
RECHECK = 64  # so many steps with prompt tokens, then one without, which shows again what is usual
KEPT = 5  # steps that the usual is the median of
SWIFTNESS = 0.2  # the weight of the newest step in the cost of a prompt token
ELDER_SHARE = 1 / 3  # tokens that the oldest prompt of a key is owed for every token the others read


class Pace:
    """What steps take, from those that were: of streams alone, of a prompt token at a depth, of a whole answer."""

    def __init__(self) -> None:
        self.seconds_per_answer = 0.0  # of the engine's work, between the ends of two answers
        self.patience = PATIENCE
        self._usual: dict[int, deque[float]] = {}  # seconds of steps without prompts, by the magnitude of streams
        self._unchecked = 0  # steps since the last of those
        self._each: dict[tuple[bool, int], float] = {}  # seconds per prompt token: among streams or not, by depth
        self._worked = 0.0  # seconds since an answer ended

    def took(self, seconds: float, streams: int, reads: Iterable[tuple[int, int]]) -> None:
        """A step with ``streams`` single tokens took so long; ``reads``: how many prompt tokens, after how many."""
        self._worked += seconds
        counts = list(reads)
        tokens = sum(count for count, _ in counts)
        if not tokens:
            self._usual.setdefault(streams.bit_length(), deque(maxlen=KEPT)).append(seconds)
            self._unchecked = 0
            return
        self._unchecked += 1
        spent = max(seconds - (self.usual(streams) or 0.0), seconds / 10)  # a step may be short by chance
        guesses = [self.each(streams, depth) or spent / tokens for _, depth in counts]
        off = spent / sum(count * guess for (count, _), guess in zip(counts, guesses, strict=True))
        for (_, depth), guess in zip(counts, guesses, strict=True):
            self._each[streams > 0, _magnitude(depth)] = guess + SWIFTNESS * guess * (min(off, 2) - 1)

    def ended(self) -> None:
        """An answer is over."""
        self.seconds_per_answer += SWIFTNESS * (self._worked - self.seconds_per_answer)
        self._worked = 0.0

    def usual(self, streams: int) -> float | None:
        """Seconds of a step of ``streams`` tokens alone; None where that is not known, or not known well any more."""
        if not streams:
            return 0.0
        steps = self._usual.get(streams.bit_length())
        return median(steps) if steps else None

    def time(self, streams: int, stretch: float) -> float:
        """Seconds that a step may spend on prompts. None at all where it is to show what is usual."""
        if not streams:
            return self.patience
        usual = self.usual(streams)
        return 0.0 if usual is None or self._unchecked >= RECHECK else (stretch - 1) * usual

    def each(self, streams: int, depth: int) -> float | None:
        """Seconds per prompt token after ``depth`` others; None where nothing like it was seen."""
        place = _magnitude(depth)
        known = [at for among, at in self._each if among == (streams > 0)]
        if not known:
            return None
        nearest = max((at for at in known if at <= place), default=min(known))
        # What a token costs grows by no more than its depth does, so this errs on the side of the streams.
        return self._each[streams > 0, nearest] * float(2 ** max(0, place - nearest))


class Turns:
    """Shares out the reading of each step: ``begin``, then for each ``next`` what it ``may_read`` and has ``read``."""

    def __init__(self, sparsity: float = 1.0) -> None:
        """``sparsity``: so many tokens are computed for each that an expert meets; 1 without experts."""
        self.pace = Pace()
        self._least_alone = ceil(ALONE * sparsity)
        self._served: dict[str, int] = {}  # prompt tokens read for each owner; who was away does not catch up
        self._present: set[str] = set()  # owners with something to read
        self._level = 0  # what the least served of them had
        self._owed: dict[str, float] = {}  # tokens that each owner's oldest prompt should have been read by now
        self._left = 0.0  # seconds of this step
        self._streams = 0
        self._shared = False  # somebody reads in this step already

    def begin(self, streams: int, readers: Collection[Request]) -> None:
        """A step with the tokens of ``streams`` begins, and ``readers`` have prompts to read."""
        self._streams, self._shared = streams, False
        idle = all(request.background for request in readers)
        self._left = self.pace.time(streams, IDLE_STRETCH if idle else STRETCH)
        present = {request.owner for request in readers}
        self._level = min((self._served[owner] for owner in present & self._present), default=self._level)
        for owner in present - self._present:
            self._served[owner] = max(self._served.get(owner, 0), self._level)
        self._present = present

    def next(self, readers: Collection[Request]) -> Request | None:
        """Whose turn it is; None when the step's time is spent, or nobody has anything to read."""
        return self.first(readers) if self._left > 0 and readers else None

    def first(self, readers: Collection[Request]) -> Request:
        """Who of ``readers`` goes first, whether or not the step has time for it."""
        owner = min(readers, key=lambda each: (self._served.get(each.owner, self._level), each.arrival)).owner
        own = [each for each in readers if each.owner == owner]
        if self._owed.get(owner, 0) > 0:
            return min(own, key=lambda each: each.arrival)
        return min(own, key=lambda each: (each.background, not each.num_generated, each.unread, each.arrival))

    def may_read(self, request: Request, most: int) -> int:
        """How many tokens of its prompt, at most ``most``, the step has time for; a few for whoever is first."""
        each = self.pace.each(self._streams, request.computed)
        if each is None:  # a guess, unless nobody waits
            return min(most, 2 * LEAST) if self._streams else most
        least = 0 if self._shared else LEAST if self._streams else self._least_alone
        return min(most, max(least, int(min(most, self._left / each))))

    def read(self, request: Request, count: int, readers: Collection[Request]) -> None:
        """``request``, one of ``readers``, reads ``count`` tokens in this step."""
        each = self.pace.each(self._streams, request.computed)
        self._left -= self._left if each is None else count * each
        self._shared = True
        self._served[request.owner] += count
        own = [other for other in readers if other.owner == request.owner]
        owed = self._owed.get(request.owner, 0.0)
        if len(own) == 1:
            owed = 0.0
        elif request is not min(own, key=lambda each: each.arrival):
            owed += ELDER_SHARE * count
        elif owed > 0:
            owed -= count
        self._owed[request.owner] = owed


def _magnitude(depth: int) -> int:
    """Depths below 1,024 are one magnitude, then every doubling."""
    return (depth >> 10).bit_length()
