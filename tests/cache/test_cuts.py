"""Where prompts are cut: by the request alone, the same for every beginning, never too close."""

from __future__ import annotations

import random
from itertools import pairwise

from qwench.cache.cuts import cut_points

NEAR = 64


def test_a_longer_prompt_is_cut_where_its_beginning_was_but_for_the_last_mark() -> None:
    rng = random.Random(3)
    for _ in range(300):
        length = rng.randint(1, 9000)
        marks = sorted(rng.sample(range(1, 9000), rng.randint(0, 40)))
        orders = rng.sample(range(1, 9000), rng.randint(0, 3))
        cuts = cut_points(9000, marks, orders, NEAR)
        inside = [mark for mark in marks if mark < length]
        shorter = cut_points(length, inside, [order for order in orders if order < length], NEAR)
        assert set(shorter) <= {*cuts, *inside[-1:]}
        assert all(cut in shorter for cut in cuts if cut < min(length, *(inside[-1:] or [length])))


def test_cuts_ascend_and_are_apart() -> None:
    rng = random.Random(4)
    for _ in range(300):
        marks, orders = ([rng.randrange(5000) for _ in range(rng.randrange(60))] for _ in range(2))
        cuts = [0, *cut_points(5000, marks, orders, NEAR)]
        ordered = list(pairwise(cuts))
        last = max((mark for mark in marks if 0 < mark < 5000), default=0)
        assert all(other - one >= NEAR for one, other in ordered if last not in (one, other))
        assert cuts == sorted(set(cuts))
        assert cuts[-1] < 5000


def test_the_last_mark_and_orders_are_kept() -> None:
    cuts = cut_points(4010, [900, 1000, 1010, 4005], [100], NEAR)
    assert {100, 4005} <= set(cuts)
    assert 1010 not in cuts


def test_a_short_prompt_and_a_mark_near_the_beginning_are_not_worth_a_cut() -> None:
    assert cut_points(200, [30], [20], NEAR) == []


def test_without_marks_the_grid_widens() -> None:
    cuts = cut_points(40_000, [], [], NEAR)
    gaps = [other - one for one, other in pairwise(cuts)]
    assert cuts[0] == 16 * NEAR
    assert gaps == sorted(gaps)
    assert len(cuts) < 16
