"""The gated delta rule in chunks, over rows of different lengths; equal to transformers' function, without its loop.

Knows nothing of projections, convolution or gates. Legend: N chunks, C chunk length, Hk key heads, Hv value heads,
D head size; g is the log of the decay, so it is at most 0.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class UnitLowerInverse(torch.autograd.Function):
    """(I + L)^-1 of strictly lower triangular L [..., C, C]; the gradient is two products, not two more solves."""

    @staticmethod
    def forward(ctx: Any, lower: Tensor) -> Tensor:
        eye = torch.eye(lower.shape[-1], device=lower.device, dtype=lower.dtype)
        inverse: Tensor = torch.linalg.solve_triangular(
            lower + eye, eye.expand_as(lower), upper=False, unitriangular=True
        )
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        inverse: Tensor = ctx.saved_tensors[0]
        turned = inverse.transpose(-1, -2)
        return -(turned @ gradient @ turned)


def unit_lower_inverse(lower: Tensor) -> Tensor:
    inverse: Tensor = UnitLowerInverse.apply(lower)  # type: ignore[no-untyped-call]
    return inverse


def prepare(q: Tensor, k: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Before the inverse: q and k per value head, the strictly lower matrix, the weights inside a chunk, sums of g."""
    groups = g.shape[1] // k.shape[1]
    q = q * torch.rsqrt((q * q).sum(-1, keepdim=True) + 1e-6) * q.shape[-1] ** -0.5
    k = k * torch.rsqrt((k * k).sum(-1, keepdim=True) + 1e-6)
    total = g.cumsum(-1)
    row = torch.arange(g.shape[-1], device=g.device)
    causal = row.unsqueeze(-1) >= row
    # Masked before exp: above the diagonal the difference is positive and may overflow.
    decay = torch.where(causal, total.unsqueeze(-1) - total.unsqueeze(-2), float("-inf")).exp()
    turned = k.transpose(-1, -2)
    lower = (k @ turned).repeat_interleave(groups, 1) * decay * beta.unsqueeze(-1)
    lower = torch.where(row.unsqueeze(-1) > row, lower, 0.0)
    weights = (q @ turned).repeat_interleave(groups, 1) * decay
    return q.repeat_interleave(groups, 1), k.repeat_interleave(groups, 1), lower, weights, total


def combine(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, total: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """After the inverse: what the scan needs of every chunk."""
    grown, beta = total.exp().unsqueeze(-1), beta.unsqueeze(-1)
    u, w = inverse @ (v * beta), inverse @ (k * (grown * beta))
    last = total[..., -1:]
    return q * grown, k * (last - total).exp().unsqueeze(-1), u, w, last.exp().unsqueeze(-1)


def scan(q: Tensor, k: Tensor, u: Tensor, w: Tensor, weights: Tensor, last: Tensor, steps: tuple[int, ...]) -> Tensor:
    """From chunk to chunk: the first step starts from an empty state, later ones from that of rows still running."""
    outputs: list[Tensor] = []
    state: Tensor | None = None
    # split, not slices: the gradient of a slice fills a whole tensor with zeros.
    for index, (qs, ks, own, ws, inner, fade) in enumerate(
        zip(*(x.split(steps) for x in (q, k, u, w, weights, last)), strict=True)
    ):
        old = None if state is None else state if len(state) == steps[index] else state[: steps[index]]
        new = own if old is None else own - ws @ old
        output = inner @ new
        outputs.append(output if old is None else output + qs @ old)
        if index + 1 < len(steps):
            state = ks.transpose(-1, -2) @ new
            state = state if old is None else state + old * fade
    return torch.cat(outputs)


def causal_conv(x: Tensor, weight: Tensor, positions: Tensor) -> Tensor:
    """Depthwise causal convolution and SiLU. x [T, channels], weight [channels, 4]; rows never mix."""
    taps = weight.shape[-1]
    result = x * weight[:, -1]
    for back in range(1, taps):
        seen = (positions >= back).to(x.dtype).unsqueeze(-1)
        result = result + F.pad(x, (0, 0, back, 0))[: x.shape[0]] * (seen * weight[:, -1 - back])
    return F.silu(result)
