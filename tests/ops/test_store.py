"""Stores: pieces in any cut give the weights of the whole, on the native kernels and on the references."""

from __future__ import annotations

import pytest
import torch

from qwench.ops.arrays import BFLOAT16, FLOAT32, torch_dtype
from qwench.ops.kernels import Kernels, make_kernels
from qwench.ops.linear import Weight, embed, linear
from qwench.ops.native import instruction_sets
from qwench.ops.quantised import Codes
from qwench.ops.store import Kind, Plan, Value
from qwench.ops.weight_types import OWN_TYPES, WeightType
from qwench.weights.quantise import quantise

KINDS: list[Kind] = [*OWN_TYPES.values(), FLOAT32, BFLOAT16]
OUT, WIDTH = 200, 256


@pytest.fixture(params=["torch", "native"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return make_kernels(instruction_sets()[0] if request.param == "native" else None, threads=1)


def drawn(kind: Kind, seed: int) -> Value:
    weight = torch.randn(OUT, WIDTH, generator=torch.Generator().manual_seed(seed)) / 16
    return quantise(weight, kind) if isinstance(kind, WeightType) else weight.to(torch_dtype(kind))


def rows(value: Value, first: int, last: int) -> Value:
    return value.rows(torch.arange(first, last)) if isinstance(value, Codes) else value[first:last]


def stored(kernels: Kernels, values: list[Value], kind: Kind, cuts: tuple[int, ...]) -> Weight:
    """One weight: a matrix, or one per expert, put in pieces of these rows."""
    shape = (OUT, WIDTH) if len(values) == 1 else (len(values), OUT, WIDTH)
    store = kernels.store(Plan({"x": shape}, {"x": kind}, FLOAT32))
    for expert, value in reversed(list(enumerate(values))):
        for first, last in zip((0, *cuts), (*cuts, OUT), strict=True):
            store.put("x", None if len(values) == 1 else expert, rows(value, first, last))
    return store.finish()["x"]


@pytest.mark.parametrize("cuts", [(64,), (128,), (64, 128, 192)])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name if isinstance(kind, WeightType) else str(kind))
def test_pieces_give_the_bits_of_the_whole(kernels: Kernels, kind: Kind, cuts: tuple[int, ...]) -> None:
    value = drawn(kind, seed=1)
    whole, pieces = stored(kernels, [value], kind, ()), stored(kernels, [value], kind, cuts)
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(2))
    if kind == BFLOAT16:
        x = x.bfloat16()
    assert torch.equal(linear(x, pieces), linear(x, whole))
    ids = torch.tensor([0, 63, 64, 65, 127, 128, 199])
    assert torch.equal(embed(ids, pieces), embed(ids, whole))


@pytest.mark.parametrize("kind", [OWN_TYPES["q4"], FLOAT32], ids=["q4", "float32"])
def test_experts_come_one_by_one_in_any_order(kernels: Kernels, kind: Kind) -> None:
    values = [drawn(kind, seed) for seed in range(3)]
    together = stored(kernels, values, kind, (64,))
    x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(9))
    for expert, value in enumerate(values):
        assert torch.equal(linear(x, together.expert(expert)), linear(x, stored(kernels, [value], kind, ())))


def test_the_references_and_the_kernels_agree_on_rounded_rows() -> None:
    value = drawn(OWN_TYPES["q4"], seed=4)
    sets = [make_kernels(isa, threads=1) for isa in (None, instruction_sets()[0])]
    ids = torch.tensor([3, 100, 7])
    reference, native = (embed(ids, stored(each, [value], OWN_TYPES["q4"], ())) for each in sets)
    assert torch.allclose(native, reference, rtol=1e-6, atol=1e-7)


def test_a_missing_piece_is_found(kernels: Kernels) -> None:
    store = kernels.store(Plan({"x": (OUT, WIDTH)}, {"x": OWN_TYPES["q4"]}, FLOAT32))
    store.put("x", None, rows(drawn(OWN_TYPES["q4"], seed=0), 0, 128))
    with pytest.raises(AssertionError, match="x did not come in full"):
        store.finish()
