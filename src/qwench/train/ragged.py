"""A batch of rows of different lengths without padding, and the index tables its operators need.

Tokens of all rows lie one after the other. The delta rule wants chunks: they are ordered by (place in the row, row)
with the longest rows first, so that step t of the scan is one contiguous slice. Attention wants rectangles, so rows
of similar length share one. Legend: T tokens, N chunks, C chunk length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qwench.engine.sight import Span
from qwench.model.positions import Layout
from qwench.train.data.pictures import Grid
from qwench.train.encode import Row, Shown


@dataclass(frozen=True)
class Pictures:
    """Those of a batch that have the same size, P of them, each in R tokens."""

    pixels: Tensor  # [P, height, width, 3], bytes
    at: Tensor  # [P, R] -> token
    caption: Tensor  # [P, R], of SAYINGS


@dataclass(frozen=True)
class Ragged:
    """One shard of one step. `T` as an index means "a zero row"."""

    ids: Tensor  # [T], as read
    positions: Tensor  # [T], counted from each row's start
    axes: Tensor  # [3, T], where they stand in time, height and width
    chunk_of: Tensor  # [N, C] -> token (T where padded)
    token_in_chunks: Tensor  # [T] -> place in the flattened [N * C]
    steps: tuple[int, ...]  # chunks in every step of the scan, falling
    squares: tuple[tuple[int, int], ...]  # rows and length of every rectangle
    square_of: Tensor  # the rectangles one after the other, flattened -> token (T where padded)
    token_in_square: Tensor  # [T] -> place in them
    learn_at: Tensor  # [M] tokens whose successor is learnt
    targets: Tensor  # [M]
    pictures: tuple[Pictures, ...] = ()  # for learning to see, which stays on the CPU

    def to(self, device: torch.device) -> Ragged:
        moved: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) else value for name, value in vars(self).items()
        }
        return Ragged(**moved)


def pack(rows: list[Row], chunk: int) -> Ragged:
    """Lay rows out; the order of rows does not matter to what is computed."""
    rows = sorted(rows, key=lambda row: -len(row.ids))
    lengths = torch.tensor([len(row.ids) for row in rows])
    total = int(lengths.sum())
    starts = torch.cumsum(lengths, 0) - lengths
    row_of = torch.repeat_interleave(torch.arange(len(rows)), lengths)
    positions = torch.arange(total) - starts[row_of]
    counts = (lengths + chunk - 1) // chunk
    steps = [int((counts > step).sum()) for step in range(int(counts[0]))]
    step_starts = torch.tensor([0, *steps]).cumsum(0)
    token_in_chunks = (step_starts[positions // chunk] + row_of) * chunk + positions % chunk
    chunk_of = torch.full((sum(steps) * chunk,), total)
    chunk_of[token_in_chunks] = torch.arange(total)
    squares = _rectangles(lengths.tolist())
    widths = torch.tensor([length for count, length in squares for _ in range(count)])
    token_in_square = (torch.cumsum(widths, 0) - widths)[row_of] + positions
    square_of = torch.full((int(widths.sum()),), total)
    square_of[token_in_square] = torch.arange(total)
    ids = torch.tensor([token for row in rows for token in row.ids])
    read = torch.tensor([token for row in rows for token in row.read])
    learn = torch.tensor([flag for row in rows for flag in row.learn])
    learn_at = torch.nonzero(learn & (positions > 0)).squeeze(1) - 1
    axes = torch.cat([_axes(row) if row.shown else torch.arange(len(row.ids)).expand(3, -1) for row in rows], 1)
    shown = [(start, each) for start, row in zip(starts.tolist(), rows, strict=True) for each in row.shown]
    return Ragged(
        read, positions, axes, chunk_of.view(-1, chunk), token_in_chunks, tuple(steps), squares, square_of,
        token_in_square, learn_at, ids[learn_at + 1], tuple(gather(shown)),
    )  # fmt: skip


def _axes(row: Row) -> Tensor:
    spans = [Span(each.first, *each.grid, b"") for each in row.shown]
    return torch.tensor(Layout(spans).positions(range(len(row.ids))))


def gather(shown: Iterable[tuple[int, Shown]]) -> Iterator[Pictures]:
    """Pictures by size; each comes with the token that its row starts with."""
    by_grid: dict[Grid, list[tuple[int, Shown]]] = {}
    for start, each in shown:
        by_grid.setdefault(each.grid, []).append((start + each.first, each))
    for found in by_grid.values():
        pixels = torch.from_numpy(np.stack([each.pixels for _, each in found]))
        caption = torch.tensor([each.caption for _, each in found])
        yield Pictures(
            pixels, torch.tensor([first for first, _ in found])[:, None] + torch.arange(len(caption[0])), caption
        )


def _rectangles(lengths: list[int]) -> tuple[tuple[int, int], ...]:
    """Cut rows (longest first) into groups whose shortest row has at least 0.7 of the longest one's length."""
    groups: list[tuple[int, int]] = []
    for length in lengths:
        if groups and length >= 0.7 * groups[-1][1]:
            groups[-1] = (groups[-1][0] + 1, groups[-1][1])
        else:
            groups.append((1, length))
    return tuple(groups)
