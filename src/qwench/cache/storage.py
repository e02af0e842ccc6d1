"""The tensors behind pages and slots, and their sizes: one arithmetic for the allocator and for any plan.

It does not decide who owns what (pool) nor when (the scheduler).
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qwench.config import ModelConfig
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
        """Keys and values of one token in all attention layers."""
        return 2 * self.num_attention_layers * self.num_kv_heads * self.head_dim * self.kv_dtype.itemsize

    @property
    def kv_dtype(self) -> torch.dtype:
        return torch.int8 if self.coded else self.dtype

    @property
    def sequence_bytes(self) -> int:
        """Recurrent (fp32) and convolution state of one sequence in all DeltaNet layers."""
        heads, key_dim, value_dim = self.state_shape
        columns, channels = self.conv_shape
        return self.num_delta_layers * (heads * key_dim * value_dim * 4 + channels * columns * self.dtype.itemsize)


class Storage:
    """keys[l], values[l] [pages * page_size, K, kept D], a page's inside as the kernels lay it out;
    conv[l] [slots, K-1, C]; recurrent[l] [slots, Hv, dk, dv] fp32."""

    def __init__(self, spec: CacheSpec, *, num_pages: int, page_size: int, num_slots: int, device: str) -> None:
        def empty(count: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
            return [_zeros(shape, dtype, device) for _ in range(count)]

        self.page_size = page_size
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
