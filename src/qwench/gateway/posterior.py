"""How likely an option completes a task of a class: a Beta posterior over the outcomes in the ledger.

A class with few outcomes leans on what the option did in the others, as heavily as classes were seen to be alike.
Before that there is the operator's prior, and without any of it half is assumed with the least weight there is; who
chooses looks at ``seen`` first. Knows no price.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from qwench.gateway.ledger import Tally
from qwench.gateway.tiers import Option

Place = tuple[str, str]  # class and option
Counts = Sequence[tuple[int, int]]  # accepted and rejected, of each class
Source = tuple[float, float, float]  # a Beta distribution that shares may be drawn from: belief in it, mean, size
RECENT = 0.1  # the weight of one more answer in the running means
SIZES = tuple(2.0**power for power in range(-1, 8))  # outcomes that those of all other classes together may weigh as
MEANS = tuple((place + 0.5) / 24 for place in range(24))
FEWEST = 3  # classes with outcomes, of any option, that tell how alike classes are
NEGLIGIBLE = 1e-3  # belief that is left out
STEPS = 60  # halvings of [0, 1]: more than a double holds


@dataclass(frozen=True)
class Beta:
    """A share whose density is x^(a-1) (1-x)^(b-1). ``seen``: outcomes behind it, priors not counted."""

    a: float
    b: float
    seen: int

    @property
    def mean(self) -> float:
        return self.a / (self.a + self.b)

    @property
    def variance(self) -> float:
        return self.mean * (1 - self.mean) / (self.a + self.b + 1)

    def quantile(self, share: float) -> float:
        """Where so much of the probability lies below."""
        low, high = 0.0, 1.0
        for _ in range(STEPS):
            middle = (low + high) / 2
            if _below(middle, self.a, self.b) < share:
                low = middle
            else:
                high = middle
        return (low + high) / 2


@dataclass
class Means:
    """Running means of what answers took; None before the first."""

    output: float | None = None
    seconds: float | None = None

    def add(self, output: float | None, seconds: float) -> None:
        if output is not None:
            self.output = output if self.output is None else self.output + RECENT * (output - self.output)
        self.seconds = seconds if self.seconds is None else self.seconds + RECENT * (seconds - self.seconds)


class Outcomes:
    """What the ledger says of every option in every class, and what this process saw of their sizes and times."""

    def __init__(self, tallies: Iterable[Tally] = ()) -> None:
        self._counts: Mapping[Place, tuple[int, int]]
        self._costs: Mapping[Place, float]
        self._sources: Mapping[str, Sequence[Source]]
        self._known: dict[tuple[str, str], Beta]  # posteriors that were asked for
        self._means: dict[Place, Means] = defaultdict(Means)
        self.replace(tallies)

    def replace(self, tallies: Iterable[Tally]) -> None:
        """Believe these from now on; the running means stay."""
        counts: dict[Place, tuple[int, int]] = {}
        costs: dict[Place, float] = {}
        for each in tallies:
            place = (each.name, _name(each))
            counts[place] = each.accepted, each.rejected
            if each.cost is not None:
                costs[place] = each.cost
        options: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
        for (task, option), seen in counts.items():
            if sum(seen):
                options[option][task] = seen
        enough = len({task for task, _ in counts if sum(counts[task, _])}) >= FEWEST
        sources = leanings({name: tuple(seen.values()) for name, seen in options.items()}) if enough else {}
        # All at once, since requests are decided meanwhile.
        self._counts, self._costs, self._sources, self._known = counts, costs, sources, {}

    def posterior(self, task: str, option: Option) -> Beta:
        """What is known of the option in the class."""
        known = self._known
        if (task, option.name) not in known:
            known[task, option.name] = self._posterior(task, option)
        return known[task, option.name]

    def _posterior(self, task: str, option: Option) -> Beta:
        accepted, rejected = self._counts.get((task, option.name), (0, 0))
        seen, sources = accepted + rejected, self._sources.get(option.name, ())
        a, b = float(accepted), float(rejected)
        if option.prior is not None or not sources:
            share, weight = (0.5, 1.0) if option.prior is None else (option.prior, option.weight)
            # No prior is so sure that outcomes could not change it, and none of them is impossible.
            share = min(max(share, 0.001), 0.999)
            a, b = a + share * weight, b + (1 - share) * weight
        leaning = [(belief, Beta(a + mean * size, b + (1 - mean) * size, seen)) for belief, mean, size in sources]
        return mixed(leaning) if leaning else Beta(a, b, seen)

    def note(self, task: str, option: Option, output: float | None, seconds: float) -> None:
        """An answer came: so many tokens, so many seconds."""
        for place in ((task, option.name), ("", option.name)):
            self._means[place].add(output, seconds)

    def output(self, task: str, option: Option) -> float | None:
        """Tokens of an answer: as seen in the class, as seen anywhere, as the operator expects."""
        seen = (self._means[place].output for place in ((task, option.name), ("", option.name)) if place in self._means)
        return next((value for value in seen if value is not None), option.output)

    def seconds(self, task: str, option: Option) -> float | None:
        seen = (
            self._means[place].seconds for place in ((task, option.name), ("", option.name)) if place in self._means
        )
        return next((value for value in seen if value is not None), option.seconds)

    def cost(self, task: str, option: Option) -> float | None:
        """The mean cost of an attempt by the ledger."""
        return self._costs.get((task, option.name))


def mixed(parts: Sequence[tuple[float, Beta]]) -> Beta:
    """One distribution with the mean and the variance of several, each of which holds with a probability."""
    mean = math.fsum(share * each.mean for share, each in parts)
    spread = math.fsum(share * (each.variance + (each.mean - mean) ** 2) for share, each in parts)
    size = max(mean * (1 - mean) / spread - 1, 1e-6) if spread > 0 else 1e12
    return Beta(mean * size, (1 - mean) * size, round(math.fsum(share * each.seen for share, each in parts)))


def leanings(options: Mapping[str, Counts]) -> dict[str, list[Source]]:
    """What each option's shares in its classes may have been drawn from.

    A Beta distribution of one of ``SIZES`` around one of ``MEANS``, believed as far as it makes what was seen likely
    (beta-binomial). The mean is the option's own; the size, which says how alike classes are, is taken to be the same
    for all options, because the classes of one tell little.
    """
    told = {name: _told(tuple(sorted(counts))) for name, counts in options.items()}
    sizes = _shares([math.fsum(_sum_log(rows[place]) for rows in told.values()) for place in range(len(SIZES))])
    found: dict[str, list[Source]] = {}
    for name, rows in told.items():
        sources = [
            (belief * share, mean, size)
            for belief, size, row in zip(sizes, SIZES, rows, strict=True)
            if belief > NEGLIGIBLE
            for share, mean in zip(_shares(row), MEANS, strict=True)
            if share > NEGLIGIBLE
        ]
        total = math.fsum(belief for belief, _, _ in sources)
        found[name] = [(belief / total, mean, size) for belief, mean, size in sources]
    return found


@lru_cache(maxsize=256)
def _told(counts: tuple[tuple[int, int], ...]) -> list[list[float]]:
    """For each size and mean how likely the counts are. Between two readings of the ledger few options' change."""
    return [[_likely(counts, mean * size, (1 - mean) * size) for mean in MEANS] for size in SIZES]


