"""The posterior against the urn itself, and the filter: what is claimed of votes holds for votes drawn by chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwench.reason.confidence import LowestWindow, floor_of
from qwench.reason.vote import Ballot, beta_binomial, count, needed, stays

COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=4).map(lambda them: sorted(them, reverse=True))


@cache
def exact(counts: tuple[int, ...], remaining: int) -> Fraction:
    """That the first stays strictly ahead, by drawing every possible vote from the urn; the last is "none of these"."""
    if not remaining:
        return Fraction(counts[0] > max(counts[1:]))
    whole, total = sum(counts) + len(counts), Fraction(0)
    for at, number in enumerate(counts):
        after = (*counts[:at], number + 1, *counts[at + 1 :])
        total += Fraction(number + 1, whole) * exact(after, remaining - 1)
    return total


@given(COUNTS, st.integers(0, 7))
def test_the_bound_is_never_above_the_urn(counts: list[int], remaining: int) -> None:
    assert stays(counts, remaining) <= float(exact((*counts, 0), remaining)) + 1e-9


@given(st.integers(1, 12), st.integers(0, 10))
def test_of_one_opinion_it_is_exact(votes: int, remaining: int) -> None:
    assert stays([votes], remaining) == pytest.approx(float(exact((votes, 0), remaining)), abs=1e-9)


@given(st.integers(0, 20), st.floats(0.5, 30), st.floats(0.5, 30))
def test_the_beta_binomial_sums_to_one(trials: int, alpha: float, beta: float) -> None:
    assert math.fsum(beta_binomial(each, trials, alpha, beta) for each in range(trials + 1)) == pytest.approx(1)


def test_known_values() -> None:
    assert stays([], 5) == 0
    assert stays([3], 0) == 1
    assert stays([3, 3], 0) == 0
    assert stays([5, 1], 3) == 1  # nobody can reach it any more
    assert stays([1], 1) == pytest.approx(2 / 3)  # the rule of succession: the next is the same with 2/3


@given(COUNTS, st.integers(1, 20), st.sampled_from((0.6, 0.9, 0.95, 0.99)))
def test_a_round_is_no_larger_than_what_could_settle_it(counts: list[int], remaining: int, confidence: float) -> None:
    more = needed(counts, remaining, confidence)
    assert 1 <= more <= remaining
    if more > 1:
        hoped = [counts[0] + more - 1, *counts[1:]]
        assert stays(hoped, remaining - more + 1) < confidence


def full_vote(draws: Sequence[int]) -> tuple[str | None, str | None, int]:
    """The answer of the adaptive vote, that of the full one, and how many samples the first took."""
    taken = 0
    while taken < len(draws):
        counts = [tally.count for tally in count([Ballot(str(each)) for each in draws[:taken]])]
        taken += needed(counts, len(draws) - taken, 0.95)
        tallies = count([Ballot(str(each)) for each in draws[:taken]])
        if stays([tally.count for tally in tallies], len(draws) - taken) >= 0.95:
            break
    whole = count([Ballot(str(each)) for each in draws])
    early = count([Ballot(str(each)) for each in draws[:taken]])
    return early[0].key, whole[0].key, taken


def test_stopping_early_changes_at_most_one_answer_in_twenty_and_saves_samples() -> None:
    """Opinions drawn as the model of the vote supposes: shares from a uniform Dirichlet over two and "others"."""
    rng, differ, taken, runs = Random(7), 0, 0, 2000
    for _ in range(runs):
        shares = [rng.gammavariate(1, 1) for _ in range(3)]
        draws = rng.choices(range(3), shares, k=16)
        early, whole, number = full_vote(draws)
        differ += early != whole
        taken += number
    assert differ / runs < 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    assert taken / runs < 13


def test_the_leader_is_who_has_most_then_who_is_surest_then_who_came_first() -> None:
    ballots = [Ballot("b", -1), Ballot("a", -3), Ballot("a", -2), Ballot(None), Ballot("b", -1), Ballot("c", 0)]
    assert [(each.key, each.count) for each in count(ballots)] == [("b", 2), ("a", 2), ("c", 1)]
    assert [each.key for each in count([Ballot("x"), Ballot("y")])] == ["x", "y"]


@given(st.lists(st.floats(-9, 0), min_size=1, max_size=40), st.integers(1, 12))
def test_the_lowest_window_is_the_least_mean_of_all(values: list[float], window: int) -> None:
    lowest = LowestWindow(window)
    for value in values:
        lowest.push(value)
    means = [math.fsum(values[at : at + window]) / window for at in range(len(values) - window + 1)]
    assert lowest.value == pytest.approx(min(means) if means else math.fsum(values) / len(values))
    assert lowest.full == bool(means)


@given(st.lists(st.floats(-9, 0), min_size=1, max_size=20), st.floats(0.01, 1))
def test_the_floor_keeps_the_share_and_no_one_surer_falls(values: list[float], keep: float) -> None:
    floor = floor_of(values, keep)
    assert floor in values
    assert sum(value >= floor for value in values) >= math.ceil(keep * len(values))
    assert sum(value > floor for value in values) < max(1, math.ceil(keep * len(values)))
