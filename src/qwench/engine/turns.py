"""Turns: who reads its prompt next, and how much of it one step may read. Knows no clock: it is told what steps took.

Every stream gets its token in every step. What is open is how many prompt tokens go with it, since all of them wait
until the step is over. So a step may last ``STRETCH`` times as long as the streams' tokens alone, less what steps were
lately longer than expected, and what that leaves is spent on prompts: on the API key that had least, then on the
shortest prompt, and every fourth token on the oldest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from math import ceil, inf
from statistics import median

from qwench.engine.request import Request

STRETCH = 2.85  # a step with prompt tokens against one without: below the 3 we promise, for what the usual is off by
UNTRIED = 1.12  # by how much steps are taken to be longer than expected, until that is known
LEAST_OFF, MOST_OFF = 1.03, 1.25
TRIED = 32  # so many steps tell how far expectations are off
IDLE_STRETCH = 1.5  # the same where only background prompts are read
PATIENCE = 1.0  # seconds of a step where nobody waits for a token: so long it takes to notice that a client left
ALONE = 32  # prompt tokens that a weight meets in such a step, whatever they take: fewer are not worth reading it
LEAST = 4  # prompt tokens of a step, whatever they cost: nobody waits for ever
RECHECK = 24  # so many steps with prompt tokens, then one without, which shows again what is usual
RECHECK_SOON, CHANGED = 4, 0.15  # earlier where steps take so much less than expected, or the usual changed so much
TILE = 16  # rows that kernels compute together: the first of the next tile costs as much as several
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
        # Seconds per prompt token: among streams or not, by depth, by the step's tiles.
        self._each: dict[tuple[bool, int, int], float] = {}
        self._most = 2 * LEAST  # tokens that a step among streams may read: it grows by halves
        self._off: deque[float] = deque(maxlen=TRIED)  # what steps took of what was expected
        self._worked = 0.0  # seconds since an answer ended

    def took(self, seconds: float, streams: int, reads: Iterable[tuple[int, int]]) -> None:
        """A step with ``streams`` single tokens took so long; ``reads``: how many prompt tokens, after how many."""
        self._worked += seconds
        counts = list(reads)
        tokens = sum(count for count, _ in counts)
        if not tokens:
            usual = self.usual(streams) or seconds
            self._usual.setdefault(streams.bit_length(), deque(maxlen=KEPT)).append(seconds)
            self._unchecked = 0 if abs(seconds - usual) <= CHANGED * usual else RECHECK - RECHECK_SOON
            return
        self._unchecked += 1
        if streams:
            self._most = max(2 * LEAST, 3 * tokens // 2)
        spent = max(seconds - (self.usual(streams) or 0.0), seconds / 10)  # a step may be short by chance
        tile = _tile(streams, tokens)
        known = [self.each(streams, depth, tile) for _, depth in counts]
        guesses = [guess or spent / tokens for guess in known]
        expected = sum(count * guess for (count, _), guess in zip(counts, guesses, strict=True))
        if streams and all((True, _magnitude(depth), tile) in self._each for _, depth in counts):
            self._off.append(seconds / (expected + (self.usual(streams) or 0.0)))
            self._unchecked += RECHECK // 2 if self._off[-1] < 1 - CHANGED else 0
        off = min(spent / expected, 2)
        learnt = SWIFTNESS if off > 1 - CHANGED else 1 / 2
        for (_, depth), guess in zip(counts, guesses, strict=True):
            self._each[streams > 0, _magnitude(depth), tile] = guess + learnt * guess * (off - 1)

    def ended(self) -> None:
        """An answer is over."""
        self.seconds_per_answer += SWIFTNESS * (self._worked - self.seconds_per_answer)
        self._worked = 0.0

    def most(self, streams: int) -> float:
        """Prompt tokens of a step, whatever time it has: what was learnt from few may be wrong for many."""
        return self._most if streams else inf

    def usual(self, streams: int) -> float | None:
        """Seconds of a step of ``streams`` tokens alone; None where that is not known, or not known well any more."""
        if not streams:
            return 0.0
        steps = list(self._usual.get(streams.bit_length(), ()))
        return min(median(steps), median(steps[-3:])) if steps else None

    def time(self, streams: int, stretch: float) -> float:
        """Seconds that a step may spend on prompts. None at all where it is to show what is usual."""
        if not streams:
            return self.patience
        usual = self.usual(streams)
        return 0.0 if usual is None or self._unchecked >= RECHECK else max(0.0, stretch / self.off - 1) * usual

    @property
    def off(self) -> float:
        """Nearly all steps among streams took less than so many times what was expected of them."""
        if len(self._off) < TRIED // 4:
            return UNTRIED
        return min(max(sorted(self._off)[-2], LEAST_OFF), MOST_OFF)

    def each(self, streams: int, depth: int, tile: int) -> float | None:
        """Seconds per prompt token after ``depth`` others, in a step of so many tiles; None where nothing like it was
        seen."""
        place = _magnitude(depth)
        known = [(at, full) for among, at, full in self._each if among == (streams > 0)]
        if not known:
            return None
        nearest = max((at for at, _ in known if at <= place), default=min(known)[0])
        like = min((full for at, full in known if at == nearest), key=lambda full: (abs(full - tile), full))
        # What a token costs grows by no more than its depth does, so this errs on the side of the streams.
        return self._each[streams > 0, nearest, like] * float(2 ** max(0, place - nearest))

    def fitting(self, streams: int, depth: int, seconds: float, most: int) -> int | None:
        """How many prompt tokens, at most ``most``, fit into ``seconds``; None where that is not known at all."""
        found: int | None = None
        for tile in range(_tile(streams, 1), _tile(streams, most) + 1):
            each = self.each(streams, depth, tile)
            if each is None:
                return None
            count = int(min(most, seconds / each, TILE * (tile + 1) - streams if streams else inf))
            found = max(found or 0, count if _tile(streams, count) >= tile or not streams else 0)
        return found


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
        most = int(min(most, self.pace.most(self._streams)))
        fitting = self.pace.fitting(self._streams, request.computed, self._left, most)
        if fitting is None:  # a guess, unless nobody waits
            return min(most, 2 * LEAST) if self._streams else most
        least = 0 if self._shared else LEAST if self._streams else self._least_alone
        return min(most, max(least, fitting))

    def read(self, request: Request, count: int, readers: Collection[Request]) -> None:
        """``request``, one of ``readers``, reads ``count`` tokens in this step."""
        each = self.pace.each(self._streams, request.computed, _tile(self._streams, count))
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


def _tile(streams: int, count: int) -> int:
    """Which tile the last of a step's rows is in; where nobody waits it does not matter."""
    return (streams + count - 1) // TILE if streams else 0
