"""The training forward pass of the vision tower: transformers' parameters, pictures of one size side by side.

Gives what transformers' own forward gives (a test compares them). Legend: P pictures, N patches of one, H width of the
tower; patches come in blocks of four, those that become one row of the language model.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PATCH, MERGE = 16, 2
EPSILON, THETA = 1e-6, 10000.0


@lru_cache(maxsize=64)
def places(rows: int, columns: int, side: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of a grid of patches: weights [N, side * side] of the learned positions, cosines and sines [N, size] of heads."""
    raster = torch.arange(rows * columns).view(rows // MERGE, MERGE, columns // MERGE, MERGE)
    order = raster.transpose(1, 2).flatten()
    weights = torch.einsum("ra,cb->rcab", _stretched(rows, side), _stretched(columns, side)).reshape(-1, side * side)
    frequency = THETA ** -(torch.arange(0, size // 2, 2) / (size // 2))
    turned = (order // columns, order % columns)
    angles = torch.cat([axis[:, None] * frequency for axis in turned] * 2, 1)
    return weights[order], angles.cos(), angles.sin()


def _stretched(count: int, side: int) -> Tensor:
    """[count, side]: `count` places over a line of `side` learned ones, ends upon ends."""
    at = torch.arange(count) * ((side - 1) / max(1, count - 1))
    return (1 - (at[:, None] - torch.arange(side)).abs()).clamp(min=0)


class Tower:
    """One model's eyes, in one dtype for their products; the residual stream stays float32."""

    def __init__(self, visual: Any, dtype: torch.dtype = torch.float32) -> None:
        self.visual, self.dtype = visual, dtype
        self.heads = visual.blocks[0].attn.num_heads

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Bytes [P, height, width, 3] to the states [P, N, H] of the patches and the rows [P, N / 4, out]."""
        visual = self.visual
        count, height, width, _ = pixels.shape
        rows, columns = height // PATCH, width // PATCH
        side = visual.num_grid_per_side
        learned, cos, sin = places(rows, columns, side, visual.pos_embed.weight.shape[1] // self.heads)
        blocks = pixels.view(count, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, 3)
        patches = blocks.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(count, rows * columns, -1)
        # A picture stands still, so the weights of the two frames of a patch may be added up beforehand.
        weight = visual.patch_embed.proj.weight.sum(2).flatten(1)
        x = self._product(patches.to(self.dtype) / 127.5 - 1, weight, visual.patch_embed.proj.bias).float()
        x = x + learned @ visual.pos_embed.weight
        for block in visual.blocks:
            x = x + self._attention(_norm(x, block.norm1), block.attn, cos, sin)
            inner = self._linear(_norm(x, block.norm2), block.mlp.linear_fc1)
            x = x + self._linear(F.gelu(inner, approximate="tanh"), block.mlp.linear_fc2)
        merged = _norm(x, visual.merger.norm).view(count, rows * columns // MERGE**2, -1)
        merged = self._linear(F.gelu(self._linear(merged, visual.merger.linear_fc1)), visual.merger.linear_fc2)
        return x, merged.float()

    def _attention(self, x: Tensor, module: Any, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self._linear(x, module.qkv).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        seen = F.scaled_dot_product_attention(_turned(q, cos, sin), _turned(k, cos, sin), v)
        return self._linear(seen.transpose(1, 2).flatten(2), module.proj)

    def _linear(self, x: Tensor, module: Any) -> Tensor:
        return self._product(x, module.weight, module.bias)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x.to(self.dtype), weight.to(self.dtype), bias.to(self.dtype))


def _norm(x: Tensor, module: Any) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], module.weight, module.bias, EPSILON)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [P, heads, N, size]."""
    first, second = x.chunk(2, -1)
    return (x * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)
