"""Recipes: every matrix has its group, small ones that steer are left alone, and the sizes are those promised."""

from __future__ import annotations

import pytest

from qwench.config import ModelConfig
from qwench.model.parameters import declare
from qwench.ops.arrays import BFLOAT16
from qwench.ops.store import Kind
from qwench.ops.weight_types import WeightType
from qwench.plan.shapes import SHAPES, Shape, lookup
from qwench.quantisation import QUANTIZATIONS
from qwench.weights.recipe import RECIPES, kinds_for
from qwench.weights.source import memory_bytes, plain_kinds

LEFT = ("moe.router", "moe.shared_gate", "delta.beta", "delta.decay")
# GB that the weights of a published shape may take (text model, scales counted).
LARGEST = {
    ("qwen3.5:0.8b", "q4"): 0.518,  # what llama.cpp reads for a token at Q4_K_M
    ("qwen3.5:0.8b", "q8"): 0.805,
    ("qwen3.5:4b", "q4"): 2.70,
    ("qwen3.5:27b", "q4"): 16.9,
    ("qwen3.5:35b-a3b", "q4"): 20.5,  # beside its cache in 24 GiB
    ("qwen3.5:35b-a3b", "q2"): 14.0,
    ("qwen3:32b", "q4"): 20.2,
}


def config_of(name: str) -> ModelConfig:
    shape = lookup(name)
    assert shape is not None
    return shape.config


def bits(kind: Kind) -> float:
    return kind.bits_per_weight if isinstance(kind, WeightType) else 8 * kind.itemsize


def test_there_is_a_recipe_for_every_option() -> None:
    assert tuple(RECIPES) == QUANTIZATIONS


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.short_name)
def test_every_matrix_is_quantised_but_those_that_steer(shape: Shape, quantization: str) -> None:
    kinds = kinds_for(shape.config, quantization, BFLOAT16)
    plain = plain_kinds(shape.config, BFLOAT16)
    for name, spec in declare(shape.config).items():
        steers = name.endswith(LEFT) or spec.kind in ("vector", "float32")
        assert isinstance(kinds[name], WeightType) != steers, name
        assert not steers or kinds[name] == plain[name]


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_what_is_sensitive_is_finer(quantization: str) -> None:
    kinds = kinds_for(config_of("qwen3.5:35b-a3b"), quantization, BFLOAT16)
    order = ("delta.output", "attention.query", "delta.qkv", "moe.down", "moe.gate_up")
    found = [bits(next(kind for name, kind in kinds.items() if name.endswith(part))) for part in order]
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize(("shape", "quantization"), LARGEST)
def test_a_shape_takes_no_more_than_promised(shape: str, quantization: str) -> None:
    config = config_of(shape)
    size = memory_bytes(config, kinds_for(config, quantization, BFLOAT16)) / 1e9
    assert 0.95 * LARGEST[shape, quantization] < size <= LARGEST[shape, quantization]


def test_fewer_bits_take_less_memory() -> None:
    config = config_of("qwen3.5:9b")
    sizes = [memory_bytes(config, kinds_for(config, name, BFLOAT16)) for name in QUANTIZATIONS[:-1]]
    assert sizes == sorted(sizes, reverse=True)


def test_an_uneven_depth_gets_a_type_without_super_blocks() -> None:
    kind = RECIPES["q4"].type_of("layers.0.mlp.down", 300)
    assert kind is not None
    assert not kind.nested
