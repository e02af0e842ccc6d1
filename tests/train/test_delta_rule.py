"""Our chunked delta rule over ragged rows equals transformers' function row by row, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qwench.train.delta_rule import causal_conv, combine, prepare, scan, unit_lower_inverse
from qwench.train.encode import Row
from qwench.train.ragged import pack

HEADS = (2, 4)
SIZE = 16


def inputs(length: int, seed: int) -> list[Tensor]:
    """q, k, v, g, beta of one row: [T, heads, D] and [T, heads]."""
    random = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(length, HEADS[0], SIZE, generator=random) for _ in range(2))
    v = torch.randn(length, HEADS[1], SIZE, generator=random)
    g = -torch.rand(length, HEADS[1], generator=random)
    beta = torch.rand(length, HEADS[1], generator=random)
    return [value.requires_grad_() for value in (q, k, v, g, beta)]


def ours(rows: list[list[Tensor]], chunk: int) -> list[Tensor]:
    lengths = [len(row[0]) for row in rows]
    batch = pack([Row([0] * length, [True] * length, [0] * length) for length in lengths], chunk)
    order = sorted(range(len(rows)), key=lambda index: -lengths[index])
    chunked = []
    for place in range(5):
        flat = torch.cat([rows[index][place].flatten(1) for index in order])
        padded = torch.cat([flat, flat.new_zeros(1, flat.shape[1])])[batch.chunk_of]
        wide = padded.unflatten(-1, (-1, SIZE)).transpose(1, 2) if place < 3 else padded.transpose(1, 2)
        chunked.append(wide)
    q, k, v, g, beta = chunked
    q, k, lower, weights, total = prepare(q, k, g, beta)
    q, k, u, w, last = combine(q, k, v, beta, total, unit_lower_inverse(lower))
    out = scan(q, k, u, w, weights, last, batch.steps).transpose(1, 2).flatten(0, 1)[batch.token_in_chunks]
    pieces = dict(zip(order, out.split([lengths[index] for index in order]), strict=True))
    return [pieces[index] for index in range(len(rows))]


def theirs(row: list[Tensor]) -> Tensor:
    from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import torch_chunk_gated_delta_rule

    q, k, v, g, beta = (value.unsqueeze(0) for value in row)
    outputs: Tensor = torch_chunk_gated_delta_rule(q, k, v, g=g, beta=beta, use_qk_l2norm_in_kernel=True)[0]
    return outputs[0]


@pytest.mark.parametrize("chunk", [16, 32])
def test_equals_transformers(chunk: int) -> None:
    rows = [inputs(length, length) for length in (5, 70, 16, 33, 1, 64)]
    for mine, row in zip(ours(rows, chunk), rows, strict=True):
        reference = theirs(row)
        torch.testing.assert_close(mine, reference, atol=2e-5, rtol=1e-4)
        wanted = torch.autograd.grad(reference.square().sum(), row)
        got = torch.autograd.grad(mine.square().sum(), row, retain_graph=True)
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


def test_the_inverse_and_its_gradient() -> None:
    lower = (torch.rand(3, 8, 8, dtype=torch.float64) - 0.5).tril(-1).requires_grad_()
    eye = torch.eye(8, dtype=torch.float64)
    torch.testing.assert_close(unit_lower_inverse(lower) @ (lower + eye), eye.expand(3, 8, 8))
    assert torch.autograd.gradcheck(lambda x: unit_lower_inverse(x.tril(-1)), (lower,))


def test_convolution_does_not_look_into_the_row_before() -> None:
    x, weight = torch.randn(9, 6), torch.randn(6, 4)
    positions = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3])
    whole = causal_conv(x, weight, positions)
    parts = [causal_conv(part, weight, torch.arange(len(part))) for part in (x[:5], x[5:])]
    torch.testing.assert_close(whole, torch.cat(parts))
    padded = torch.nn.functional.conv1d(x[:5].T[None], weight[:, None], groups=6, padding=3)[0, :, :5].T
    torch.testing.assert_close(whole[:5], torch.nn.functional.silu(padded))
