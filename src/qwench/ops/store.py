"""Weights on their way into memory: every piece is laid out as it arrives, so a second copy of a model never exists.

Shapes and types are known before the first piece comes. It knows neither files nor what a parameter is for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from qwench.ops.linear import Dense, Packed, Quantised, Weight
from qwench.ops.native import Arena, Native, PackedMatrix
from qwench.ops.quantised import Codes, WeightType, concatenate

Value = torch.Tensor | Codes
Kind = WeightType | torch.dtype
PIECE_ROWS = 64  # pieces of a matrix are whole multiples of this, but for the last: what kernels keep side by side


@dataclass(frozen=True)
class Plan:
    """What will be stored: each weight's shape, [out, in] or [experts, out, in], and type; ``dtype`` of activations."""

    shapes: Mapping[str, tuple[int, ...]]
    kinds: Mapping[str, Kind]
    dtype: torch.dtype
    device: str = "cpu"


class WeightStore(Protocol):
    """Filled piece by piece, then asked once for the weights."""

    def put(self, name: str, expert: int | None, value: Value) -> None:
        """The next rows of weight ``name`` (of one expert), from the top; a matrix is finished before another begins.

        A tensor of a whole [experts, out, in] may come with ``expert`` None.
        """

    def finish(self) -> dict[str, Weight]:
        """All weights, complete."""


class NativeStore:
    """Packs every piece into one arena, which has exactly the size of the model."""

    def __init__(self, native: Native, plan: Plan) -> None:
        self._native, self._plan = native, plan
        self._arena = Arena(sum(self._bytes(name) for name in plan.shapes))
        self._finished: dict[str, dict[int, PackedMatrix]] = {name: {} for name in plan.shapes}
        self._open: tuple[str, int, PackedMatrix] | None = None

    def put(self, name: str, expert: int | None, value: Value) -> None:
        if isinstance(value, torch.Tensor) and value.dim() == 3:
            for index, matrix in enumerate(value):
                self.put(name, index, matrix)
            return
        assert kind_of(value) == self._plan.kinds[name], f"{name}: {kind_of(value)} is not what was planned"
        packed = self._pack(value)
        if self._open is not None:
            packed = self._joined(name, expert or 0, packed)
        if packed.out == self._plan.shapes[name][-2]:
            self._finished[name][expert or 0] = packed
            self._open = None
        else:
            self._open = name, expert or 0, packed

    def finish(self) -> dict[str, Weight]:
        weights: dict[str, Weight] = {}
        for name, shape in self._plan.shapes.items():
            found = self._finished[name]
            assert len(found) == math.prod(shape[:-2]), f"{name}: only {len(found)} of {shape} came"
            weights[name] = Packed(self._native, tuple(found[index] for index in range(len(found))), self._plan.dtype)
        return weights

    def _bytes(self, name: str) -> int:
        *experts, out, width = self._plan.shapes[name]
        return self._native.packed_bytes(self._element(name), out, width) * math.prod(experts)

    def _element(self, name: str) -> torch.dtype:
        kind = self._plan.kinds[name]
        assert isinstance(kind, torch.dtype), f"{name}: the native kernels do not have {kind}"
        return kind

    def _pack(self, value: Value) -> PackedMatrix:
        assert isinstance(value, torch.Tensor)
        return self._native.pack(value, self._arena)

    def _joined(self, name: str, expert: int, packed: PackedMatrix) -> PackedMatrix:
        """``packed`` with the rows before it: whole groups lie one behind the other, so the two are one matrix."""
        assert self._open is not None
        former, index, first = self._open
        assert (former, index) == (name, expert), f"{name} began before {former} was complete"
        size = self._native.packed_bytes(self._element(name), first.out, first.width)
        assert first.out % PIECE_ROWS == 0, f"{name}: a piece of {first.out} rows, not a multiple of {PIECE_ROWS}"
        assert packed.address == first.address + size, f"{name}: pieces do not follow one another in memory"
        return replace(first, out=first.out + packed.out)


class TorchStore:
    """Keeps what the references compute with: plain tensors on the device, and codes as they are."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._tensors: dict[str, torch.Tensor] = {}
        self._codes: dict[tuple[str, int], list[Codes]] = {}
        self._filled: dict[tuple[str, int], int] = {}

    def put(self, name: str, expert: int | None, value: Value) -> None:
        plan, key = self._plan, (name, expert or 0)
        assert kind_of(value) == plan.kinds[name], f"{name}: {kind_of(value)} is not what was planned"
        if isinstance(value, Codes):
            self._codes.setdefault(key, []).append(value.to(plan.device))
            return
        if value.shape == plan.shapes[name]:
            self._tensors[name] = value.to(plan.device)
            return
        if name not in self._tensors:
            self._tensors[name] = torch.empty(plan.shapes[name], dtype=value.dtype, device=plan.device)
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
        assert whole.out == self._plan.shapes[name][-2], f"{name}: only {whole.out} rows came"
        return whole


def kind_of(value: Value) -> Kind:
    """The type of a weight or of a piece of one."""
    return value.dtype if isinstance(value, torch.Tensor) else value.type
