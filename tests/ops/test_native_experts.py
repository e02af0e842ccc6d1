"""A layer of experts in one call: every instruction set against the reference, and its laws to the bit."""

from __future__ import annotations

import pytest
import torch

from qwench.ops.arrays import FLOAT32
from qwench.ops.linear import Dense, Packed, expert_mlp, linear, route
from qwench.ops.loading import Arena
from qwench.ops.native import Native
from qwench.ops.weight_types import OWN_TYPES
from tests.ops.calls import NativeCalls
from tests.ops.stored import stored
from tests.ops.test_native import DTYPES, bound, far, normal, sets
from tests.ops.test_quantised_linear import random_codes

if sets()[0].startswith("no native"):
    pytest.skip(sets()[0], allow_module_level=True)


def matrices(experts: int, hidden: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    gate_up = normal(experts, 2 * width, hidden, seed=2, dtype=dtype) / hidden**0.5
    return gate_up, normal(experts, hidden, width, seed=3, dtype=dtype) / width**0.5


def packed(kernels: NativeCalls, gate_up: torch.Tensor, down: torch.Tensor) -> tuple[Packed, Packed]:
    found = stored(kernels, {"gate_up": gate_up, "down": down})
    one, two = found["gate_up"], found["down"]
    assert isinstance(one, Packed)
    assert isinstance(two, Packed)
    return one, two


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", sets())
@pytest.mark.parametrize(("experts", "chosen"), [(1, 1), (4, 2), (37, 8), (64, 64)])
@pytest.mark.parametrize(("hidden", "width"), [(12, 5), (64, 48)])
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_experts_equal_the_reference(
    isa: str, dtype: torch.dtype, experts: int, chosen: int, hidden: int, width: int, tokens: int
) -> None:
    gate_up, down = matrices(experts, hidden, width, dtype)
    kernels = NativeCalls(Native(isa, 1))
    ours = packed(kernels, gate_up, down)
    x = normal(tokens, hidden, dtype=dtype)
    logits = normal(tokens, experts, seed=1, dtype=dtype)  # of 8 bits in BF16: some are equal
    for normalise in (True, False):
        expected = expert_mlp(x, *route(logits, chosen, normalise=normalise), Dense(gate_up), Dense(down))
        found = kernels.experts(x, logits, *ours, chosen, normalise=normalise)
        assert found.dtype == dtype
        assert far(found, expected) < bound("experts", dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", sets())
def test_neither_company_nor_threads_change_a_bit(isa: str, dtype: torch.dtype) -> None:
    gate_up, down = matrices(10, 48, 20, dtype)
    one, three = NativeCalls(Native(isa, 1)), NativeCalls(Native(isa, 3))
    x, logits = normal(70, 48, dtype=dtype), normal(70, 10, seed=1, dtype=dtype)
    ours = packed(one, gate_up, down)
    together = one.experts(x, logits, *ours, 3, normalise=True)
    assert torch.equal(three.experts(x, logits, *packed(three, gate_up, down), 3, normalise=True), together)
    for first, last in ((0, 1), (5, 6), (1, 18), (69, 70), (30, 70)):
        part = one.experts(x[first:last], logits[first:last], *ours, 3, normalise=True)
        assert torch.equal(part, together[first:last])
    assert one.experts(x[:0], logits[:0], *ours, 3, normalise=True).shape == (0, 48)
    strided = torch.cat((x, x), dim=1)[:, 48:], torch.cat((logits, logits), dim=1)[:, :10]
    assert torch.equal(one.experts(*strided, *ours, 3, normalise=True), together)


@pytest.mark.parametrize("isa", sets())
@pytest.mark.parametrize("kind", ["q8", "q4", "q6"])
def test_quantised_experts_equal_one_linear_layer_after_the_other(isa: str, kind: str) -> None:
    native = Native(isa, 1)
    arena = Arena(1 << 22)

    def pack(out: int, width: int, seed: int) -> Packed:
        codes = [random_codes(OWN_TYPES[kind], out, width, seed + expert) for expert in range(5)]
        return Packed(native, tuple(native.pack_codes(each, arena) for each in codes), FLOAT32)

    gate_up, down = pack(128, 256, 0), pack(256, 64, 9)
    x, logits = normal(9, 256), normal(9, 5, seed=1)
    weights, experts = route(logits, 2, normalise=True)
    expected = expert_mlp(x, weights, experts, gate_up, down)  # by native linear layers
    found = NativeCalls(native).experts(x, logits, gate_up, down, 2, normalise=True)
    assert linear(x, gate_up.expert(0)).shape == (9, 128)
    assert far(found, expected) < bound("experts", torch.float32)


@pytest.mark.parametrize("isa", sets())
def test_of_equal_experts_the_lower_numbers_are_chosen(isa: str) -> None:
    """All down projections differ, so another choice gives another result."""
    gate_up, down = matrices(9, 16, 16, torch.float32)
    kernels = NativeCalls(Native(isa, 1))
    logits = torch.tensor([[0.0] * 9, [1.0, 2.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 0.0]])
    weights, chosen = route(logits, 3, normalise=True)
    assert [sorted(row) for row in chosen.tolist()] == [[0, 1, 2], [0, 1, 4]]
    x = normal(2, 16)
    expected = expert_mlp(x, weights, chosen, Dense(gate_up), Dense(down))
    found = kernels.experts(x, logits, *packed(kernels, gate_up, down), 3, normalise=True)
    assert far(found, expected) < bound("experts", torch.float32)


@pytest.mark.parametrize("isa", sets())
def test_not_a_number_stays_in_its_row(isa: str) -> None:
    gate_up, down = matrices(6, 16, 16, torch.float32)
    kernels = NativeCalls(Native(isa, 1))
    ours = packed(kernels, gate_up, down)
    x, logits = normal(5, 16), normal(5, 6, seed=1)
    expected = kernels.experts(x, logits, *ours, 2, normalise=True)
    logits[1], x[3, 2] = torch.nan, torch.inf
    found = kernels.experts(x, logits, *ours, 2, normalise=True)
    assert found[[1, 3]].isnan().any(-1).all()
    assert torch.equal(found[[0, 2, 4]], expected[[0, 2, 4]])


def test_a_mismatch_names_the_dimension_and_both_sizes() -> None:
    gate_up, down = matrices(4, 12, 8, torch.float32)
    kernels = NativeCalls(Native("scalar", 1))
    ours = packed(kernels, gate_up, down)
    with pytest.raises(ValueError, match="experts: experts is 5 in logits but 4 in gate_up"):
        kernels.experts(normal(2, 12), normal(2, 5), *ours, 2, normalise=True)
    with pytest.raises(ValueError, match="experts: hidden is 11 in x but 12 in gate_up"):
        kernels.experts(normal(2, 11), normal(2, 4), *ours, 2, normalise=True)
    with pytest.raises(ValueError, match="experts: tokens is 2 in x but 3 in logits"):
        kernels.experts(normal(2, 12), normal(3, 4), *ours, 2, normalise=True)
    with pytest.raises(ValueError, match="types are"):
        kernels.experts(normal(2, 12).bfloat16(), normal(2, 4), *ours, 2, normalise=True)
