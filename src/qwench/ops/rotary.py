"""Rotary positions: plain, partial, interleaved M-RoPE over (time, height, width), and static YaRN."""

from __future__ import annotations

import math

import torch

from qwench.config import RopeConfig, YarnConfig


def frequencies(rope: RopeConfig) -> torch.Tensor:
    """Angular frequencies [rotary_dim / 2], fp32, YaRN applied."""
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.float32) / rope.rotary_dim
    plain = 1.0 / rope.theta**exponents
    return plain if rope.yarn is None else _yarn(plain, rope, rope.yarn)


def _yarn(plain: torch.Tensor, rope: RopeConfig, yarn: YarnConfig) -> torch.Tensor:
    """Fast frequencies stay, slow ones are divided by the factor, a linear ramp lies between."""

    def dimension_of(rotations: float) -> float:
        turns = yarn.original_max_positions / (rotations * 2 * math.pi)
        return rope.rotary_dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = dimension_of(yarn.beta_fast), dimension_of(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    if low == high:
        high += 0.001  # an empty ramp must still be a step, not a division by zero
    ramp = ((torch.arange(plain.numel(), dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return plain / yarn.factor * ramp + plain * (1 - ramp)


def axes(rope: RopeConfig) -> torch.Tensor:
    """[rotary_dim / 2] which of the three position rows (t, h, w) each frequency reads.

    Interleaved: t, h, w in turn while an axis has frequencies left; the remainder is t's.
    """
    result = torch.zeros(rope.rotary_dim // 2, dtype=torch.int64)
    if rope.mrope_section is not None:
        for axis in (1, 2):
            result[axis : 3 * rope.mrope_section[axis] : 3] = axis
    return result


def cos_sin(
    positions: torch.Tensor, frequency: torch.Tensor, axis: torch.Tensor, factor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [T, rotary_dim / 2] in fp32 for positions [3, T]; ``factor`` is YaRN's attention factor or 1."""
    angles = positions[axis].T.contiguous().float() * frequency
    return angles.cos() * factor, angles.sin() * factor


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first rotary_dim values of each head of x [T, H, D]; dimension j pairs with j + rotary_dim / 2."""
    half = cos.shape[-1]
    cos, sin = cos[:, None], sin[:, None]  # [T, 1, half]
    first, second = x[..., :half].float(), x[..., half : 2 * half].float()
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return torch.cat((turned.to(x.dtype), x[..., 2 * half :]), dim=-1)
