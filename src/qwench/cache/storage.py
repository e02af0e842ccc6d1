"""The tensors behind pages and slots, and their sizes: one arithmetic for the allocator and for any plan.

It does not decide who owns what (pool) nor when (the scheduler).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qwench.config import ModelConfig


@dataclass(frozen=True)
class CacheSpec:
    """What one model keeps per token (attention layers) and per sequence (DeltaNet layers)."""

    num_attention_layers: int
    num_kv_heads: int
    head_dim: int
    num_delta_layers: int
    conv_shape: tuple[int, int]  # [K-1, C]
    state_shape: tuple[int, int, int]  # [Hv, dk, dv]
    dtype: torch.dtype

    @classmethod
    def of(cls, config: ModelConfig, dtype: torch.dtype) -> CacheSpec:
        delta = config.delta
        return cls(
            num_attention_layers=config.layer_types.count("full_attention"),
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            num_delta_layers=config.layer_types.count("linear_attention"),
            conv_shape=(delta.conv_kernel - 1, delta.conv_dim) if delta else (0, 0),
            state_shape=(delta.num_value_heads, delta.key_head_dim, delta.value_head_dim) if delta else (0, 0, 0),
            dtype=dtype,
        )

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token in all attention layers."""
        return 2 * self.num_attention_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def sequence_bytes(self) -> int:
        """Recurrent (fp32) and convolution state of one sequence in all DeltaNet layers."""
        heads, key_dim, value_dim = self.state_shape
        columns, channels = self.conv_shape
        return self.num_delta_layers * (heads * key_dim * value_dim * 4 + channels * columns * self.dtype.itemsize)


class Storage:
    """keys[l], values[l] [pages * page_size, K, D]; conv[l] [slots, K-1, C]; recurrent[l] [slots, Hv, dk, dv] fp32."""

    def __init__(self, spec: CacheSpec, *, num_pages: int, page_size: int, num_slots: int, device: str) -> None:
        def empty(count: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
            return [torch.zeros(shape, dtype=dtype, device=device) for _ in range(count)]

        self.page_size = page_size
        tokens = (num_pages * page_size, spec.num_kv_heads, spec.head_dim)
        self.keys = empty(spec.num_attention_layers, tokens, spec.dtype)
        self.values = empty(spec.num_attention_layers, tokens, spec.dtype)
        self.conv = empty(spec.num_delta_layers, (num_slots, *spec.conv_shape), spec.dtype)
        self.recurrent = empty(spec.num_delta_layers, (num_slots, *spec.state_shape), torch.float32)

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
