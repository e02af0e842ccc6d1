"""Passes over a vocabulary: the native ones of every instruction set against plain torch, exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qwench.ops.arrays import to_torch
from qwench.ops.choosing import Chooser, NativeChooser, TorchChooser
from qwench.ops.native import Native
from tests.ops.test_native import normal, sets

SIZES = (1, 2, 15, 127, 128, 129, 1000, 32_769, 100_003)  # around what is scanned at once, and what a thread takes


@pytest.fixture(params=["torch", *sets()])
def chooser(request: pytest.FixtureRequest) -> Chooser:
    if request.param.startswith("no native"):
        pytest.skip(request.param)
    return TorchChooser() if request.param == "torch" else NativeChooser(Native(request.param, 2))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("coarse", [False, True])
def test_the_largest_few_in_order_and_of_equals_the_first(chooser: Chooser, size: int, coarse: bool) -> None:
    logits = normal(size, seed=size)
    if coarse:
        logits = logits.round()  # a handful of values: nearly all are equal
    values, places = torch.sort(logits, descending=True, stable=True)
    assert chooser.largest(torch.stack((logits, -logits))) == [int(places[0]), int((-logits).argmax())]
    for count in {1, min(2, size), min(20, size), min(1024, size), min(3000, size), size}:
        found_values, found_places = chooser.top(logits, count)
        assert torch.equal(to_torch(found_values), values[:count])
        assert torch.equal(to_torch(found_places), places[:count])
    for ordered in (values, values.flip(0)):  # every number displaces the one before, or none does
        count = min(40, size)
        assert torch.equal(to_torch(chooser.top(ordered, count)[0]), values[:count])


@pytest.mark.parametrize("size", SIZES)
def test_a_number_that_is_not_finite_is_found_wherever_it_stands(chooser: Chooser, size: int) -> None:
    for place in {0, size // 2, size - 1}:
        for wrong in (torch.nan, torch.inf, -torch.inf):
            logits = normal(3, size, seed=size)
            logits[1, place] = wrong
            assert [token < 0 for token in chooser.largest(logits)] == [False, True, False]
    wide = normal(3, size + 7, seed=size)
    wide[:, size:] = torch.nan  # padding that does not belong to the rows
    assert chooser.largest(wide[:, :size]) == wide[:, :size].argmax(-1).tolist()


def test_forbidden_logits_come_last(chooser: Chooser) -> None:
    logits = normal(300)
    logits[::2] = -torch.inf
    values, places = chooser.top(logits, 200)
    assert np.isinf(values[150:]).all()
    assert places[150:].tolist() == list(range(0, 100, 2))
    assert chooser.draw(logits, 1.0, point=0.999999) % 2 == 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("temperature", [0.02, 0.7, 5.0])
def test_draws_follow_the_cumulated_weights(chooser: Chooser, size: int, temperature: float) -> None:
    logits = 4 * normal(size, seed=size)
    weights = torch.exp((logits.double() - logits.double().max()) / temperature)
    assert chooser.mass(logits, temperature) == pytest.approx(float(weights.sum()), rel=1e-13)
    for floor in (0.0, 0.01, 1.0):
        cumulative = torch.where(weights >= floor, weights, 0.0).cumsum(-1)
        for point in (0.0, 0.1234, 0.5, 0.87654, 1 - 2**-53):
            found = chooser.draw(logits, temperature, floor=floor, point=point)
            assert weights[found] >= floor
            wanted = point * float(cumulative[-1])
            assert float(cumulative[found] - weights[found]) <= wanted * (1 + 1e-12)
            assert float(cumulative[found]) >= wanted * (1 - 1e-12)
