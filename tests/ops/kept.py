"""Caches of keys and values: empty ones full of NaN, and the native kernels' in the order of the references."""

from __future__ import annotations

import torch

from qwench.config import CACHE_TILE
from qwench.ops.arrays import as_dtype
from qwench.ops.attention import SCALE_BYTES, kept_width

COLUMNS, PANEL = 64, 16  # csrc/packed.h: columns of a group, of which the last has whole panels


def empty(tokens: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> torch.Tensor:
    """A cache in which whatever is read before it was written is NaN: in int8 the scales are."""
    return torch.full(
        (tokens, kv_heads, kept_width(head_dim, as_dtype(dtype))),
        -1 if dtype == torch.int8 else torch.nan,
        dtype=dtype,
    )


def keys_of(cache: torch.Tensor, head_dim: int) -> torch.Tensor:
    """[tokens, K, head_dim], or one more where the last is a scale, of keys as the native kernels keep them."""
    steps = 1 if cache.dtype == torch.float32 else 2
    tiles, width = _tiles(cache), -(-head_dim // steps)
    parts = tiles[..., : width * COLUMNS * steps].unflatten(2, (width, COLUMNS, steps))
    return _with_scales(cache, parts.permute(0, 3, 1, 2, 4).flatten(3)[..., :head_dim].flatten(0, 1))


def values_of(cache: torch.Tensor, head_dim: int) -> torch.Tensor:
    """The same of values."""
    steps = 1 if cache.dtype == torch.float32 else 2
    tiles, groups = _tiles(cache), []
    for first in range(0, head_dim, COLUMNS):
        width = min(COLUMNS, -(-(head_dim - first) // PANEL) * PANEL)
        part = tiles[..., first * CACHE_TILE :][..., : width * CACHE_TILE].unflatten(2, (-1, width, steps))
        groups.append(part.permute(0, 2, 4, 1, 3).flatten(1, 2)[..., : head_dim - first])
    return _with_scales(cache, torch.cat(groups, dim=3).flatten(0, 1))


def reference_of(cache: torch.Tensor, head_dim: int) -> torch.Tensor:
    """The same of keys or values as the references keep them."""
    heads = cache[..., :head_dim]
    if cache.dtype != torch.int8:
        return heads
    return torch.cat((heads.float(), cache[..., -SCALE_BYTES:].contiguous().view(torch.float32)), dim=2)


def _tiles(cache: torch.Tensor) -> torch.Tensor:
    return cache.view(-1, cache.shape[1], CACHE_TILE * cache.shape[2])


def _with_scales(cache: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
    if cache.dtype != torch.int8:
        return heads
    scales = _tiles(cache)[..., -CACHE_TILE * SCALE_BYTES :].contiguous().view(torch.float32)
    return torch.cat((heads.float(), scales.transpose(1, 2).flatten(0, 1)[..., None]), dim=2)
