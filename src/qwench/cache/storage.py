"""The arrays behind pages and slots; their sizes are counted in footprint.py, for any plan too.

It does not decide who owns what (pool) nor when (the scheduler).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qwench.config import ModelConfig
from qwench.footprint import CacheShape, bytes_per_sequence, bytes_per_token
from qwench.ops.arrays import FLOAT32, INT8, Array, DType, dtype_of, like, to_host, zeros


@dataclass(frozen=True)
class CacheSpec:
    """What one model keeps per token (attention layers) and per sequence (DeltaNet layers)."""

    num_attention_layers: int
    num_kv_heads: int
    head_dim: int  # elements kept of a head
    num_delta_layers: int
    conv_shape: tuple[int, int]  # [K-1, C]
    state_shape: tuple[int, int, int]  # [Hv, dk, dv]
    dtype: DType
    coded: bool = False  # keys and values in 8 bits

    @classmethod
    def of(cls, config: ModelConfig, dtype: DType, kv_cache_dtype: str = "auto") -> CacheSpec:
        """As plans count it, in numpy's own type."""
        kept = CacheShape.of(config, str(dtype), kv_cache_dtype)
        return cls(**{**vars(kept), "dtype": dtype})

    @property
    def token_bytes(self) -> int:
        item = self.kv_dtype.itemsize
        return bytes_per_token(self.num_attention_layers, self.num_kv_heads, self.head_dim, item)

    @property
    def kv_dtype(self) -> DType:
        return INT8 if self.coded else self.dtype

    @property
    def sequence_bytes(self) -> int:
        return bytes_per_sequence(self.num_delta_layers, self.state_shape, self.conv_shape, self.dtype.itemsize)


class Storage:
    """keys[l], values[l] [pages * page_size, K, kept D], a page's inside as the kernels lay it out;
    conv[l] [slots, K-1, C]; recurrent[l] [slots, Hv, dk, dv] fp32. ``memory`` gives them, zeroed."""

    def __init__(
        self,
        spec: CacheSpec,
        *,
        num_pages: int,
        page_size: int,
        num_slots: int,
        memory: Callable[[Sequence[int], DType], Array] = zeros,
    ) -> None:
        def empty(count: int, shape: tuple[int, ...], dtype: DType) -> list[Array]:
            return [memory(shape, dtype) for _ in range(count)]

        self.page_size = page_size
        self.page_bytes = page_size * spec.token_bytes
        tokens = (num_pages * page_size, spec.num_kv_heads, spec.head_dim)
        self.keys = empty(spec.num_attention_layers, tokens, spec.kv_dtype)
        self.values = empty(spec.num_attention_layers, tokens, spec.kv_dtype)
        self.conv = empty(spec.num_delta_layers, (num_slots, *spec.conv_shape), spec.dtype)
        self.recurrent = empty(spec.num_delta_layers, (num_slots, *spec.state_shape), FLOAT32)
        self.spec = spec

    def reset(self, slots: Sequence[int]) -> None:
        """Zero the states of ``slots``: a slot is handed on dirty, and a new sequence starts from nothing."""
        for slot in slots:
            for states in (*self.conv, *self.recurrent):
                states[slot] = 0

    def read_pages(self, pages: Sequence[int]) -> memoryview:
        """The bytes of ``pages``, layer by layer."""
        chosen = list(pages)
        return _bytes([kept[chosen] for kept in self._pages()])

    def write_pages(self, pages: Sequence[int], data: memoryview, skip: int = 0) -> None:
        """The bytes that ``read_pages`` gave, but for its first ``skip`` pages. Raises ValueError on another size."""
        _fill(self._pages(), pages, data, skip)

    def read_state(self, slot: int) -> memoryview:
        """The bytes of the states in ``slot``, layer by layer."""
        return _bytes([states[slot] for states in (*self.conv, *self.recurrent)])

    def write_state(self, slot: int, data: memoryview) -> None:
        """The bytes that ``read_state`` gave. Raises ValueError on another size."""
        _fill([*self.conv, *self.recurrent], [slot], data)

    def copy_states(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy states from slot to slot, pair by pair in this order."""
        for states in (*self.conv, *self.recurrent):
            for source, target in copies:
                states[target] = states[source]

    def copy_pages(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy keys and values from page to page, pair by pair in this order."""
        for kept in self._pages():
            for source, target in copies:
                kept[target] = kept[source]

    def _pages(self) -> list[Array]:
        """Keys and values, page by page."""
        arrays = (*self.keys, *self.values)
        return [each.reshape(len(each) // self.page_size, self.page_size, *each.shape[1:]) for each in arrays]


def _bytes(arrays: Sequence[Array]) -> memoryview:
    """One copy of all arrays' bytes in main memory."""
    parts = [np.ascontiguousarray(to_host(array)).reshape(-1).view(np.uint8) for array in arrays]
    return np.concatenate([np.empty(0, np.uint8), *parts]).data


def _fill(arrays: Sequence[Array], places: Sequence[int], data: memoryview, skip: int = 0) -> None:
    """Write ``data`` to ``places`` of each array in turn; it begins with ``skip`` items that are left out."""
    count = skip + len(places)
    sizes = [count * math.prod(array.shape[1:]) * dtype_of(array).itemsize for array in arrays]
    if sum(sizes) != len(data):
        raise ValueError(f"it holds {len(data)} bytes where {sum(sizes)} are needed")
    for array, size in zip(arrays, sizes, strict=True):
        part, data = data[:size], data[size:]
        values = np.frombuffer(part, dtype_of(array)).reshape(count, *array.shape[1:])[skip:]
        array[list(places)] = like(array, values)
