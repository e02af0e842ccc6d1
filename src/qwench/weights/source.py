"""Weights as a stream: what every reader of a format offers, so that no model ever lies in memory twice.

Knows no format and nobody who stores what comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from qwench.ops.quantised import Codes, WeightType
from qwench.weights.load import UnusedTensor

Progress = Callable[[int, int], None]
Value = torch.Tensor | Codes
Kind = WeightType | torch.dtype
PIECE_ROWS = 64
PIECE = 2 * 2**20  # numbers of a large matrix that come at once


@dataclass(frozen=True)
class Part:
    """A parameter, or one expert's matrix of it. Matrices may come in several pieces of rows, from the top."""

    name: str
    expert: int | None = None


class WeightSource(Protocol):
    """Every declared parameter, once. Opening one reads headers and raises what does not fit; ``parts`` reads."""

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """The type each parameter will have in memory, known before anything is read."""

    @property
    def unused(self) -> Sequence[UnusedTensor]:
        """What else is stored, and why it is not read."""

    def parts(self, progress: Progress | None = None) -> Iterator[tuple[Part, Value]]:
        """Each part in the type of ``kinds``, on the CPU; experts one at a time, all pieces of a part in a row.

        ``progress(done, total)`` counts the bytes to read.
        """


def piece_rows(width: int) -> int:
    """How many rows of a matrix make a piece."""
    return max(1, PIECE // width // PIECE_ROWS) * PIECE_ROWS
