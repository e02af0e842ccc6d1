"""What our types lose on layers of real depth is no more than llama.cpp's types of about the same size lose."""

from __future__ import annotations

import pytest

from tests import llama
from tests.accuracy import LAYERS, SORTS, TYPES, bits_of, drawn, lost, ours

PAIRS = [
    pytest.param(own, theirs, marks=pytest.mark.slow if theirs.endswith("_K") else ())
    for own, others in TYPES.items()
    for theirs in others
]
# Of two bits, Q2_K's mins (one for 16 weights) are worth 2 % on normal numbers; it takes 1/16 bit more.
FINER = {("q2", "Q2_K", "normal"): 1.035}


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize(("own", "theirs"), PAIRS)
def test_a_layer_loses_no_more(own: str, theirs: str, sort: str) -> None:
    for width in LAYERS.values():
        weight = drawn(sort, width)
        bound = FINER.get((own, theirs, sort), 1.0)
        assert lost(weight, ours(weight, own)) <= bound * lost(weight, llama.rounded(weight, theirs)), width


@pytest.mark.parametrize(("own", "others"), TYPES.items())
def test_sizes_are_about_the_same(own: str, others: tuple[str, ...]) -> None:
    """Scales of 8 bits where K-quants have 6 (or 4) cost an eighth of a bit, three sixteenths at three bits."""
    nearest = min(others, key=lambda theirs: abs(llama.bits_per_weight(theirs) - bits_of(own)))
    assert bits_of(own) <= llama.bits_per_weight(nearest) + (3 / 16 if own == "q3" else 1 / 8)
