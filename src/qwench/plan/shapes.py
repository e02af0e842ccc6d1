"""The published shapes as data, and what follows from a shape alone: parameters, bytes, cache and state sizes.

Parameters are counted over what ``model/parameters.py`` declares, the very list the loader fills. Knows neither torch
nor a file.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from qwench.config import DeltaNetConfig, LayerType, ModelConfig, MoeConfig, RopeConfig, VisionConfig
from qwench.family import PUBLISHED
from qwench.model.parameters import declare, declare_vision

KiB, MiB = 2**10, 2**20
FULL: LayerType = "full_attention"
LINEAR: LayerType = "linear_attention"


@dataclass(frozen=True)
class Shape:
    """One published model: ``short_name`` (qwen3.5:4b), ``hub_id`` (Qwen/Qwen3.5-4B) and its configuration."""

    short_name: str
    hub_id: str
    config: ModelConfig

    @property
    def title(self) -> str:
        return self.hub_id.partition("/")[2]


@dataclass(frozen=True)
class _Row:
    """What differs between the sizes of one generation. ``experts`` is (number, per token, width), None if dense."""

    hidden: int
    layers: int
    heads: tuple[int, int]  # query heads, key/value heads
    tied: bool
    intermediate: int = 0
    experts: tuple[int, int, int] | None = None
    value_heads: int = 0  # of Gated DeltaNet
    vision: tuple[int, int, int, int] = (0, 0, 0, 0)  # depth, hidden, heads, intermediate


_SMALL, _MEDIUM, _LARGE = (12, 768, 12, 3072), (24, 1024, 16, 4096), (27, 1152, 16, 4304)
_QWEN35 = {
    "0.8b": _Row(1024, 24, (8, 2), True, 3584, value_heads=16, vision=_SMALL),
    "2b": _Row(2048, 24, (8, 2), True, 6144, value_heads=16, vision=_MEDIUM),
    "4b": _Row(2560, 32, (16, 4), True, 9216, value_heads=32, vision=_MEDIUM),
    "9b": _Row(4096, 32, (16, 4), False, 12288, value_heads=32, vision=_LARGE),
    "27b": _Row(5120, 64, (24, 4), False, 17408, value_heads=48, vision=_LARGE),
    "35b-a3b": _Row(2048, 40, (16, 2), False, experts=(256, 8, 512), value_heads=32, vision=_LARGE),
    "122b-a10b": _Row(3072, 48, (32, 2), False, experts=(256, 8, 1024), value_heads=64, vision=_LARGE),
    "397b-a17b": _Row(4096, 60, (32, 2), False, experts=(512, 10, 1024), value_heads=64, vision=_LARGE),
}
_QWEN3 = {
    "0.6b": _Row(1024, 28, (16, 8), True, 3072),
    "1.7b": _Row(2048, 28, (16, 8), True, 6144),
    "4b": _Row(2560, 36, (32, 8), True, 9728),
    "8b": _Row(4096, 36, (32, 8), False, 12288),
    "14b": _Row(5120, 40, (40, 8), False, 17408),
    "32b": _Row(5120, 64, (64, 8), False, 25600),
    "30b-a3b": _Row(2048, 48, (32, 4), False, experts=(128, 8, 768)),
    "235b-a22b": _Row(4096, 94, (64, 4), False, experts=(128, 8, 1536)),
}


def _qwen35(row: _Row) -> ModelConfig:
    depth, hidden, heads, intermediate = row.vision
    return ModelConfig(
        model_type="qwen3_5_moe" if row.experts else "qwen3_5",
        vocab_size=248320,
        hidden_size=row.hidden,
        intermediate_size=row.intermediate,
        num_heads=row.heads[0],
        num_kv_heads=row.heads[1],
        head_dim=256,
        layer_types=(LINEAR, LINEAR, LINEAR, FULL) * (row.layers // 4),
        sparse_layers=(row.experts is not None,) * row.layers,
        attention_gate=True,
        zero_centred_norms=True,
        rms_norm_eps=1e-6,
        tie_embeddings=row.tied,
        max_positions=262144,
        rope=RopeConfig(theta=1e7, rotary_dim=64, mrope_section=(11, 11, 10), yarn=None),
        delta=DeltaNetConfig(16, row.value_heads, key_head_dim=128, value_head_dim=128, conv_kernel=4),
        moe=MoeConfig(*row.experts, row.experts[2], normalise_top_k=True) if row.experts else None,
        vision=VisionConfig(depth, hidden, heads, intermediate, row.hidden, 2304, 16, 2, 2, 3),
        num_mtp_layers=1,
        eos_token_ids=(248046, 248044),
        image_token_id=248056,
        video_token_id=248057,
        dtype="bfloat16",
    )


def _qwen3(row: _Row) -> ModelConfig:
    return ModelConfig(
        model_type="qwen3_moe" if row.experts else "qwen3",
        vocab_size=151936,
        hidden_size=row.hidden,
        intermediate_size=row.intermediate,
        num_heads=row.heads[0],
        num_kv_heads=row.heads[1],
        head_dim=128,
        layer_types=(FULL,) * row.layers,
        sparse_layers=(row.experts is not None,) * row.layers,
        attention_gate=False,
        zero_centred_norms=False,
        rms_norm_eps=1e-6,
        tie_embeddings=row.tied,
        max_positions=40960,
        rope=RopeConfig(theta=1e6, rotary_dim=128, mrope_section=None, yarn=None),
        delta=None,
        moe=MoeConfig(*row.experts, 0, normalise_top_k=True) if row.experts else None,
        vision=None,
        num_mtp_layers=0,
        eos_token_ids=(151645, 151643),
        image_token_id=None,
        video_token_id=None,
        dtype="bfloat16",
    )


def _published() -> Iterator[Shape]:
    for generation, rows, build in (("qwen3.5", _QWEN35, _qwen35), ("qwen3", _QWEN3, _qwen3)):
        for size, row in rows.items():
            name = f"{generation}:{size}"
            yield Shape(name, PUBLISHED[name], build(row))


SHAPES: tuple[Shape, ...] = tuple(_published())


def lookup(name: str) -> Shape | None:
    """The shape with this short name (qwen3.5:4b), Hub id (Qwen/Qwen3.5-4B) or title (Qwen3.5-4B), in any case."""
    wanted = name.lower()
    for shape in SHAPES:
        if wanted in (shape.short_name, shape.hub_id.lower(), shape.title.lower()):
            return shape
    return None


def text_tensors(config: ModelConfig) -> Iterator[tuple[int, ...]]:
    """The shape of every tensor of the text model."""
    return (spec.shape for spec in declare(config).values())


def vision_tensors(config: ModelConfig) -> Iterator[tuple[int, ...]]:
    """The shape of every tensor of the vision tower; nothing where there is none."""
    return (spec.shape for spec in (declare_vision(config.vision) if config.vision else {}).values())


def mtp_tensors(config: ModelConfig) -> Iterator[tuple[int, ...]]:
    """The shape of every tensor of the multi-token prediction head; embedding and head are the text model's own."""
    if config.num_mtp_layers == 0:
        return
    hidden, count = config.hidden_size, config.num_mtp_layers
    yield (hidden, 2 * hidden)
    yield from ((hidden,),) * 3
    own = replace(config, layer_types=(FULL,) * count, sparse_layers=(config.moe is not None,) * count)
    yield from (spec.shape for name, spec in declare(own).items() if name.startswith("layers."))


