"""Paged attention against plain softmax in fp64; what a row may not see is poisoned with NaN."""

from __future__ import annotations

import pytest
import torch

from qwench.ops.attention import paged_attention
from qwench.ops.rows import Rows
from tests.tolerances import tolerance

PAGE, HEADS, KV_HEADS, DIM = 4, 6, 2, 8


def plain(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """query [n, H, D] at the end of keys, values [context, K, D]; fp64."""
    query, keys, values = query.double(), keys.double(), values.double()
    length, context = query.shape[0], keys.shape[0]
    output = torch.zeros_like(query)
    for head in range(HEADS):
        shared = head // (HEADS // KV_HEADS)
        for t in range(length):
            seen = context - length + t + 1
            weights = torch.softmax(keys[:seen, shared] @ query[t, head] / DIM**0.5, dim=0)
            output[t, head] = weights @ values[:seen, shared]
    return output


@pytest.mark.parametrize("lengths", [(1,), (7,), (1, 1, 1), (1, 5, 13), (3, 4)])
@pytest.mark.parametrize("past", [0, 1, 6])
def test_rows_see_their_own_past_and_nothing_else(lengths: tuple[int, ...], past: int) -> None:
    generator = torch.Generator().manual_seed(len(lengths) * 10 + past)
    tokens = sum(lengths)
    num_pages = 40
    keys = torch.full((num_pages * PAGE, KV_HEADS, DIM), torch.nan)
    values = keys.clone()
    free = torch.randperm(num_pages, generator=generator).tolist()
    query = torch.randn(tokens, HEADS, DIM, generator=generator)
    key = torch.randn(tokens, KV_HEADS, DIM, generator=generator)
    value = torch.randn(tokens, KV_HEADS, DIM, generator=generator)
    table, kv_slots, expected, first = [], [], [], 0
    for length in lengths:
        pages = [free.pop() for _ in range(-(-(past + length) // PAGE))]
        table.append(pages + [0] * (8 - len(pages)))
        slots = [pages[i // PAGE] * PAGE + i % PAGE for i in range(past + length)]
        old = torch.randn(2, past, KV_HEADS, DIM, generator=generator)
        keys[slots[:past]], values[slots[:past]] = old[0], old[1]
        kv_slots += slots[past:]
        span = slice(first, first + length)
        expected.append(plain(query[span], torch.cat((old[0], key[span])), torch.cat((old[1], value[span]))))
        first += length
    contexts = tuple(past + length for length in lengths)
    rows = Rows(lengths, contexts, torch.tensor(table), PAGE, torch.tensor(kv_slots), torch.zeros(0))
    found = paged_attention(query, key, value, keys, values, rows)
    assert (found - torch.cat(expected)).abs().max() < tolerance("attention")
