"""Gated DeltaNet: the recurrent form in fp64 Python is the truth; step, chunks and any cut must agree with it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from qwench.ops.delta_rule import causal_conv, gated_delta_rule
from qwench.ops.rows import Rows
from tests.tolerances import tolerance

KEY_HEADS, VALUE_HEADS, KEY_DIM, VALUE_DIM = 2, 6, 16, 24


def rows_of(lengths: tuple[int, ...], slots: list[int]) -> Rows:
    empty = torch.zeros(0, dtype=torch.int64)
    return Rows(lengths, lengths, empty, 16, empty, torch.tensor(slots))


Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # query, key, value, decay, beta


def inputs(length: int, seed: int, *, burst: bool = False) -> Parts:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    decay = -torch.rand(length, VALUE_HEADS, generator=generator) * 0.3
    if burst:
        decay[length // 2] = -30.0
    return (
        normal(length, KEY_HEADS, KEY_DIM),
        normal(length, KEY_HEADS, KEY_DIM),
        normal(length, VALUE_HEADS, VALUE_DIM),
        decay,
        torch.rand(length, VALUE_HEADS, generator=generator),
    )


def cut(parts: Parts, span: slice) -> Parts:
    query, key, value, decay, beta = parts
    return query[span], key[span], value[span], decay[span], beta[span]


def truth(parts: Parts, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, one token and one head at a time, fp64."""
    query, key, value, decay, beta = (part.double() for part in parts)
    state = state.double().clone()
    output = torch.zeros(value.shape, dtype=torch.float64)
    for t in range(value.shape[0]):
        for head in range(VALUE_HEADS):
            shared = head // (VALUE_HEADS // KEY_HEADS)
            k = key[t, shared] / (key[t, shared].square().sum() + 1e-6).sqrt()
            q = query[t, shared] / (query[t, shared].square().sum() + 1e-6).sqrt() / KEY_DIM**0.5
            state[head] *= decay[t, head].exp()
            delta = beta[t, head] * (value[t, head] - state[head].T @ k)
            state[head] += torch.outer(k, delta)
            output[t, head] = state[head].T @ q
    return output, state


@pytest.mark.parametrize("burst", [False, True])
@pytest.mark.parametrize("cuts", [(130,), (1,) * 20, (64, 66), (63, 1, 1, 65), (3, 7, 120), (128, 2)])
def test_any_cut_equals_the_definition(cuts: tuple[int, ...], burst: bool) -> None:
    length = sum(cuts)
    parts = inputs(length, seed=length, burst=burst)
    states = torch.randn(3, VALUE_HEADS, KEY_DIM, VALUE_DIM, generator=torch.Generator().manual_seed(5))
    expected, expected_state = truth(parts, states[1])
    others = states[[0, 2]].clone()
    bounds = [sum(cuts[:n]) for n in range(len(cuts) + 1)]
    found = [gated_delta_rule(*cut(parts, slice(a, b)), states, rows_of((b - a,), [1])) for a, b in pairwise(bounds)]
    assert (torch.cat(found) - expected).abs().max() < tolerance("delta_rule")
    assert (states[1] - expected_state).abs().max() < tolerance("delta_rule")
    assert torch.equal(states[[0, 2]], others)


def test_ragged_rows_equal_each_alone() -> None:
    lengths = (1, 1, 70, 5)
    parts = inputs(sum(lengths), seed=9)
    start = torch.randn(5, VALUE_HEADS, KEY_DIM, VALUE_DIM, generator=torch.Generator().manual_seed(6))
    together = start.clone()
    found = gated_delta_rule(*parts, together, rows_of(lengths, [4, 0, 3, 1]))
    first = 0
    for length, slot in zip(lengths, [4, 0, 3, 1], strict=True):
        span = slice(first, first + length)
        expected, state = truth(cut(parts, span), start[slot])
        assert (found[span] - expected).abs().max() < tolerance("delta_rule")
        assert (together[slot] - state).abs().max() < tolerance("delta_rule")
        first += length
    assert torch.equal(together[2], start[2])


@pytest.mark.parametrize("cuts", [(9,), (1,) * 9, (2, 1, 6), (3, 3, 3)])
def test_convolution_is_causal_and_cuts_do_not_matter(cuts: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    channels, taps, length = 5, 4, sum(cuts)
    x = torch.randn(length, channels, generator=generator)
    weight = torch.randn(channels, taps, generator=generator)
    padded = torch.cat((torch.zeros(taps - 1, channels), x)).double()
    mixed = torch.stack(
        [sum(weight[:, j].double() * padded[t + j] for j in range(taps)) for t in range(length)]  # type: ignore[misc]
    )
    expected = mixed * mixed.sigmoid()
    states = torch.zeros(2, taps - 1, channels)
    bounds = [sum(cuts[:n]) for n in range(len(cuts) + 1)]
    found = [causal_conv(x[a:b], weight, states, rows_of((b - a,), [1])) for a, b in pairwise(bounds)]
    assert (torch.cat(found) - expected).abs().max() < tolerance("causal_conv")
    assert torch.equal(states[1], x[-3:])  # the state holds inputs, before convolution and gate
    assert not states[0].any()
