"""The vision tower against transformers on fresh random checkpoints, and against the stored golden tensors."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from qwench.config import ModelConfig
from qwench.engine.eyes import build_tower, finish
from qwench.model import vision
from qwench.model.vision import Grid, VisionTower
from qwench.ops.arrays import FLOAT32, as_dtype
from qwench.ops.kernels import Kernels, TorchKernels, make_kernels, native_usable
from qwench.weights.vision import open_vision
from tests.oracle import KINDS, VISION, build_model, make_checkpoint
from tests.tolerances import tolerance

GRIDS: tuple[Grid, ...] = ((1, 4, 6), (1, 2, 2), (1, 2, 60), (1, 50, 2), (1, 30, 44), (3, 6, 4), (5, 2, 2))


def tower(
    folder: Path,
    kernels: Kernels | None = None,
    dtype: torch.dtype = torch.float32,
    quantization: str | None = None,
) -> VisionTower:
    config = ModelConfig.from_folder(folder).vision
    assert config is not None
    weights = open_vision(folder, config, as_dtype(dtype), quantization)
    assert weights is not None
    return build_tower(config, weights, kernels or TorchKernels())


def drawn(grid: Grid, seed: int) -> torch.Tensor:
    patches = grid[0] * grid[1] * grid[2]
    return torch.rand(patches, 1536, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@torch.inference_mode()
def reference(model: Any, patches: torch.Tensor, grid: Grid) -> torch.Tensor:
    rows: torch.Tensor = model.model.visual(patches, torch.tensor([grid])).pooler_output
    return rows


@pytest.fixture(scope="module", params=[("wrapper_dense", 0), ("wrapper_dense", 1), ("wrapper_moe", 0)])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("checkpoint")
    return make_checkpoint(folder, *request.param), folder


@pytest.mark.parametrize("grid", GRIDS)
def test_rows_equal_transformers(pair: tuple[Any, Path], grid: Grid) -> None:
    patches = drawn(grid, seed=3)
    found = finish(tower(pair[1]).encode(patches, grid))
    assert (found - reference(pair[0], patches, grid)).abs().max() < tolerance("vision")


def test_heads_as_wide_as_published_ones_and_a_table_of_another_size(tmp_path: Path) -> None:
    config_class, model_class, fields = KINDS["wrapper_dense"]
    shape = {**VISION, "hidden_size": 144, "num_heads": 2, "num_position_embeddings": 2304, "out_hidden_size": 96}
    model = build_model(config_class, model_class, {**fields, "vision_config": shape}, seed=4)
    model.save_pretrained(tmp_path)
    patches = drawn((1, 58, 40), seed=5)
    found = finish(tower(tmp_path).encode(patches, (1, 58, 40)))
    assert (found - reference(model, patches, (1, 58, 40))).abs().max() < tolerance("vision")


def test_the_27_layers_of_the_larger_models(tmp_path: Path) -> None:
    """An eighth as wide: heads of 72, and between a layer's products a width that is no multiple of 32."""
    config_class, model_class, fields = KINDS["wrapper_dense"]
    shape = {**VISION, "depth": 27, "hidden_size": 144, "num_heads": 2, "intermediate_size": 538, "out_hidden_size": 96}
    model = build_model(config_class, model_class, {**fields, "vision_config": shape}, seed=5)
    model.save_pretrained(tmp_path)
    patches, grid = drawn((2, 8, 6), seed=6), (2, 8, 6)
    expected = reference(model, patches, grid)
    usable, isa = native_usable("cpu", FLOAT32)
    for kernels in (TorchKernels(), *([make_kernels(isa, threads=2)] if usable else [])):
        found = finish(tower(tmp_path, kernels).encode(patches, grid))
        assert (found - expected).abs().max() < tolerance("vision")
        rounded = finish(tower(tmp_path, kernels, quantization="q8").encode(patches, grid))
        assert (rounded - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("grid", [(1, 10, 12), (7, 4, 4)])
def test_tiles_and_pauses_change_nothing(pair: tuple[Any, Path], grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing, patches = tower(pair[1]), drawn(grid, seed=6)
    whole = finish(seeing.encode(patches, grid))
    monkeypatch.setattr(vision, "TILE", 37)
    monkeypatch.setattr(vision, "PAUSE", 1000)
    other = seeing.encode(drawn(grid, seed=7), grid)
    pauses: list[None] = []

    def in_turns() -> Generator[None, None, torch.Tensor]:
        work = seeing.encode(patches, grid)
        while True:
            try:
                pauses.append(next(work))
            except StopIteration as end:
                rows: torch.Tensor = end.value
                return rows
            next(other, None)
            yield

    found = finish(in_turns())
    assert (found - whole).abs().max() < tolerance("vision")
    assert len(pauses) > 8


def test_pictures_in_one_pass_are_seen_as_alone(pair: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    usable, isa = native_usable("cpu", FLOAT32)
    shown = [(drawn(grid, seed), grid) for seed, grid in enumerate((*GRIDS[:4], (3, 6, 4), (2, 2, 2)))]
    for kernels in (TorchKernels(), *([make_kernels(isa, threads=2)] if usable else [])):
        seeing = tower(pair[1], kernels)
        alone = [finish(seeing.encode(*each)) for each in shown]
        for together in (4096, 130):
            monkeypatch.setattr(vision, "TILE", together)
            found = finish(seeing.encode_all(shown))
            for rows, expected, (patches, grid) in zip(found, alone, shown, strict=True):
                assert (rows - expected).abs().max() < tolerance("vision")
                assert (rows - reference(pair[0], patches, grid)).abs().max() < tolerance("vision")


def test_places_of_a_few_sizes_are_kept(pair: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "KNOWN", 60)
    seeing = tower(pair[1])
    for grid, sizes in (
        ((1, 4, 6), [(4, 6)]),
        ((2, 2, 6), [(4, 6), (2, 6)]),
        ((1, 4, 6), [(2, 6), (4, 6)]),
        ((1, 6, 8), [(6, 8)]),
        ((1, 10, 12), []),
    ):
        patches = drawn(grid, seed=9)
        found = finish(seeing.encode(patches, grid))
        assert (found - reference(pair[0], patches, grid)).abs().max() < tolerance("vision")
        assert list(seeing._known) == sizes


def test_native_kernels_see_the_same(pair: tuple[Any, Path]) -> None:
    usable, isa = native_usable("cpu", FLOAT32)
    if not usable:
        pytest.skip(isa)
    patches, grid = drawn((1, 12, 20), seed=8), (1, 12, 20)
    expected = reference(pair[0], patches, grid)
    for dtype in (torch.float32, torch.bfloat16):
        seeing = tower(pair[1], make_kernels(isa, threads=2), dtype)
        found = finish(seeing.encode(patches, grid)).float()
        assert (found - expected).abs().max() < tolerance("vision", str(dtype).removeprefix("torch."), "native")


@pytest.mark.gpu
def test_cuda_sees_the_same(pair: tuple[Any, Path]) -> None:
    config = ModelConfig.from_folder(pair[1]).vision
    assert config is not None
    weights = open_vision(pair[1], config, FLOAT32)
    assert weights is not None
    patches = drawn((2, 6, 4), seed=9)
    found = finish(build_tower(config, weights, TorchKernels("cuda")).encode(patches, (2, 6, 4)))
    assert (found.cpu() - reference(pair[0], patches, (2, 6, 4))).abs().max() < tolerance("vision", backend="cuda")
