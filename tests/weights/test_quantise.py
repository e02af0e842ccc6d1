"""Rounding: never worse than to nearest, exact where it can be, row by row independent, and right in its contract."""

from __future__ import annotations

from collections.abc import Container, Iterator
from pathlib import Path

import pytest
import torch

from qwench.config import ModelConfig
from qwench.errors import CheckpointError
from qwench.model.parameters import declare
from qwench.ops.arrays import BFLOAT16, FLOAT32, dtype_of
from qwench.ops.quantised import Codes, concatenate, dequantise
from qwench.ops.store import Value
from qwench.ops.weight_types import OWN_TYPES, WeightType
from qwench.quantisation import QUANTIZATIONS
from qwench.weights.load import CheckpointSource
from qwench.weights.open import open_weights
from qwench.weights.quantise import QuantisingSource, quantise, round_to_nearest
from qwench.weights.random import RandomSource
from qwench.weights.recipe import kinds_for
from qwench.weights.source import Part, Progress, plain_kinds
from tests.weights.collected import parts_of, tensors_of

NANO = Path(__file__).parents[2] / "src" / "qwench" / "assets" / "nano"
TYPES = [pytest.param(kind, id=name) for name, kind in OWN_TYPES.items()]
# The relative error (root of mean squares) that normal numbers may keep; nearest rounding loses 3 to 25 % more.
KEPT = {"q8": 0.0052, "q6": 0.0175, "q5": 0.0345, "q4": 0.0705, "q3": 0.146, "q2": 0.304, "mxfp4": 0.1125}


def drawn(shape: tuple[int, int], sort: str, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(shape, generator=generator) * 0.03
    if sort == "heavy":  # a few weights far out, as trained matrices have
        return numbers * (1 + 8 * (torch.rand(shape, generator=generator) < 0.01))
    if sort == "shifted":
        return numbers + 0.05
    if sort == "tiny":
        return numbers * 1e-3
    return numbers


def squared_error(codes: Codes, weight: torch.Tensor) -> torch.Tensor:
    return (dequantise(codes) - weight).square().sum()


@pytest.mark.parametrize("sort", ["normal", "heavy", "shifted", "tiny"])
@pytest.mark.parametrize("kind", TYPES)
def test_never_worse_than_to_nearest(kind: WeightType, sort: str) -> None:
    weight = drawn((96, 512), sort)
    nearest = round_to_nearest(weight, kind)
    each = (dequantise(nearest) - weight).square().view(96, 2, 256).sum(-1)
    found = (dequantise(quantise(weight, kind)) - weight).square().view(96, 2, 256).sum(-1)
    assert (found <= each * (1 + 1e-4)).all()
    assert found.sum() < each.sum()


@pytest.mark.parametrize("kind", TYPES)
def test_normal_numbers_keep_their_accuracy(kind: WeightType) -> None:
    weight = drawn((256, 1024), "normal")
    assert (squared_error(quantise(weight, kind), weight) / weight.square().sum()).sqrt() < KEPT[kind.name]


@pytest.mark.parametrize("width", [1, 31, 48, 300, 513])
@pytest.mark.parametrize("kind", TYPES)
def test_any_depth_is_padded(kind: WeightType, width: int) -> None:
    weight = drawn((5, width), "normal")
    found = quantise(weight, kind)
    assert dequantise(found).shape == (5, width)
    assert squared_error(found, weight) < 0.2 * weight.square().sum()


@pytest.mark.parametrize("kind", TYPES)
def test_what_has_a_code_comes_back(kind: WeightType) -> None:
    """Numbers that lie on the grid of some scale are kept: zeros exactly, the others within the scale's rounding."""
    assert not dequantise(quantise(torch.zeros(3, 256), kind)).any()
    values = torch.tensor(kind.table or range(-kind.zero, 2**kind.bits - kind.zero), dtype=torch.float32)
    weight = values[torch.randint(0, len(values), (7, 256), generator=torch.Generator().manual_seed(1))] * 0.25
    weight[:, ::16] = values.min() * 0.25  # every block holds both ends of the grid
    weight[:, 1::16] = values.max() * 0.25
    assert torch.allclose(dequantise(quantise(weight, kind)), weight, rtol=0.01, atol=0.01 * weight.abs().max().item())


@pytest.mark.parametrize("kind", TYPES)
def test_rows_do_not_know_one_another(kind: WeightType) -> None:
    weight = drawn((200, 3000), "heavy")
    whole = quantise(weight, kind)
    pieces = concatenate([quantise(weight[:64], kind), quantise(weight[64:], kind)])
    assert all(torch.equal(whole.arrays[name], pieces.arrays[name]) for name in whole.arrays)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(kind: WeightType, value: float) -> None:
    config = ModelConfig.from_folder(NANO)
    kinds = plain_kinds(config, FLOAT32) | {"embedding": kind}

    class Damaged(RandomSource):
        def parts(self, progress: Progress | None = None, without: Container[str] = ()) -> Iterator[tuple[Part, Value]]:
            for part, weight in super().parts(progress, without):
                assert not isinstance(weight, Codes)
                if part.name == "embedding":
                    weight[5, 77] = value
                yield part, weight

    damaged = QuantisingSource(Damaged(config, plain_kinds(config, FLOAT32), seed=1), kinds)
    with pytest.raises(CheckpointError, match="embedding holds weights that are no finite numbers"):
        list(damaged.parts())


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_checkpoint_is_rounded_while_it_is_read(quantization: str) -> None:
    config = ModelConfig.from_folder(NANO)
    source = open_weights(NANO, config, BFLOAT16, quantization)
    kinds, specs = kinds_for(config, quantization, BFLOAT16), declare(config)
    assert source.kinds == kinds
    wanted = tensors_of(config, CheckpointSource(NANO, config, FLOAT32))
    parts: dict[Part, Value] = parts_of(source)
    assert {part.name for part in parts} == specs.keys()
    for part, value in parts.items():
        expected = wanted[part.name] if part.expert is None else wanted[part.name][part.expert]
        if isinstance(value, torch.Tensor):
            assert dtype_of(value) == kinds[part.name]
            assert torch.equal(value, expected.to(value.dtype))
        else:
            assert value.type == kinds[part.name]
            assert squared_error(value, expected) < 0.15 * expected.square().sum(), part


def test_without_a_recipe_nothing_is_rounded() -> None:
    config = ModelConfig.from_folder(NANO)
    assert open_weights(NANO, config, BFLOAT16, None).kinds == plain_kinds(config, BFLOAT16)
