"""Rotary positions: plain, partial, interleaved M-RoPE over (time, height, width), and static YaRN."""

from __future__ import annotations

import math

import numpy as np

from qwench.config import RopeConfig, YarnConfig
from qwench.ops.arrays import Host
from qwench.ops.lazy import torch


def frequencies(rope: RopeConfig) -> Host:
    """Angular frequencies [rotary_dim / 2], fp32, YaRN applied."""
    exponents = np.arange(0, rope.rotary_dim, 2).astype(np.float32) / np.float32(rope.rotary_dim)
    plain = np.float32(1) / (rope.theta ** exponents.astype(np.float64)).astype(np.float32)
    return plain if rope.yarn is None else _yarn(plain, rope, rope.yarn)


def _yarn(plain: Host, rope: RopeConfig, yarn: YarnConfig) -> Host:
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
    ramp = ((np.arange(len(plain), dtype=np.float32) - low) / (high - low)).clip(0, 1)
    slowed: Host = plain / yarn.factor * ramp + plain * (1 - ramp)
    return slowed


def axes(rope: RopeConfig) -> Host:
    """[rotary_dim / 2] which of the three position rows (t, h, w) each frequency reads.

    Interleaved: t, h, w in turn while an axis has frequencies left; the remainder is t's.
    """
    result = np.zeros(rope.rotary_dim // 2, np.int64)
    if rope.mrope_section is not None:
        for axis in (1, 2):
            result[axis : 3 * rope.mrope_section[axis] : 3] = axis
    return result


def cos_sin(positions: Host, frequency: Host, axis: Host, factor: float) -> tuple[Host, Host]:
    """cos and sin [T, rotary_dim / 2] in fp32 for positions [3, T]; ``factor`` is YaRN's attention factor or 1.

    Angles are fp32 products, as everyone's; their cosines come from doubles, so that every machine has the same bits.
    """
    angles = np.ascontiguousarray(positions[axis].T).astype(np.float32) * frequency
    wide = angles.astype(np.float64)
    return np.cos(wide).astype(np.float32) * np.float32(factor), np.sin(wide).astype(np.float32) * np.float32(factor)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first rotary_dim values of each head of x [T, H, D]; dimension j pairs with j + rotary_dim / 2."""
    half = cos.shape[-1]
    cos, sin = cos[:, None], sin[:, None]  # [T, 1, half]
    first, second = x[..., :half].float(), x[..., half : 2 * half].float()
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return torch.cat((turned.to(x.dtype), x[..., 2 * half :]), dim=-1)
