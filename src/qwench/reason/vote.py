"""Votes: who leads, and how surely the leader of some votes would lead after all of them. Pure arithmetic.

The model of what is still to come is Pólya's urn: shares of opinions drawn from a Dirichlet distribution, uniform
beforehand over the opinions seen and one for all those not seen yet. Under it the number of coming votes for the
leader, for one challenger and for all others follows a Dirichlet-multinomial law, whose sums are exact; only the step
from one challenger to all is a bound (their chances are added), and it errs on the side of asking more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import lgamma

MAX_VOTES = 64  # the sums take the square of this


@dataclass(frozen=True)
class Ballot:
    """One sample's vote; ``key`` None abstains. ``weight`` decides between opinions with as many votes."""

    key: str | None
    weight: float = 0.0


@dataclass(frozen=True)
class Tally:
    """An opinion with its votes."""

    key: str
    count: int
    weight: float


def count(ballots: Sequence[Ballot]) -> list[Tally]:
    """All opinions, the leader first: by votes, then by the mean weight of those votes, then by who came first."""
    keys = list(dict.fromkeys(ballot.key for ballot in ballots if ballot.key is not None))
    tallies = []
    for key in keys:
        weights = [ballot.weight for ballot in ballots if ballot.key == key]
        tallies.append(Tally(key, len(weights), math.fsum(weights) / len(weights)))
    return sorted(tallies, key=lambda tally: (-tally.count, -tally.weight))


def stays(counts: Sequence[int], remaining: int) -> float:
    """At least the probability that the leader of ``counts`` (descending) has strictly the most votes after
    ``remaining`` more. 0 without votes; with none to come it is certain one way or the other."""
    if not counts:
        return 0.0
    leader, challengers = counts[0], [*counts[1:], 0]
    whole = sum(counts) + len(counts) + 1
    return max(0.0, 1.0 - math.fsum(_overtakes(leader, each, whole, remaining) for each in challengers))


def needed(counts: Sequence[int], remaining: int, confidence: float) -> int:
    """How many further votes could settle it at best, if all were for the leader: the size of the next round."""
    for more in range(1, remaining + 1):
        hoped = [counts[0] + more, *counts[1:]] if counts else [more]
        if stays(hoped, remaining - more) >= confidence:
            return more
    return remaining


def _overtakes(leader: int, challenger: int, whole: int, remaining: int) -> float:
    """The probability that ``challenger`` comes to as many votes as ``leader`` or more; exact."""
    a, b, behind = leader + 1, challenger + 1, leader - challenger
    others = whole - a - b
    total = 0.0
    for both in range(behind, remaining + 1):  # votes for one of the two
        if not others and both < remaining:
            continue
        share = beta_binomial(both, remaining, a + b, others) if others else 1.0
        least = (both + behind + 1) // 2  # of which the challenger needs so many
        total += share * math.fsum(beta_binomial(gained, both, b, a) for gained in range(least, both + 1))
    return total


def beta_binomial(successes: int, trials: int, alpha: float, beta: float) -> float:
    """P(``successes`` of ``trials``) where the chance of each is drawn once from Beta(alpha, beta)."""
    ways = lgamma(trials + 1) - lgamma(successes + 1) - lgamma(trials - successes + 1)
    urn = _log_beta(successes + alpha, trials - successes + beta) - _log_beta(alpha, beta)
    return math.exp(ways + urn)


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)
