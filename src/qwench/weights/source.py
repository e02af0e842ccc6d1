"""Weights as a stream: what every reader of a format offers, so that no model ever lies in memory twice.

Knows no format and nobody who stores what comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from qwench.config import ModelConfig
from qwench.model.parameters import ParameterSpec, declare
from qwench.ops.arrays import FLOAT32, DType
from qwench.ops.loading import MatrixInFile
from qwench.ops.store import PIECE_ROWS, Kind, Value
from qwench.ops.weight_types import WeightType

Progress = Callable[[int, int], None]
PIECE = 2 * 2**20  # numbers of a large matrix that come at once


@dataclass(frozen=True)
class Part:
    """A parameter, or one expert's matrix of it. Matrices may come in several pieces of rows, from the top."""

    name: str
    expert: int | None = None


@dataclass(frozen=True)
class UnusedTensor:
    """A stored tensor that was left in its file, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str


class WeightSource(Protocol):
    """Every declared parameter, once. Opening one reads headers and raises what does not fit; ``parts`` reads."""

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """The type each parameter will have in memory, known before anything is read."""

    @property
    def unused(self) -> Sequence[UnusedTensor]:
        """What else is stored, and why it is not read."""

    def stored(self) -> Sequence[MatrixInFile]:
        """The matrices that the native library can read and pack by itself, to the bits that ``parts`` would give."""

    def parts(self, progress: Progress | None = None, without: Container[str] = ()) -> Iterator[tuple[Part, Value]]:
        """Each part in the type of ``kinds``, on the CPU; experts one at a time, all pieces of a part in a row.

        Vectors are numpy's arrays, so that who needs nothing else loads no torch; matrices are arrays of either kind,
        or codes.

        Parameters in ``without`` are left out. ``progress(done, total)`` counts the bytes to read.
        """


def plain_kinds(config: ModelConfig, dtype: DType) -> dict[str, Kind]:
    """The types of unquantised weights: ``dtype``, and float32 for what must keep it."""
    return {name: FLOAT32 if spec.kind == "float32" else dtype for name, spec in declare(config).items()}


def memory_bytes(config: ModelConfig, kinds: Mapping[str, Kind]) -> int:
    """Bytes that parameters of these types take, without a kernel's padding."""
    return math.ceil(sum(bits_of(spec, kinds[name]) for name, spec in declare(config).items()) / 8)


def bits_of(spec: ParameterSpec, kind: Kind) -> float:
    """Bits of one parameter, its depth padded as its type asks for."""
    return kind.bits_of(spec.shape) if isinstance(kind, WeightType) else 8 * kind.itemsize * math.prod(spec.shape)


def piece_rows(width: int) -> int:
    """How many rows of a matrix make a piece."""
    return max(1, PIECE // width // PIECE_ROWS) * PIECE_ROWS