def _sum_log(logs: Sequence[float]) -> float:
    """The logarithm of the sum."""
    top = max(logs)
    return top + math.log(math.fsum(math.exp(each - top) for each in logs))


def _shares(logs: Sequence[float]) -> list[float]:
    total = _sum_log(logs)
    return [math.exp(each - total) for each in logs]


def _likely(counts: Counts, a: float, b: float) -> float:
    """The logarithm of how likely these outcomes are if the shares are drawn from a Beta distribution, up to what no
    distribution changes."""
    told = math.fsum(_log_beta(a + right, b + wrong) for right, wrong in counts)
    return told - len(counts) * _log_beta(a, b)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _name(tally: Tally) -> str:
    """The option's name, of which the ledger keeps the parts."""
    mode = tally.thinking.removeprefix("budget ")
    return f"{tally.tier}/{tally.model}" + (f":{mode}" if mode else "") + (f"+{tally.recipe}" if tally.recipe else "")


def _below(x: float, a: float, b: float) -> float:
    """The share of a Beta distribution below ``x``: the regularised incomplete beta function, by its continued fraction
    (modified Lentz), which converges fast on the near side of the mean; from the other side it is mirrored."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _below(1 - x, b, a)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) - _log_beta(a, b))
    tiny = 1e-300
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > tiny else tiny)
    total = d
    for m in range(1, 300):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + numerator * d
            c = 1 + numerator / c
            d = 1 / (d if abs(d) > tiny else tiny)
            c = c if abs(c) > tiny else tiny
            total *= d * c
        if abs(d * c - 1) < 1e-12:
            break
    return front * total / a
