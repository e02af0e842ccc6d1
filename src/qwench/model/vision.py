"""The vision tower: patches of a picture, or of the frames of a video, become rows for the language model.

Two frames lie side by side in a patch, and what a patch sees is the patches of its own moment: a video is its moments
one after the other. Small moments, of whatever pictures, go through the layers side by side, so that weights are read
once for them. Memory is bounded by the largest moment, whose layers go over it in tiles of rows.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F

from qwench.config import VisionConfig
from qwench.model.parameters import declare_vision
from qwench.ops.alone import Angles, Norm, attention_products
from qwench.ops.kernels import Kernels
from qwench.ops.linear import Weight

EPSILON = 1e-6
THETA = 10000.0
TILE = 4096  # patches that go through a layer together
KNOWN = 2 * TILE  # patches whose places are kept
PAUSE = 6_000_000_000  # products that are computed without one
Found = TypeVar("Found")
Grid = tuple[int, int, int]  # moments, rows and columns of patches


@dataclass(frozen=True)
class _Places:
    """Where n patches lie: their learned positions [n, H] as activations are, and the angles by which heads turn."""

    learned: torch.Tensor
    angles: Angles  # [n, head_dim / 2]


@dataclass(frozen=True)
class _Moment:
    """``patches`` [h * w, patch_width] in fp32 of picture or video number ``shown``."""

    shown: int
    patches: torch.Tensor
    height: int
    width: int


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
        self.together = TILE  # patches of several pictures that one pass takes
        self._known: OrderedDict[tuple[int, int], _Places] = OrderedDict()  # of moments' sizes, the last used last

    def encode(self, patches: torch.Tensor, grid: Grid) -> Generator[None, None, torch.Tensor]:
        """Rows [t * h * w / merge^2, out] for patches [t * h * w, patch_width] in fp32: moment after moment, in each
        block after block of patches that become one row. It yields wherever it may be left for a while.
        """
        (rows,) = yield from self.encode_all([(patches, grid)])
        return rows

    def encode_all(self, shown: Sequence[tuple[torch.Tensor, Grid]]) -> Generator[None, None, tuple[torch.Tensor, ...]]:
        """The rows of each of several pictures and videos, as ``encode`` gives them one by one."""
        work = self._encode_all(shown)
        return (yield from _without_threads(work) if self.alone.threaded else work)

    def _encode_all(
        self, shown: Sequence[tuple[torch.Tensor, Grid]]
    ) -> Generator[None, None, tuple[torch.Tensor, ...]]:
        found: list[list[torch.Tensor]] = [[] for _ in shown]
        for moments in _together(itertools.chain.from_iterable(map(self._moments, itertools.count(), shown))):
            rows = yield from self._look(moments, self._places_of(moments))
            merged = [len(moment.patches) // self.config.spatial_merge_size**2 for moment in moments]
            for moment, part in zip(moments, rows.split(merged), strict=True):
                found[moment.shown].append(part)
        while sum(len(places.learned) for places in self._known.values()) > KNOWN:
            self._known.popitem(last=False)
        return tuple(map(torch.cat, found))

    def _moments(self, number: int, shown: tuple[torch.Tensor, Grid]) -> Iterator[_Moment]:
        patches, (moments, height, width) = shown
        expected = [moments * height * width, self.config.patch_width]
        assert list(patches.shape) == expected, f"{list(patches.shape)} for {shown[1]}"
        return (_Moment(number, part, height, width) for part in patches.split(height * width))

    def _look(self, moments: Sequence[_Moment], places: _Places) -> Generator[None, None, torch.Tensor]:
        """At some moments at once: their rows, one after the other."""
        patches = moments[0].patches if len(moments) == 1 else torch.cat([moment.patches for moment in moments])
        starts = (0, *itertools.accumulate(len(moment.patches) for moment in moments))
        x = self._empty(len(patches), self.config.hidden_size)
        for tile in _tiles(len(x)):
            x[tile] = places.learned[tile]
            self._layer(patches[tile].to(self.device, self.dtype), "patch", x[tile], add=True)
        shown = self._empty(len(x), 3 * x.shape[1])
        seen = self._empty(*x.shape)
        hidden = self._empty(min(len(x), TILE), self.config.intermediate_size)
        for index in range(self.config.depth):
            self._attend(x, f"blocks.{index}", places.angles, starts, shown, seen)
            for tile in _tiles(len(x)):
                between = hidden[: len(x[tile])]
                self._layer(x[tile], f"blocks.{index}.up", between, norm=f"blocks.{index}.mlp_norm", gelu=True)
                self._layer(between, f"blocks.{index}.down", x[tile], add=True)
        yield from self.alone.perform(PAUSE)
        del shown, seen, hidden
        block = self.config.spatial_merge_size**2
        rows, together = self._empty(len(x) // block, self.config.out_hidden_size), -(-TILE // block)
        for merged, part in zip(rows.split(together), x.split(together * block), strict=True):
            yield from self._merge(part, merged)
        return rows

    def _attend(
        self,
        x: torch.Tensor,
        name: str,
        angles: Angles,
        starts: Sequence[int],
        shown: torch.Tensor,
        seen: torch.Tensor,
    ) -> None:
        """Each moment, from one of ``starts`` to the next, sees itself whole; x is advanced."""
        for tile in _tiles(len(x), 2 * TILE):
            self._layer(x[tile], f"{name}.qkv", shown[tile], norm=f"{name}.attention_norm")
        heads = shown.view(len(x), 3, self.config.num_heads, -1)
        found = seen.view(len(x), self.config.num_heads, -1)
        together = max(1, PAUSE // attention_products(starts, self.config.head_dim))
        for some in _tiles(self.config.num_heads, together):
            self.alone.attend(heads[:, :, some], starts, angles, found[:, some])
        for tile in _tiles(len(x)):
            self._layer(seen[tile], f"{name}.output", x[tile], add=True)

    def _merge(self, x: torch.Tensor, rows: torch.Tensor) -> Iterator[None]:
        """Each block of patches becomes one of ``rows``."""
        normed = self._empty(*x.shape)
        between = self._empty(len(rows), x.numel() // len(rows))
        self.alone.norm(x, self._norm("merger.norm"), normed)
        self._layer(normed.view(between.shape), "merger.up", between)
        yield from self.alone.perform(PAUSE)
        self._layer(F.gelu(between), "merger.down", rows)
        yield from self.alone.perform(PAUSE)

    def _empty(self, rows: int, width: int) -> torch.Tensor:
        return torch.empty(rows, width, dtype=self.dtype, device=self.device)

    def _layer(
        self,
        x: torch.Tensor,
        name: str,
        to: torch.Tensor,
        *,
        norm: str | None = None,
        gelu: bool = False,
        add: bool = False,
    ) -> None:
        first = None if norm is None else self._norm(norm)
        self.alone.layer(x, self.weights[name], self.vectors[f"{name}.bias"], to, norm=first, gelu=gelu, add=add)

    def _norm(self, name: str) -> Norm:
        return Norm(self.vectors[name], self.vectors[f"{name}.bias"], EPSILON)

    def _places_of(self, moments: Sequence[_Moment]) -> _Places:
        """Of the patches of all ``moments``; those of a size are worked out once."""
        for moment in moments:
            size = moment.height, moment.width
            if size not in self._known:
                self._known[size] = self._places(*size)
            self._known.move_to_end(size)
        each = [self._known[moment.height, moment.width] for moment in moments]
        if len(each) == 1:
            return each[0]
        learned, cos, sin = (
            torch.cat(parts) for parts in zip(*((places.learned, *places.angles) for places in each), strict=True)
        )
        return _Places(learned, Angles(cos, sin))

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
            self._learned(height, width)[order.to(self.device)].to(self.dtype),
            Angles(angles.cos().to(self.device), angles.sin().to(self.device)),
        )

    def _learned(self, height: int, width: int) -> torch.Tensor:
        """The square of learned positions, stretched over a grid of patches, corners upon corners: [h * w, H]."""
        side = math.isqrt(self.config.num_position_embeddings)
        rows, columns = self._stretch(side, height), self._stretch(side, width)
        stretched = (rows @ self.vectors["positions"].view(side, -1)).view(height, side, -1)
        return (columns @ stretched).flatten(0, 1)

    def _stretch(self, side: int, size: int) -> torch.Tensor:
        """[size, side]: how much of each of ``side`` numbers each of ``size`` is, in a line between two neighbours."""
        at = torch.arange(size, dtype=torch.float32, device=self.device) * ((side - 1) / max(1, size - 1))
        at = at.clamp(max=side - 1)
        return (1 - (at[:, None] - torch.arange(side, device=self.device)).abs()).clamp(min=0)


def _without_threads(work: Generator[None, None, Found]) -> Generator[None, None, Found]:
    """``work`` as it is, with torch on the calling thread alone."""
    while True:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            next(work)
        except StopIteration as end:
            found: Found = end.value
            return found
        finally:
            torch.set_num_threads(before)
        yield


def _together(moments: Iterable[_Moment]) -> Iterator[list[_Moment]]:
    """Neighbours, at most TILE patches of them or a single one."""
    here: list[_Moment] = []
    for moment in moments:
        if here and sum(len(each.patches) for each in (*here, moment)) > TILE:
            yield here
            here = []
        here.append(moment)
    yield here


def _tiles(count: int, size: int | None = None) -> Iterator[slice]:
    size = size or TILE
    return (slice(first, min(first + size, count)) for first in range(0, count, size))
