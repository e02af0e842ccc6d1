"""Random weights: complete, reproducible, of the asked type, and of the asked spread."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from qwench.config import ModelConfig
from qwench.model.parameters import declare
from qwench.ops.arrays import as_dtype
from qwench.plan.shapes import SHAPES, Shape
from qwench.weights.random import POOL, RandomSource
from qwench.weights.source import plain_kinds
from tests.weights.collected import tensors_of


def small(config: ModelConfig) -> ModelConfig:
    """The first four layers of a published shape, with few words, few experts and narrow MLPs."""
    moe = config.moe and replace(config.moe, num_experts=8, intermediate_size=64)
    short = replace(config, layer_types=config.layer_types[:4], sparse_layers=config.sparse_layers[:4])
    return replace(short, vocab_size=300, hidden_size=128, intermediate_size=256, moe=moe)


def drawn(config: ModelConfig, dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
    return tensors_of(config, RandomSource(config, plain_kinds(config, as_dtype(dtype)), seed))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.short_name)
def test_every_shape_is_filled(shape: Shape) -> None:
    config = small(shape.config)
    weights = drawn(config, torch.bfloat16, seed=1)
    specs = declare(config)
    assert list(weights) == list(specs)
    for name, spec in specs.items():
        tensor = weights[name]
        assert tuple(tensor.shape) == spec.shape
        assert tensor.dtype == (torch.float32 if spec.kind == "float32" else torch.bfloat16)
        assert torch.isfinite(tensor).all()
        if spec.kind in ("matrix", "experts") and tensor.numel() > 10_000:
            wanted = 1 / math.sqrt(spec.shape[-1])
            assert math.isclose(tensor.float().std().item(), wanted, rel_tol=0.05), name
            assert abs(tensor.float().mean().item()) < wanted / 10, name
        elif spec.kind == "vector" and name.endswith("norm"):
            plain = name.endswith("delta.norm") or not config.zero_centred_norms
            assert math.isclose(tensor.float().mean().item(), 1.0 if plain else 0.0, abs_tol=0.05), name


def test_the_seed_decides() -> None:
    config = small(SHAPES[0].config)
    first, again, other = (drawn(config, torch.float32, seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding"], other["embedding"])


def test_a_tensor_larger_than_the_pool_does_not_repeat_its_rows() -> None:
    config = replace(small(SHAPES[0].config), vocab_size=POOL // 128 + 200)
    table = drawn(config, torch.float32, seed=1)["embedding"]
    assert table.numel() > POOL
    assert not (table[1:] == table[0]).all(dim=1).any()
    assert not torch.equal(table[-100:], table[:100])
