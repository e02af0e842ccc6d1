"""Weights on their way into memory: every piece is laid out as it arrives, so a second copy of a model never exists.

Shapes and types are known before the first piece comes. It knows neither files nor what a parameter is for.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from qwench.ops.arrays import Array, DType, dtype_of, to_torch
from qwench.ops.lazy import torch
from qwench.ops.linear import Dense, Packed, Quantised, Weight
from qwench.ops.loading import Arena, Loading, MatrixInFile
from qwench.ops.native import PACKED_ROWS, Native, PackedMatrix
from qwench.ops.quantised import Codes, concatenate
from qwench.ops.weight_types import WeightType

Value = Array | Codes
Kind = WeightType | DType
PIECE_ROWS = PACKED_ROWS  # pieces of a matrix are whole multiples of this, but for the last


@dataclass(frozen=True)
class Plan:
    """What will be stored: each weight's shape, [out, in] or [experts, out, in], and type; ``dtype`` of activations."""

    shapes: Mapping[str, tuple[int, ...]]
    kinds: Mapping[str, Kind]
    dtype: DType


class WeightStore(Protocol):
    """Filled from files or piece by piece, then asked once for the weights."""

    def load(
        self, stored: Callable[[], Sequence[MatrixInFile]], begun: Loading | None, told: Callable[[int, int], None]
    ) -> frozenset[str]:
        """Loads what of ``stored`` it can, or what was ``begun``; the names of what is then there.

        ``told(done, total)`` hears the bytes. Raises Unloadable, OSError, and what ``told`` raises.
        """

    def put(self, name: str, expert: int | None, value: Value) -> None:
        """The next rows of weight ``name`` (of one expert), from the top.

        A tensor of a whole [experts, out, in] may come with ``expert`` None.
        """

    def finish(self) -> dict[str, Weight]:
        """All weights, complete."""


class NativeStore:
    """Packs every piece into arenas, which have exactly the size of the model."""

    def __init__(self, native: Native, plan: Plan) -> None:
        self._native, self._plan = native, plan
        self._matrices: dict[tuple[str, int], PackedMatrix] = {}
        self._filled: dict[tuple[str, int], int] = {}

    @functools.cached_property
    def _arena(self) -> Arena:
        """For what comes in pieces."""
        loaded = {name for name, _ in self._matrices}
        return Arena(sum(self._bytes(name) for name in self._plan.shapes if name not in loaded))

    def load(
        self, stored: Callable[[], Sequence[MatrixInFile]], begun: Loading | None, told: Callable[[int, int], None]
    ) -> frozenset[str]:
        loading = begun or Loading(stored())
        loading.finish(self._native.context, lambda done: told(done, loading.num_bytes))
        for matrix in loading.matrices:
            key, kind = (matrix.name, matrix.expert), self._plan.kinds[matrix.name]
            address = loading.addresses[key]
            self._matrices[key] = PackedMatrix(loading.arena, address, matrix.out, matrix.width, kind)
            self._filled[key] = matrix.out
        return loading.names

    def put(self, name: str, expert: int | None, value: Value) -> None:
        if not isinstance(value, Codes) and value.ndim == 3:
            for index, matrix in enumerate(value):
                self.put(name, index, matrix)
            return
        key, kind = (name, expert or 0), self._plan.kinds[name]
        assert kind_of(value) == kind, f"{name}: {kind_of(value)} is not what was planned"
        if key not in self._matrices:
            out, width = self._plan.shapes[name][-2:]
            self._matrices[key] = self._native.reserve(kind, out, width, self._arena)
        first = self._filled.get(key, 0)
        self._native.pack_rows(value, self._matrices[key], first)
        self._filled[key] = first + (value.out if isinstance(value, Codes) else len(value))

    def finish(self) -> dict[str, Weight]:
        weights: dict[str, Weight] = {}
        for name, (*experts, out, _) in self._plan.shapes.items():
            keys = [(name, index) for index in range(math.prod(experts))]
            assert all(self._filled.get(key) == out for key in keys), f"{name} did not come in full"
            weights[name] = Packed(self._native, tuple(self._matrices[key] for key in keys), self._plan.dtype)
        return weights

    def _bytes(self, name: str) -> int:
        *experts, out, width = self._plan.shapes[name]
        return self._native.packed_bytes(self._plan.kinds[name], out, width) * math.prod(experts)


class TorchStore:
    """Keeps what the references compute with: plain tensors on the device, and codes as they are."""

    def __init__(self, plan: Plan, device: str = "cpu") -> None:
        self._plan, self._device = plan, device
        self._tensors: dict[str, torch.Tensor] = {}
        self._codes: dict[tuple[str, int], list[Codes]] = {}
        self._filled: dict[tuple[str, int], int] = {}

    def load(
        self, stored: Callable[[], Sequence[MatrixInFile]], begun: Loading | None, told: Callable[[int, int], None]
    ) -> frozenset[str]:
        """Nothing: the references' form comes from the pieces."""
        del stored, told
        if begun is not None:
            begun.close()
        return frozenset()

    def put(self, name: str, expert: int | None, value: Value) -> None:
        plan, key = self._plan, (name, expert or 0)
        assert kind_of(value) == plan.kinds[name], f"{name}: {kind_of(value)} is not what was planned"
        if isinstance(value, Codes):
            self._codes.setdefault(key, []).append(value.to(self._device))
            return
        value = to_torch(value, self._device)
        if value.shape == plan.shapes[name]:
            self._tensors[name] = value
            return
        if name not in self._tensors:
            self._tensors[name] = torch.empty(plan.shapes[name], dtype=value.dtype, device=self._device)
        target = self._tensors[name] if expert is None else self._tensors[name][expert]
        begin = self._filled.get(key, 0)
        self._filled[key] = begin + len(value)
        target[begin : begin + len(value)].copy_(value)

    def finish(self) -> dict[str, Weight]:
        weights: dict[str, Weight] = {}
        for name, shape in self._plan.shapes.items():
            if name in self._tensors:
                weights[name] = Dense(self._tensors[name])
                continue
            experts = range(math.prod(shape[:-2]))
            weights[name] = Quantised(tuple(self._matrix(name, expert) for expert in experts), self._plan.dtype)
        return weights

    def _matrix(self, name: str, expert: int) -> Codes:
        whole = concatenate(self._codes.pop((name, expert)))
        assert whole.out == self._plan.shapes[name][-2], f"{name} did not come in full"
        return whole


def kind_of(value: Value) -> Kind:
    """The type of a weight or of a piece of one."""
    return value.type if isinstance(value, Codes) else dtype_of(value)
