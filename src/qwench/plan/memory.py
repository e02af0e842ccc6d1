"""What a model takes in memory, line by line: weights by group, cache by tokens, states by sequences, buffers.

The same arithmetic sizes the engine's cache (footprint.py) and names its weights (model/parameters.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from qwench.config import CACHE_TILE, EngineConfig, ModelConfig
from qwench.footprint import CacheShape, tower_bytes
from qwench.plan.model import Subject
from qwench.plan.shapes import mtp_parameters, vision_parameters

STEP_TOKENS = EngineConfig.max_step_tokens
BOOKS = 5e6  # bytes of the engine's own tables and objects, and of its code once it ran, as measured
ACTIVATION_BYTES = 4  # the program's values are float32
PLAIN_BYTES = 2  # of a vision tower's and an MTP head's weights


@dataclass(frozen=True)
class Line:
    """One entry of the stack: ``bytes`` and where they come from."""

    name: str
    bytes: float
    detail: str = ""


@dataclass(frozen=True)
class Load:
    """What is asked of the model: ``sequences`` at a time, each of ``context`` tokens."""

    context: int
    sequences: int = 1
    kv_cache_dtype: str = "auto"
    snapshots: int = 0
    pixels: int = 0  # the largest picture


@dataclass(frozen=True)
class Footprint:
    """Everything one process needs. ``weights``, ``cache`` and ``buffers`` are what is allocated for them."""

    weights: tuple[Line, ...]
    cache: tuple[Line, ...]
    buffers: tuple[Line, ...]

    @property
    def lines(self) -> tuple[Line, ...]:
        return (*self.weights, *self.cache, *self.buffers)

    @property
    def total(self) -> float:
        return sum(line.bytes for line in self.lines)


def cache_shape(subject: Subject, load: Load) -> CacheShape:
    return CacheShape.of(subject.config, subject.dtype, load.kv_cache_dtype)


def footprint(subject: Subject, load: Load) -> Footprint:
    return Footprint(tuple(_weights(subject, load)), tuple(_cache(subject, load)), tuple(_buffers(subject, load)))


def _weights(subject: Subject, load: Load) -> list[Line]:
    lines = [
        Line(name, group.bytes, f"{group.parameters / 1e9:.3g} B at {8 * group.bytes / group.parameters:.2f} bits")
        for name, group in subject.groups.items()
    ]
    if load.pixels and vision_parameters(subject.config):
        told = "BF16; loaded when the first picture comes"
        lines.append(Line("vision tower", PLAIN_BYTES * vision_parameters(subject.config), told))
    return lines


def _cache(subject: Subject, load: Load) -> list[Line]:
    kept = cache_shape(subject, load)
    tokens = load.sequences * -(-load.context // CACHE_TILE) * CACHE_TILE
    told = f"{tokens:,} tokens × {kept.token_bytes:,} bytes, {kept.kv_dtype}; attention layers only"
    lines = [Line("keys and values", tokens * kept.token_bytes, told)]
    if kept.sequence_bytes:
        told = f"{load.sequences} × {kept.sequence_bytes / 2**20:.1f} MiB, however long the sequences are"
        lines.append(Line("recurrent states", load.sequences * kept.sequence_bytes, told))
        if load.snapshots:
            told = f"{load.snapshots} prefixes kept"
            lines.append(Line("snapshots", load.snapshots * kept.sequence_bytes, told))
    return lines


def _buffers(subject: Subject, load: Load) -> list[Line]:
    config = subject.config
    tokens = min(STEP_TOKENS, max(load.context, 1))
    work = tokens * ACTIVATION_BYTES * widest_layer(config) + load.sequences * 4 * config.vocab_size
    lines = [Line("work buffers", BOOKS + work, f"a step of {tokens} tokens, logits of {load.sequences}")]
    if load.pixels and config.vision is not None:
        told = f"a picture of {load.pixels:,} pixels"
        lines.append(Line("vision buffers", tower_bytes(config.vision, load.pixels), told))
    return lines


def widest_layer(config: ModelConfig) -> int:
    """Numbers of one token that live at the same time in the widest layer."""
    widths = [2 * config.intermediate_size if not config.moe else 0]
    if config.moe is not None:
        chosen = config.moe.experts_per_token * 2 * config.moe.intermediate_size
        widths.append(chosen + config.moe.num_experts + 2 * config.moe.shared_intermediate_size)
    if config.delta is not None:
        widths.append(config.delta.conv_dim + 2 * config.delta.value_dim)
    query = config.num_heads * config.head_dim
    widths.append((3 if config.attention_gate else 2) * query + 2 * config.num_kv_heads * config.head_dim)
    return 2 * config.hidden_size + max(widths)


def predictor_bytes(config: ModelConfig) -> float:
    """Bytes of the MTP head in BF16, should an engine load it; ours does not yet."""
    return PLAIN_BYTES * mtp_parameters(config)
