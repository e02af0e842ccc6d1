"""Gates: the pointwise products that end a feed-forward or an attention layer."""

from __future__ import annotations

from qwench.ops.lazy import F, torch


def silu_multiply(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, both [T, I]."""
    return F.silu(gate) * up


def sigmoid_multiply(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(gate), shapes equal or broadcast."""
    return x * torch.sigmoid(gate)
