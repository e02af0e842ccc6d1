"""Every parameter of the language model and of the vision tower: name, shape and kind, from the configuration alone.

The loader fills exactly this table, the planner's counts are checked against it, random weights are drawn from it.
It knows neither a checkpoint's names (weights/names) nor torch. Shapes are [out, in] for matrices.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from qwench.config import DeltaNetConfig, ModelConfig, MoeConfig, VisionConfig

# What may be done to a parameter: matrices and experts may be quantised, vectors follow the activation type,
# float32 parameters keep their precision whatever the activations are (the decay of a state is too sensitive).
ParameterKind = Literal["table", "matrix", "experts", "vector", "float32"]


@dataclass(frozen=True)
class ParameterSpec:
    shape: tuple[int, ...]
    kind: ParameterKind


@functools.lru_cache(maxsize=32)  # a plan asks often, for every published shape
def declare(config: ModelConfig) -> Mapping[str, ParameterSpec]:
    """All parameters of the text model in the order the forward pass reads them."""
    hidden = config.hidden_size
    specs = {"embedding": ParameterSpec((config.vocab_size, hidden), "table")}
    for index, layer_type in enumerate(config.layer_types):
        layer: dict[str, ParameterSpec] = {"mixer_norm": ParameterSpec((hidden,), "vector")}
        if layer_type == "full_attention":
            layer |= _attention(config)
        else:
            assert config.delta is not None, "a linear_attention layer needs config.delta"
            layer |= _delta(config.delta, hidden)
        layer["mlp_norm"] = ParameterSpec((hidden,), "vector")
        if config.sparse_layers[index]:
            assert config.moe is not None, "a sparse layer needs config.moe"
            layer |= _moe(config.moe, hidden)
        else:
            layer |= dict(_swiglu("mlp", config.intermediate_size, hidden))
        specs |= {f"layers.{index}.{name}": spec for name, spec in layer.items()}
    specs["final_norm"] = ParameterSpec((hidden,), "vector")
    if not config.tie_embeddings:
        specs["head"] = ParameterSpec((config.vocab_size, hidden), "matrix")
    return MappingProxyType(specs)


def _attention(config: ModelConfig) -> dict[str, ParameterSpec]:
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    gated = 2 * query if config.attention_gate else query
    return {
        "attention.query": ParameterSpec((gated, config.hidden_size), "matrix"),
        "attention.key": ParameterSpec((key, config.hidden_size), "matrix"),
        "attention.value": ParameterSpec((key, config.hidden_size), "matrix"),
        "attention.query_norm": ParameterSpec((config.head_dim,), "vector"),
        "attention.key_norm": ParameterSpec((config.head_dim,), "vector"),
        "attention.output": ParameterSpec((config.hidden_size, query), "matrix"),
    }


def _delta(delta: DeltaNetConfig, hidden: int) -> dict[str, ParameterSpec]:
    heads = delta.num_value_heads
    return {
        "delta.qkv": ParameterSpec((delta.conv_dim, hidden), "matrix"),
        "delta.gate": ParameterSpec((delta.value_dim, hidden), "matrix"),
        "delta.beta": ParameterSpec((heads, hidden), "matrix"),
        "delta.decay": ParameterSpec((heads, hidden), "matrix"),
        "delta.conv": ParameterSpec((delta.conv_dim, delta.conv_kernel), "vector"),
        "delta.a_log": ParameterSpec((heads,), "float32"),
        "delta.dt_bias": ParameterSpec((heads,), "float32"),
        "delta.norm": ParameterSpec((delta.value_head_dim,), "vector"),
        "delta.output": ParameterSpec((hidden, delta.value_dim), "matrix"),
    }


def _moe(moe: MoeConfig, hidden: int) -> dict[str, ParameterSpec]:
    experts, width = moe.num_experts, moe.intermediate_size
    specs = {
        "moe.router": ParameterSpec((experts, hidden), "matrix"),
        "moe.gate_up": ParameterSpec((experts, 2 * width, hidden), "experts"),
        "moe.down": ParameterSpec((experts, hidden, width), "experts"),
    }
    if moe.shared_intermediate_size:
        specs |= dict(_swiglu("moe.shared", moe.shared_intermediate_size, hidden))
        specs["moe.shared_gate"] = ParameterSpec((1, hidden), "matrix")
    return specs


def _swiglu(prefix: str, width: int, hidden: int) -> Iterator[tuple[str, ParameterSpec]]:
    yield f"{prefix}.gate", ParameterSpec((width, hidden), "matrix")
    yield f"{prefix}.up", ParameterSpec((width, hidden), "matrix")
    yield f"{prefix}.down", ParameterSpec((hidden, width), "matrix")


def declare_vision(vision: VisionConfig) -> dict[str, ParameterSpec]:
    """All parameters of the vision tower in the order it reads them. Every layer has a bias, every norm too."""
    hidden, merged = vision.hidden_size, vision.merged_width
    specs = dict(_biased("patch", hidden, vision.patch_width))
    specs["positions"] = ParameterSpec((vision.num_position_embeddings, hidden), "float32")
    for index in range(vision.depth):
        block = f"blocks.{index}"
        specs |= dict(_layer_norm(f"{block}.attention_norm", hidden))
        specs |= dict(_biased(f"{block}.qkv", 3 * hidden, hidden))
        specs |= dict(_biased(f"{block}.output", hidden, hidden))
        specs |= dict(_layer_norm(f"{block}.mlp_norm", hidden))
        specs |= dict(_biased(f"{block}.up", vision.intermediate_size, hidden))
        specs |= dict(_biased(f"{block}.down", hidden, vision.intermediate_size))
    specs |= dict(_layer_norm("merger.norm", hidden))
    specs |= dict(_biased("merger.up", merged, merged))
    specs |= dict(_biased("merger.down", vision.out_hidden_size, merged))
    return specs


def _biased(name: str, out: int, width: int) -> Iterator[tuple[str, ParameterSpec]]:
    yield name, ParameterSpec((out, width), "matrix")
    yield f"{name}.bias", ParameterSpec((out,), "vector")


def _layer_norm(name: str, width: int) -> Iterator[tuple[str, ParameterSpec]]:
    yield name, ParameterSpec((width,), "vector")
    yield f"{name}.bias", ParameterSpec((width,), "vector")
