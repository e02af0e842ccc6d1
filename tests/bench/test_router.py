"""Sets of options for the bench of the router."""

from __future__ import annotations

import numpy as np
import pytest

from bench.outcomes import Outcomes
from bench.router import FOLDS, SETS, option_sets, over_sets


def test_all_sets_are_taken_or_the_same_ones_are_drawn() -> None:
    assert len(option_sets(5)) == 5
    drawn = option_sets(25)
    assert len(set(drawn)) == SETS
    assert drawn == option_sets(25)
    assert {place for places in drawn for place in places} == set(range(25))


def test_what_is_told_of_sets_adds_up() -> None:
    rng = np.random.default_rng(0)
    solved = (rng.random((60, 5)) < np.linspace(0.3, 0.8, 5)).astype(float)
    costs = np.tile(np.linspace(0.1, 0.5, 5), (60, 1))
    table = Outcomes("t", tuple("abcde"), ("x", "y", "z") * 20, solved, costs, (), "USD", (2.0,))
    told = over_sets(table, [np.arange(60) % FOLDS, np.arange(60) // 3 % FOLDS], 2.0)
    assert told["sets"] == 5
    gain, more, dearer = (told[name][0] for name in ("gain_over_class_table", "solved_over", "cost_over"))
    assert gain == pytest.approx(2 * more - dearer)
    assert told["gain_over_class_table"][1] <= gain <= told["gain_over_class_table"][2]