@functools.lru_cache(maxsize=64)
def text_parameters(config: ModelConfig) -> int:
    return sum(map(math.prod, text_tensors(config)))


def vision_parameters(config: ModelConfig) -> int:
    return sum(map(math.prod, vision_tensors(config)))


def mtp_parameters(config: ModelConfig) -> int:
    return sum(map(math.prod, mtp_tensors(config)))


def total_parameters(config: ModelConfig) -> int:
    """Everything in the published checkpoint: text model, vision tower and multi-token prediction head."""
    return text_parameters(config) + vision_parameters(config) + mtp_parameters(config)


@functools.lru_cache(maxsize=64)
def active_parameters(config: ModelConfig) -> int:
    """Text parameters that one token multiplies with, the head included and an untied embedding (one row) not."""
    active = text_parameters(config)
    if not config.tie_embeddings:
        active -= config.vocab_size * config.hidden_size
    if config.moe is not None:
        idle = config.moe.num_experts - config.moe.experts_per_token
        active -= sum(config.sparse_layers) * idle * 3 * config.hidden_size * config.moe.intermediate_size
    return active


def bytes_at(parameters: int, bits: float) -> int:
    """Bytes of so many parameters at ``bits`` each, scales and headers not counted."""
    return math.ceil(parameters * bits / 8)
