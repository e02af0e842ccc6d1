"""How likely an option completes a task of a class: a Beta posterior over the outcomes in the ledger.

A class with few outcomes leans on what the option did in the others, as heavily as classes were seen to be alike.
Before that there is the operator's prior, and without any of it half is assumed with the least weight there is; who
chooses looks at ``seen`` first. Knows no price.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from qwench.gateway.ledger import Tally
from qwench.gateway.tiers import Option

Place = tuple[str, str]  # class and option
RECENT = 0.1  # the weight of one more answer in the running means
SIZES = tuple(2.0**power for power in range(-1, 8))  # outcomes that those of all other classes together may weigh as
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
        self._counts: dict[Place, tuple[int, int]] = {}
        self._costs: dict[Place, float] = {}
        self._means: dict[Place, Means] = defaultdict(Means)
        self.replace(tallies)

    def replace(self, tallies: Iterable[Tally]) -> None:
        """Believe these from now on; the running means stay."""
        self._counts, self._costs = {}, {}
        classes: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for each in tallies:
            place = (each.name, _name(each))
            self._counts[place] = each.accepted, each.rejected
            classes[place[1]].append(self._counts[place])
            if each.cost is not None:
                self._costs[place] = each.cost
        self._pools = {
            name: (sum(a for a, _ in seen), sum(r for _, r in seen), alike(seen)) for name, seen in classes.items()
        }

    def posterior(self, task: str, option: Option) -> Beta:
        accepted, rejected = self._counts.get((task, option.name), (0, 0))
        share, weight = (0.5, 1.0) if option.prior is None else (option.prior, option.weight)
        # No prior is so sure that outcomes could not change it, and none of them is impossible.
        share = min(max(share, 0.001), 0.999)
        a, b = share * weight + accepted, (1 - share) * weight + rejected
        right, wrong, heavy = self._pools.get(option.name, (0, 0, 0.0))
        others = right + wrong - accepted - rejected
        if others:
            heavy = min(heavy, float(others))
            a, b = a + heavy * (right - accepted) / others, b + heavy * (wrong - rejected) / others
        return Beta(a, b, accepted + rejected)

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


def alike(seen: Iterable[tuple[int, int]]) -> float:
    """How many outcomes in a class those in all others are worth: the size of the Beta distribution that the classes'
    shares were drawn from, by what was seen (accepted, rejected) in each.

    Each of ``SIZES`` is believed as far as it makes that likely (beta-binomial), and their geometric mean is taken: few
    classes tell little, and the likeliest size alone would often be the smallest or the largest.
    """
    counts = [(right, wrong) for right, wrong in seen if right + wrong]
    if len(counts) < 3:
        return SIZES[0]
    right, wrong = (sum(column) + 0.5 for column in zip(*counts, strict=True))
    share = right / (right + wrong)
    told = [sum(_told(each, share * size, (1 - share) * size) for each in counts) for size in SIZES]
    belief = [math.exp(each - max(told)) for each in told]
    return math.exp(math.fsum(b * math.log(size) for b, size in zip(belief, SIZES, strict=True)) / math.fsum(belief))


def _told(seen: tuple[int, int], a: float, b: float) -> float:
    """The logarithm of how likely these outcomes are under a Beta distribution, up to what no distribution changes."""
    return _log_beta(a + seen[0], b + seen[1]) - _log_beta(a, b)


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
