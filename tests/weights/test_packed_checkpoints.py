"""Whole packed checkpoints: every matrix arrives as stored, the model answers as transformers does on the same weights.

What does not fit is one sentence that names tensor and file.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qwench.config import ModelConfig
from qwench.ops.arrays import FLOAT32
from qwench.ops.kernels import make_kernels
from qwench.ops.native import instruction_sets
from qwench.ops.quantised import Codes, dequantise
from qwench.quantisation import Scheme
from qwench.weights.formats import nvfp4
from qwench.weights.open import open_weights
from qwench.weights.packed import join
from tests.model.driver import Driver
from tests.oracle import VOCABULARY, make_checkpoint
from tests.weights import checkpoints, packers
from tests.weights.collected import parts_of
from tests.weights.packed_checkpoints import SORTS, Sort, write

CASES = [*(("wrapper_moe", sort) for sort in SORTS), ("dense", "gptq"), ("dense", "packed"), ("qwen3_moe", "awq")]
# How far logits may lie from those of the same weights: where zero points are rounded, routing may differ.
EXACT = {"int4_zero": 0.02, "int8_zero": 0.02}
Stored = tuple[Any, Path, set[str]]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sort, Stored]:
    """A model whose matrices hold what was stored, its folder, the modules that were packed."""
    kind, sort = request.param
    folder = tmp_path_factory.mktemp("packed")
    model = make_checkpoint(folder / "plain", kind, seed=5)
    return SORTS[sort], (model, folder / sort, write(model, folder / "plain", folder / sort, SORTS[sort]))


def assert_as_stored(folder: Path, model: Any, sort: Sort) -> int:
    """Every part against the model; returns how many came in codes."""
    source = open_weights(folder, ModelConfig.from_folder(folder), FLOAT32)
    wanted = checkpoints.expected(model)
    count = 0
    for part, value in parts_of(source).items():
        expected = wanted[part.name] if part.expert is None else wanted[part.name][part.expert]
        if not isinstance(value, Codes):
            torch.testing.assert_close(value, expected.float(), rtol=1e-6, atol=0)
            continue
        count += 1
        assert value.type is source.kinds[part.name]
        assert value.type.name == sort.kind
        # Zero points that are kept as mins are rounded by 1/2048 of themselves.
        step = float((value.scales.float() * value.factor).max())
        allowed = step * value.type.zero / 2048 if value.type.has_min else 1e-6 * float(expected.abs().max())
        assert (dequantise(value) - expected).abs().max() <= allowed
    return count


def test_every_matrix_arrives_as_it_was_stored(stored: tuple[Sort, Stored]) -> None:
    sort, (model, folder, packed) = stored
    assert packed
    experts = {name.replace("up_proj", "gate_proj") for name in packed if ".experts." in name}
    others = {name for name in packed if ".experts." not in name}
    expected = len(experts) + len(others) if sort.kind else 0
    assert assert_as_stored(folder, model, sort) == expected


def exact_linear(x: torch.Tensor, matrix: Codes) -> torch.Tensor:
    """The quantised linear layer without rounding its inputs to eight bits."""
    return torch.nn.functional.linear(x, dequantise(matrix))


def test_logits_are_those_of_transformers(stored: tuple[Sort, Stored], monkeypatch: pytest.MonkeyPatch) -> None:
    sort, (model, folder, _) = stored
    ids = torch.randint(0, VOCABULARY, (20,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        wanted = model(input_ids=torch.tensor([ids])).logits[0]
    monkeypatch.setattr("qwench.ops.linear.quantised_linear", exact_linear)
    (found,) = Driver(folder).logits([ids], 20)
    assert relative(found, wanted) < EXACT.get(sort.kind or "", 1e-4)


@pytest.mark.parametrize("sort", ["gptq", "gptq_v2", "awq", "nvfp4"])  # one for each type that no other test has
def test_native_kernels_answer_as_the_references_do(sort: str, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "plain", "dense", seed=5)
    write(model, tmp_path / "plain", tmp_path / "packed", SORTS[sort])
    ids = torch.randint(0, VOCABULARY, (20,), generator=torch.Generator().manual_seed(1)).tolist()
    (wanted,) = Driver(tmp_path / "packed").logits([ids], 20)
    (found,) = Driver(tmp_path / "packed", kernels=make_kernels(instruction_sets()[0], threads=1)).logits([ids], 20)
    assert relative(found, wanted) < 0.05  # inputs that lie between two of the 255 steps may fall to either side


def test_matrices_with_scales_of_their_own_become_one() -> None:
    """Gate and up of an expert lie in one matrix with one factor; powers of two apart nothing is lost."""
    kind = Scheme("nvfp4", 4, 16)
    matrices = [packers.nvidia(8, 64, seed=seed) for seed in range(3)]
    for wholes, allowed in ((0.25, 1.0, 0.5), 3e-7), ((0.3, 1.0, 0.007), 1 / 2048):
        each = [replace(matrix, whole=whole) for matrix, whole in zip(matrices, wholes, strict=True)]
        found = join([nvfp4.decode(packers.modelopt(matrix), kind, 8, 64) for matrix in each])
        torch.testing.assert_close(
            dequantise(found).double(), torch.cat([matrix.values for matrix in each]), rtol=allowed, atol=0
        )


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())
