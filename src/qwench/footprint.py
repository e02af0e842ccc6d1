"""What a sequence keeps in memory: one arithmetic for the cache's tensors, the engine's start and every plan.

Knows neither torch nor who owns a page. Weights are counted over ``model/parameters.py`` and the types of
``ops/weight_types.py``, equally without torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qwench.config import ModelConfig, VisionConfig

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
STATE_BYTES = 4  # the recurrent state is float32 always
DEPTH_TILE = 32  # csrc/packed.h
SCALE_BYTES = 4


def kept_width(head_dim: int, *, coded: bool) -> int:
    """Elements kept of a head: its width in whole tiles of the kernels, and of codes their scale's bytes."""
    return -(-head_dim // DEPTH_TILE) * DEPTH_TILE + (SCALE_BYTES if coded else 0)


def bytes_per_token(layers: int, kv_heads: int, kept: int, item_bytes: int) -> int:
    """Keys and values of one token in all attention layers."""
    return 2 * layers * kv_heads * kept * item_bytes


def bytes_per_sequence(layers: int, state: tuple[int, ...], conv: tuple[int, ...], item_bytes: int) -> int:
    """Recurrent (fp32) and convolution state of one sequence in all DeltaNet layers."""
    return layers * (math.prod(state) * STATE_BYTES + math.prod(conv) * item_bytes)


def tower_bytes(vision: VisionConfig, pixels: int) -> float:
    """A tower's activations for one picture: residual, queries, keys, values and the wider half of its MLP."""
    wide = max(4 * vision.hidden_size, vision.hidden_size + vision.intermediate_size)
    return pixels / vision.patch_size**2 * ITEM_BYTES["float32"] * (vision.hidden_size + wide)


def largest_picture(vision: VisionConfig, window: int, memory: int) -> int:
    """Pixels of the largest picture whose tokens take half of ``window`` and which a quarter of ``memory`` can look at.

    The latter as a power of two: what is seen of a picture must not change with every free megabyte.
    """
    patch_bytes = ITEM_BYTES["float32"] * vision.patch_width / vision.patch_size**2
    held = int(memory / 4 / (tower_bytes(vision, 1) + patch_bytes))
    token = (vision.patch_size * vision.spatial_merge_size) ** 2
    return max(token, min(window // 2 * token, 1 << max(0, held.bit_length() - 1)))


@dataclass(frozen=True)
class CacheShape:
    """What one model keeps per token (attention layers) and per sequence (DeltaNet layers)."""

    num_attention_layers: int
    num_kv_heads: int
    head_dim: int  # elements kept of a head
    num_delta_layers: int
    conv_shape: tuple[int, int]  # [K-1, C]
    state_shape: tuple[int, int, int]  # [Hv, dk, dv]
    dtype: str
    coded: bool = False  # keys and values in 8 bits

    @classmethod
    def of(cls, config: ModelConfig, dtype: str, kv_cache_dtype: str = "auto") -> CacheShape:
        delta, coded = config.delta, kv_cache_dtype == "int8"
        return cls(
            num_attention_layers=config.layer_types.count("full_attention"),
            num_kv_heads=config.num_kv_heads,
            head_dim=kept_width(config.head_dim, coded=coded),
            num_delta_layers=config.layer_types.count("linear_attention"),
            conv_shape=(delta.conv_kernel - 1, delta.conv_dim) if delta else (0, 0),
            state_shape=(delta.num_value_heads, delta.key_head_dim, delta.value_head_dim) if delta else (0, 0, 0),
            dtype=dtype,
            coded=coded,
        )

    @property
    def kv_dtype(self) -> str:
        return "int8" if self.coded else self.dtype

    @property
    def token_bytes(self) -> int:
        item = ITEM_BYTES[self.kv_dtype]
        return bytes_per_token(self.num_attention_layers, self.num_kv_heads, self.head_dim, item)

    @property
    def sequence_bytes(self) -> int:
        item = ITEM_BYTES[self.dtype]
        return bytes_per_sequence(self.num_delta_layers, self.state_shape, self.conv_shape, item)

    @property
    def recurrent_bytes(self) -> int:
        """Of ``sequence_bytes`` the recurrent states."""
        return bytes_per_sequence(self.num_delta_layers, self.state_shape, (0,), 0)

    @property
    def conv_bytes(self) -> int:
        """Of ``sequence_bytes`` the last inputs of the convolutions."""
        return self.sequence_bytes - self.recurrent_bytes
