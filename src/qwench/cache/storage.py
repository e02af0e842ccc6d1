"""The tensors behind pages and slots; their sizes are counted in footprint.py, for any plan too.

It does not decide who owns what (pool) nor when (the scheduler).
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qwench.config import ModelConfig
from qwench.footprint import bytes_per_sequence, bytes_per_token
from qwench.ops.attention import kept_width

HUGE_BYTES = 32 << 20  # from here on a tensor takes whole huge pages


@dataclass(frozen=True)
class CacheSpec:
    """What one model keeps per token (attention layers) and per sequence (DeltaNet layers)."""

    num_attention_layers: int
    num_kv_heads: int
    head_dim: int  # elements kept of a head
    num_delta_layers: int
    conv_shape: tuple[int, int]  # [K-1, C]
    state_shape: tuple[int, int, int]  # [Hv, dk, dv]
    dtype: torch.dtype
    coded: bool = False  # keys and values in 8 bits

    @classmethod
    def of(cls, config: ModelConfig, dtype: torch.dtype, kv_cache_dtype: str = "auto") -> CacheSpec:
        delta, coded = config.delta, kv_cache_dtype == "int8"
        return cls(
            num_attention_layers=config.layer_types.count("full_attention"),
            num_kv_heads=config.num_kv_heads,
            head_dim=kept_width(config.head_dim, torch.int8 if coded else dtype),
            coded=coded,
            num_delta_layers=config.layer_types.count("linear_attention"),
            conv_shape=(delta.conv_kernel - 1, delta.conv_dim) if delta else (0, 0),
            state_shape=(delta.num_value_heads, delta.key_head_dim, delta.value_head_dim) if delta else (0, 0, 0),
            dtype=dtype,
        )

    @property
    def token_bytes(self) -> int:
        item = self.kv_dtype.itemsize
        return bytes_per_token(self.num_attention_layers, self.num_kv_heads, self.head_dim, item)

    @property
    def kv_dtype(self) -> torch.dtype:
        return torch.int8 if self.coded else self.dtype

    @property
    def sequence_bytes(self) -> int:
        return bytes_per_sequence(self.num_delta_layers, self.state_shape, self.conv_shape, self.dtype.itemsize)


class Storage:
    """keys[l], values[l] [pages * page_size, K, kept D], a page's inside as the kernels lay it out;
    conv[l] [slots, K-1, C]; recurrent[l] [slots, Hv, dk, dv] fp32."""

    def __init__(self, spec: CacheSpec, *, num_pages: int, page_size: int, num_slots: int, device: str) -> None:
        def empty(count: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
            return [_zeros(shape, dtype, device) for _ in range(count)]

        self.page_size = page_size
        self.page_bytes = page_size * spec.token_bytes
        tokens = (num_pages * page_size, spec.num_kv_heads, spec.head_dim)
        self.keys = empty(spec.num_attention_layers, tokens, spec.kv_dtype)
        self.values = empty(spec.num_attention_layers, tokens, spec.kv_dtype)
        self.conv = empty(spec.num_delta_layers, (num_slots, *spec.conv_shape), spec.dtype)
        self.recurrent = empty(spec.num_delta_layers, (num_slots, *spec.state_shape), torch.float32)
        self.spec = spec

    def reset(self, slots: Sequence[int]) -> None:
        """Zero the states of ``slots``: a slot is handed on dirty, and a new sequence starts from nothing."""
        for slot in slots:
            for states in (*self.conv, *self.recurrent):
                states[slot] = 0

    def read_pages(self, pages: Sequence[int]) -> memoryview:
        """The bytes of ``pages``, layer by layer."""
        chosen = list(pages)
        return _bytes([tokens.unflatten(0, (-1, self.page_size))[chosen] for tokens in (*self.keys, *self.values)])

    def write_pages(self, pages: Sequence[int], data: memoryview, skip: int = 0) -> None:
        """The bytes that ``read_pages`` gave, but for its first ``skip`` pages. Raises ValueError on another size."""
        _fill([tokens.unflatten(0, (-1, self.page_size)) for tokens in (*self.keys, *self.values)], pages, data, skip)

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
                states[target].copy_(states[source])

    def copy_pages(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy keys and values from page to page, pair by pair in this order."""
        for tokens in (*self.keys, *self.values):
            pages = tokens.unflatten(0, (-1, self.page_size))
            for source, target in copies:
                pages[target].copy_(pages[source])


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: str) -> torch.Tensor:
    """Zeros; what is large lies on huge pages where the system grants them: a long context is read faster there."""
    num_bytes = math.prod(shape) * dtype.itemsize
    if device != "cpu" or num_bytes < HUGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(*shape, dtype=dtype, device=device)
    try:
        memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{num_bytes / 2**30:.2f} GiB for the cache are not there") from error
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(*shape)


def _bytes(tensors: Sequence[torch.Tensor]) -> memoryview:
    """One copy of all tensors' bytes in host memory."""
    whole = torch.cat([torch.empty(0, dtype=torch.uint8), *(t.reshape(-1).view(torch.uint8).cpu() for t in tensors)])
    data: Any = whole.numpy()
    return memoryview(data)


def _fill(tensors: Sequence[torch.Tensor], places: Sequence[int], data: memoryview, skip: int = 0) -> None:
    """Write ``data`` to ``places`` of each tensor in turn; it begins with ``skip`` items that are left out."""
    count = skip + len(places)
    sizes = [count * t[0].numel() * t.element_size() for t in tensors]
    if sum(sizes) != len(data):
        raise ValueError(f"it holds {len(data)} bytes where {sum(sizes)} are needed")
    for tensor, size in zip(tensors, sizes, strict=True):
        part, data = data[:size], data[size:]
        values = torch.frombuffer(bytearray(part), dtype=tensor.dtype) if size else tensor.new_empty(0)
        tensor[list(places)] = values.view(count, *tensor.shape[1:])[skip:].to(tensor.device)
