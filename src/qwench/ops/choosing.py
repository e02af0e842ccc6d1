"""Passes over a vocabulary's logits that choosing a token needs: the largest, the largest few, a draw from all.

Plain torch, and the native library where there is one; what is chosen comes as numpy's arrays either way. It does not
know what a request asks for (engine/sampling does).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_double, c_int64, c_void_p
from typing import Protocol

import numpy as np

from qwench.ops.arrays import FLOAT32, Array, Host, address_of, as_torch, like, to_host
from qwench.ops.lazy import torch
from qwench.ops.native import Native, load_library

MOST = 8192  # beyond it a sort of the whole vocabulary costs less than choosing


class Chooser(Protocol):
    """The passes. Logits are fp32, of one row [V] or of many [L, V], where the kernels left them."""

    def largest(self, logits: Array) -> list[int]:
        """Of each row of logits [L, V] the place of its largest, the first of equals; -1 where one is not finite."""

    def top(self, logits: Array, count: int) -> tuple[Host, Host]:
        """The ``count`` largest of logits [V], descending, among equals the lower place first; and their places."""

    def draw(self, logits: Array, temperature: float, *, floor: float = 0.0, point: float = 0.0) -> int:
        """The first place where the sum of weights so far exceeds ``point`` times the sum of all.

        The weight of a logit of [V] is e^((logit - maximum) / temperature), or none where that is below ``floor``.
        """

    def mass(self, logits: Array, temperature: float) -> float:
        """The sum of all weights of logits [V], without a floor."""


def take(logits: Array, places: Sequence[int]) -> Host:
    """The logits of a row [V] at ``places``."""
    return to_host(logits[list(places)])


def replaced(logits: Array, places: Sequence[int], values: Host) -> Array:
    """A copy of a row [V] with ``values`` at ``places``."""
    changed = logits.copy() if isinstance(logits, np.ndarray) else logits.clone()
    changed[list(places)] = like(logits, values)
    return changed


def masked(logits: Array, mask: bytes) -> Array:
    """A copy of a row [V] in which only the tokens whose bits of ``mask`` are set, lowest first, may be drawn."""
    allowed = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")[: len(logits)].astype(bool)
    if isinstance(logits, np.ndarray):
        return np.where(allowed, logits, np.float32(-np.inf))
    return torch.where(like(logits, allowed), logits, -torch.inf)


class TorchChooser:
    """The reference, on any device."""

    def largest(self, logits: Array) -> list[int]:
        logits = as_torch(logits)
        return torch.where(logits.isfinite().all(-1), logits.argmax(-1), -1).tolist()

    def top(self, logits: Array, count: int) -> tuple[Host, Host]:
        logits = as_torch(logits)
        least = torch.topk(logits, count).values[-1]  # which of equals torch takes there is left open
        places = torch.nonzero(logits >= least)[:, 0]
        values, order = torch.sort(logits[places], descending=True, stable=True)
        return to_host(values[:count]), to_host(places[order[:count]])

    def draw(self, logits: Array, temperature: float, *, floor: float = 0.0, point: float = 0.0) -> int:
        weights = _weights(logits, temperature)
        weights = torch.where(weights >= floor, weights, 0.0)
        cumulative = weights.cumsum(-1)
        # Rounding can carry the point past the last place; the last one that has any weight is meant then.
        last = int(torch.nonzero(weights)[-1])
        return min(int(torch.searchsorted(cumulative, point * cumulative[-1], right=True)), last)

    def mass(self, logits: Array, temperature: float) -> float:
        return float(_weights(logits, temperature).sum())


def _weights(logits: Array, temperature: float) -> torch.Tensor:
    wide = as_torch(logits).double()
    return torch.exp((wide - wide.max()) / temperature)


class DrawArguments(ctypes.Structure):
    """qw_draw_arguments"""

    _fields_ = (
        ("columns", c_int64),
        ("logits", c_void_p),
        ("maximum", c_double),
        ("temperature", c_double),
        ("floor", c_double),
        ("point", c_double),
        ("total", c_double),
        ("place", c_int64),
    )


class NativeChooser:
    """The same by one pass over the memory each, on the CPU."""

    def __init__(self, native: Native) -> None:
        self.native = native
        self._library = load_library()

    def largest(self, logits: Array) -> list[int]:
        logits = to_host(logits)
        assert logits.dtype == FLOAT32
        logits = logits if logits.strides[1] == logits.itemsize else np.ascontiguousarray(logits)
        places = np.empty(len(logits), np.int64)
        rows, columns = logits.shape
        stride = logits.strides[0] // logits.itemsize
        self._library.qw_largest(self.native.context, rows, columns, address_of(logits), stride, address_of(places))
        return places.tolist()

    def top(self, logits: Array, count: int) -> tuple[Host, Host]:
        logits = _dense(logits)
        assert 0 < count <= len(logits)
        if count > MOST:
            order = np.argsort(-logits, kind="stable")[:count]
            return logits[order], order
        values, places = np.empty(count, FLOAT32), np.empty(count, np.int64)
        arguments = len(logits), address_of(logits), count, address_of(values), address_of(places)
        if self._library.qw_top(self.native.context, *arguments):
            raise MemoryError(f"top: {count} of {len(logits)} logits do not fit into memory")
        return values, places

    def draw(self, logits: Array, temperature: float, *, floor: float = 0.0, point: float = 0.0) -> int:
        place: int = self._weigh(logits, temperature, floor, point).place
        return place

    def mass(self, logits: Array, temperature: float) -> float:
        total: float = self._weigh(logits, temperature, 0.0, 0.0).total
        return total

    def _weigh(self, logits: Array, temperature: float, floor: float, point: float) -> DrawArguments:
        logits = _dense(logits)
        maximum = float(self.top(logits, 1)[0][0])
        arguments = DrawArguments(len(logits), address_of(logits), maximum, temperature, floor, point)
        if self._library.qw_draw(self.native.context, ctypes.addressof(arguments)):
            raise MemoryError(f"draw: {len(logits)} logits do not fit into memory")
        return arguments


def _dense(logits: Array) -> Host:
    host = to_host(logits)
    assert host.dtype == FLOAT32
    return np.ascontiguousarray(host)
