"""Value heads in GGUF's order (j reads key head j % Hk) answer like grouped ones (j // r), re-ordered: bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qwench.ops.delta_net import DeltaInputs, DeltaParameters, delta_net
from qwench.ops.native import Native, instruction_sets
from qwench.ops.rows import Rows
from tests.ops.calls import NativeCalls

KEY_HEADS, VALUE_HEADS, KEY_DIM, VALUE_DIM, TAPS = 2, 6, 16, 24, 4
KEYS, VALUES = 2 * KEY_HEADS * KEY_DIM, VALUE_HEADS * VALUE_DIM
LENGTHS = (1, 1, 37)


def tiled_order() -> torch.Tensor:
    """Where each tiled head lies among the grouped ones."""
    repeats = VALUE_HEADS // KEY_HEADS
    return torch.arange(VALUE_HEADS).view(KEY_HEADS, repeats).T.flatten()


def reordered(x: torch.Tensor, width: int, skip: int = 0) -> torch.Tensor:
    """The last axis' value heads, each ``width`` wide and behind ``skip`` others, in the tiled order."""
    heads = x[..., skip:].unflatten(-1, (VALUE_HEADS, width))[..., tiled_order(), :].flatten(-2)
    return torch.cat((x[..., :skip], heads), dim=-1).contiguous()


@pytest.mark.parametrize("isa", ["torch", *instruction_sets()])
def test_tiled_heads_are_grouped_heads_in_another_order(isa: str) -> None:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tokens = sum(LENGTHS)
    inputs = DeltaInputs(
        normal(tokens, KEYS + VALUES), normal(tokens, VALUES), normal(tokens, VALUE_HEADS), normal(tokens, VALUE_HEADS)
    )
    vectors = (normal(KEYS + VALUES, TAPS), normal(VALUE_HEADS), normal(VALUE_HEADS), normal(VALUE_DIM))
    parameters = DeltaParameters(*vectors, 1e-6, KEY_HEADS, KEY_DIM)
    conv_states, states = normal(3, TAPS - 1, KEYS + VALUES), normal(3, VALUE_HEADS, KEY_DIM, VALUE_DIM)
    changed = DeltaInputs(
        reordered(inputs.mixed, VALUE_DIM, KEYS),
        reordered(inputs.gate, VALUE_DIM),
        reordered(inputs.beta, 1),
        reordered(inputs.decay, 1),
    )
    tiled = replace(
        parameters,
        conv=reordered(parameters.conv.T, VALUE_DIM, KEYS).T,
        a_log=reordered(parameters.a_log, 1),
        dt_bias=reordered(parameters.dt_bias, 1),
        tiled=True,
    )
    tiled_conv, tiled_states = reordered(conv_states, VALUE_DIM, KEYS), states[:, tiled_order()].contiguous()
    empty = torch.zeros(0, dtype=torch.int64)
    rows = Rows(LENGTHS, LENGTHS, empty, 16, empty, torch.tensor([2, 0, 1]))
    compute = delta_net if isa == "torch" else NativeCalls(Native(isa, 2)).delta_net
    expected = compute(inputs, parameters, conv_states, states, rows)
    found = compute(changed, tiled, tiled_conv, tiled_states, rows)
    assert torch.equal(found, reordered(expected, VALUE_DIM))
    assert torch.equal(tiled_conv, reordered(conv_states, VALUE_DIM, KEYS))
    assert torch.equal(tiled_states, states[:, tiled_order()])
