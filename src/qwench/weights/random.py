"""Random weights of any shape, for benchmarks and trials without a checkpoint. Knows no files.

Values come from one pool of normal numbers, read on and on at a running offset: the cost is one write of memory. The
same seed gives the same weights on every device.
"""

from __future__ import annotations

import math

import torch

from qwench.config import ModelConfig
from qwench.model.parameters import ParameterSpec, declare

POOL = 4_194_301  # a prime, so that rows of a matrix do not repeat one another


def random_weights(config: ModelConfig, *, device: str, dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
    """Every declared parameter, scaled so that activations stay near one and states decay as trained ones do."""
    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(seed)).to(device)
    scaled: dict[tuple[float, torch.dtype], torch.Tensor] = {}  # a model has only a handful of spreads
    offset = 0
    tensors: dict[str, torch.Tensor] = {}
    for name, spec in declare(config).items():
        kept = torch.float32 if spec.kind == "float32" else dtype
        mean, deviation = _distribution(name, spec, config)
        if (deviation, kept) not in scaled:
            scaled[deviation, kept] = (pool * deviation).to(kept)
        tensor = torch.empty(spec.shape, dtype=kept, device=device)
        offset = _fill(tensor.view(-1), scaled[deviation, kept], offset)
        if mean:
            tensor += mean
        tensors[name] = tensor
    return tensors


def _fill(flat: torch.Tensor, pool: torch.Tensor, offset: int) -> int:
    """Copy pool values, starting at ``offset`` and wrapping round; returns where the next tensor starts."""
    position = 0
    while position < len(flat):
        count = min(len(flat) - position, len(pool) - offset)
        flat[position : position + count].copy_(pool[offset : offset + count])
        position += count
        offset = (offset + count) % len(pool)
    return offset


def _distribution(name: str, spec: ParameterSpec, config: ModelConfig) -> tuple[float, float]:
    """Mean and standard deviation of a parameter."""
    if name.endswith("a_log"):
        return -1.5, 1.0  # decay rates exp(a_log) from about 0.03 to 1.5, as in trained models
    if name.endswith("dt_bias"):
        return -1.5, 1.0
    if name.endswith("delta.conv"):
        return 0.0, 1.0 / math.sqrt(spec.shape[-1])
    if spec.kind == "vector":
        plain = name.endswith("delta.norm") or not config.zero_centred_norms
        return (1.0 if plain else 0.0), 0.1
    if spec.kind == "table":
        return 0.0, 0.3
    return 0.0, 1.0 / math.sqrt(spec.shape[-1])
