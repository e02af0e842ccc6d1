"""The vision tower: patches of a picture, or of the frames of a video, become rows for the language model.

Two frames lie side by side in a patch, and what a patch sees is the patches of its own moment: a video is its moments
one after the other. So memory is bounded by the largest moment, whose layers go over it in tiles of rows.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from qwench.config import VisionConfig
from qwench.model.parameters import declare_vision
from qwench.ops.kernels import Kernels
from qwench.ops.linear import Weight, linear

EPSILON = 1e-6
THETA = 10000.0
TILE = 4096  # patches that go through a layer together
Grid = tuple[int, int, int]  # moments, rows and columns of patches


@dataclass(frozen=True)
class _Places:
    """Where the n patches of one moment lie: their learned positions [n, H], and the angles by which heads turn."""

    learned: torch.Tensor
    cos: torch.Tensor  # [n, head_dim / 2]
    sin: torch.Tensor


class VisionTower:
    """The tower of ``config`` over ``weights`` (multiplied with) and ``vectors``, named as in model/parameters.

    ``weights`` come out of the store of ``kernels``; vectors are of the activations' type.
    """

    def __init__(
        self, config: VisionConfig, weights: dict[str, Weight], vectors: dict[str, torch.Tensor], kernels: Kernels
    ) -> None:
        self.config, self.weights, self.vectors, self.alone = config, weights, vectors, kernels.alone
        differ = (weights.keys() | vectors.keys()) ^ declare_vision(config).keys()
        assert not differ, f"parameters differ: {sorted(differ)[:5]}"
        self.dtype, self.device = vectors["merger.norm"].dtype, vectors["positions"].device

    def encode(self, patches: torch.Tensor, grid: Grid) -> Generator[None, None, torch.Tensor]:
        """Rows [t * h * w / merge^2, out] for patches [t * h * w, patch_width] in fp32: moment after moment, in each
        block after block of patches that become one row. It yields wherever it may be left for a while.
        """
        moments, height, width = grid
        count = height * width
        assert patches.shape == (moments * count, self.config.patch_width), f"{list(patches.shape)} for {grid}"
        places = self._places(height, width)
        together = max(1, TILE // count)
        found = []
        for first in range(0, moments, together):
            part = patches[first * count : (first + together) * count]
            found.append((yield from self._moments(part, places)))
        return torch.cat(found)

    def _moments(self, patches: torch.Tensor, places: _Places) -> Generator[None, None, torch.Tensor]:
        """Some moments with the same places, at once."""
        x = torch.empty(len(patches), self.config.hidden_size, dtype=self.dtype, device=self.device)
        learned = places.learned.repeat(len(patches) // len(places.learned), 1)
        for tile in _tiles(len(x)):
            x[tile] = self._linear(patches[tile].to(self.device, self.dtype), "patch") + learned[tile].to(self.dtype)
        for index in range(self.config.depth):
            yield from self._attention(x, f"blocks.{index}", places)
            for tile in _tiles(len(x)):
                x[tile] += self._mlp(x[tile], f"blocks.{index}")
                yield
        blocks = x.unflatten(0, (-1, self.config.spatial_merge_size**2))
        return torch.cat([self._merge(blocks[tile]) for tile in _tiles(len(blocks))])

    def _attention(self, x: torch.Tensor, name: str, places: _Places) -> Iterator[None]:
        """Each moment sees itself whole; x is advanced."""
        count, width = len(places.cos), self.config.head_dim
        cos, sin = (angles.repeat(len(x) // count, 1) for angles in (places.cos, places.sin))
        parts = []
        for tile in _tiles(len(x)):
            part = self._linear(self._norm(x[tile], f"{name}.attention_norm"), f"{name}.qkv").unflatten(1, (-1, width))
            self.alone.rotate(part[:, : 2 * self.config.num_heads], cos[tile], sin[tile])  # queries and keys
            parts.append(part)
            yield
        shown = (parts[0] if len(parts) == 1 else torch.cat(parts)).unflatten(1, (3, -1))
        del parts
        seen = self.alone.attend(shown, range(0, len(x) + 1, count)).view(x.shape)
        yield
        for tile in _tiles(len(x)):
            x[tile] += self._linear(seen[tile], f"{name}.output")

    def _mlp(self, x: torch.Tensor, name: str) -> torch.Tensor:
        hidden = self._linear(self._norm(x, f"{name}.mlp_norm"), f"{name}.up")
        return self._linear(self.alone.gelu(hidden), f"{name}.down")

    def _merge(self, x: torch.Tensor) -> torch.Tensor:
        """Blocks [n, merge^2, H] of patches become rows."""
        merged = self._norm(x, "merger.norm").flatten(1)
        return self._linear(F.gelu(self._linear(merged, "merger.up")), "merger.down")

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return linear(x, self.weights[name], self.vectors[f"{name}.bias"])

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self.vectors[name], self.vectors[f"{name}.bias"], EPSILON)

    def _places(self, height: int, width: int) -> _Places:
        """Of every patch of a moment, in the order in which patches come: block after block."""
        merge = self.config.spatial_merge_size
        raster = torch.arange(height * width).view(height // merge, merge, width // merge, merge)
        order = raster.transpose(1, 2).flatten()
        row, column = order // width, order % width
        half = self.config.head_dim // 2
        frequency = THETA ** -(torch.arange(0, half, 2) / half)
        angles = torch.cat((row[:, None] * frequency, column[:, None] * frequency), dim=1)
        return _Places(
            self._learned(height, width)[order.to(self.device)],
            angles.cos().to(self.device),
            angles.sin().to(self.device),
        )

    def _learned(self, height: int, width: int) -> torch.Tensor:
        """The square of learned positions, stretched over a grid of patches, corners upon corners: [h * w, H]."""
        side = math.isqrt(self.config.num_position_embeddings)
        table = self.vectors["positions"].view(side, side, -1)
        for axis, size in enumerate((height, width)):
            at = torch.arange(size, dtype=torch.float32, device=self.device) * ((side - 1) / max(1, size - 1))
            below = at.long().clamp(max=side - 1)
            above = (below + 1).clamp(max=side - 1)
            share = (at - below).view(-1, 1, 1) if axis == 0 else (at - below).view(1, -1, 1)
            table = table.index_select(axis, below) * (1 - share) + table.index_select(axis, above) * share
        return table.flatten(0, 1)


def _tiles(count: int) -> Iterator[slice]:
    return (slice(first, min(first + TILE, count)) for first in range(0, count, TILE))
