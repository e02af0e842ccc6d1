"""Root-mean-square norms over the last dimension, computed in fp32 and cast at the end."""

from __future__ import annotations

from qwench.ops.lazy import F, torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, *, zero_centred: bool) -> torch.Tensor:
    """x [..., D] normalised and scaled by weight [D]; zero-centred weights are stored as (scale - 1)."""
    scale = weight.float() + 1.0 if zero_centred else weight.float()
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * scale).to(x.dtype)


def gated_rms_norm(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """weight * norm(x) * silu(gate), in that order, in gate's type; x [..., D] fp32, gate [..., D], weight [D]."""
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return (weight.float() * normed * F.silu(gate.float())).to(gate.dtype)
