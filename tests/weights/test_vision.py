"""The vision tower's weights: from checkpoints and from projectors, and what is said of files that do not fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from qwench.config import ModelConfig, VisionConfig
from qwench.engine.eyes import build_tower, finish
from qwench.errors import CheckpointError, ConfigError
from qwench.files import open_files, read_config
from qwench.ops.arrays import FLOAT32, as_dtype
from qwench.ops.kernels import TorchKernels, make_kernels, native_usable
from qwench.ops.weight_types import WeightType
from qwench.weights.names import stored_vision_name, vision_name
from qwench.weights.vision import VisionWeights, open_vision
from tests.gguf.export import Choose, all_f32, export, export_projector, matrices_as
from tests.oracle import make_checkpoint

Q8_0, F16, BF16 = (getattr(gguf.GGMLQuantizationType, name) for name in ("Q8_0", "F16", "BF16"))
GRID = (2, 6, 8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("checkpoint")
    return make_checkpoint(folder, "wrapper_dense", 3), folder


def opened(
    path: Path, dtype: torch.dtype = torch.float32, quantization: str | None = None
) -> tuple[VisionConfig, VisionWeights | None]:
    files = open_files(path)
    config = read_config(files).vision
    assert config is not None
    return config, open_vision(files, config, as_dtype(dtype), quantization)


def changed(checkpoint: tuple[Any, Path], folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """The checkpoint with other tensors."""
    tensors = load_file(checkpoint[1] / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_bytes((checkpoint[1] / "config.json").read_bytes())
    return folder


def test_every_name_is_known_both_ways(checkpoint: tuple[Any, Path]) -> None:
    stored = [name for name in load_file(checkpoint[1] / "model.safetensors") if ".visual." in name]
    ours = [vision_name(name) for name in stored]
    assert None not in ours
    assert [stored_vision_name(name) for name in ours if name] == stored


@pytest.mark.parametrize(
    ("choose", "bound"),
    [(all_f32, 1e-6), (matrices_as(F16), 2e-3), (matrices_as(BF16), 2e-2), (matrices_as(Q8_0), 2e-2)],
    ids=["F32", "F16", "BF16", "Q8_0"],
)
def test_a_projector_beside_a_gguf_file_sees_what_the_checkpoint_sees(
    checkpoint: tuple[Any, Path], tmp_path: Path, choose: Choose, bound: float
) -> None:
    model, folder = checkpoint
    path = export(model, tmp_path / "model.gguf")
    assert read_config(open_files(path)).vision is None
    export_projector(model, tmp_path / "mmproj-model.gguf", choose=choose)
    assert read_config(open_files(path)).vision == ModelConfig.from_folder(folder).vision
    patches = torch.rand(96, 1536, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = model.model.visual(patches, torch.tensor([GRID])).pooler_output
    config, weights = opened(path)
    assert weights is not None
    usable, isa = native_usable("cpu", FLOAT32)
    for kernels in (TorchKernels(), *((make_kernels(isa, 1),) if usable else ())):
        found = finish(build_tower(config, weights, kernels).encode(patches, GRID))
        assert (found - expected).abs().max() < bound * expected.abs().max()


@pytest.mark.parametrize("quantization", ["q8", "q4"])
def test_quantised_models_have_a_tower_in_8_bits(
    checkpoint: tuple[Any, Path], tmp_path: Path, quantization: str
) -> None:
    """Not fewer; its vectors, its positions and what meets bare pixels stay numbers, and codes what they are."""
    model, folder = checkpoint
    path = export(model, tmp_path / "model.gguf")
    export_projector(model, tmp_path / "mmproj.gguf", choose=matrices_as(Q8_0))
    patches = torch.rand(96, 1536, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = model.model.visual(patches, torch.tensor([GRID])).pooler_output
    for files, type_name in ((folder, "q8"), (path, "Q8_0")):
        config, weights = opened(files, quantization=quantization)
        assert weights is not None
        kinds = {name: kind for name, kind in weights.kinds.items() if isinstance(kind, WeightType)}
        names = {kind.name for kind in kinds.values()}
        assert names == {"q8", type_name}  # a projector's rows that are no whole blocks come as numbers
        matrices = {name for name, spec in weights.specs.items() if spec.kind == "matrix"}
        assert kinds.keys() == matrices - {"patch"}
        whole = opened(folder)[1]
        assert whole is not None
        saved = sum(math.prod(weights.specs[name].shape) * (32 - kind.bits) for name, kind in kinds.items()) / 8
        assert 0.9 * saved < whole.memory_bytes - weights.memory_bytes < saved  # scales take some of it
        found = finish(build_tower(config, weights, TorchKernels()).encode(patches, GRID))
        assert 1e-4 < (found - expected).abs().max() / expected.abs().max() < 2e-2


def test_a_tower_without_numbers_cannot_be_rounded(checkpoint: tuple[Any, Path], tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.visual.blocks.1.attn.proj.weight"][3, 5] = torch.nan

    weights = opened(changed(checkpoint, tmp_path, spoil), quantization="q8")[1]
    assert weights is not None
    with pytest.raises(CheckpointError, match=r"blocks.1.output of the vision tower holds weights that are no finite"):
        list(weights.parts())


def test_of_several_projectors_the_one_named_like_the_model_is_taken(
    checkpoint: tuple[Any, Path], tmp_path: Path
) -> None:
    path = export(checkpoint[0], tmp_path / "Some-2B-Q4_K_M.gguf")
    for name in ("mmproj-Other-9B-BF16.gguf", "mmproj-Some-2B-F32.gguf", "mmproj-Some-2B-F16.gguf"):
        export_projector(checkpoint[0], tmp_path / name)
    files = open_files(path)
    assert not isinstance(files, Path)
    assert files.projector is not None
    assert files.projector.path.name == "mmproj-Some-2B-F16.gguf"


def test_a_projector_for_another_width_is_left_alone(checkpoint: tuple[Any, Path], tmp_path: Path) -> None:
    path = export(checkpoint[0], tmp_path / "model.gguf")
    export_projector(checkpoint[0], tmp_path / "mmproj.gguf", tell={"projection_dim": 2048})
    assert read_config(open_files(path)).vision is None


def test_a_projector_of_another_kind_is_refused_by_name(checkpoint: tuple[Any, Path], tmp_path: Path) -> None:
    path = export(checkpoint[0], tmp_path / "model.gguf")
    export_projector(checkpoint[0], tmp_path / "mmproj.gguf", tell={"projector_type": "ldp"})
    with pytest.raises(ConfigError, match=r"projector_type' is 'ldp'; only 'qwen3vl_merger'"):
        read_config(open_files(path))


def test_a_checkpoint_without_a_tower_has_none(checkpoint: tuple[Any, Path], tmp_path: Path) -> None:
    def blind(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if ".visual." in name]:
            del tensors[name]

    assert opened(changed(checkpoint, tmp_path, blind))[1] is None


def _drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.visual.blocks.1.mlp.linear_fc1.bias"]


def _add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.visual.deepstack_merger_list.0.norm.weight"] = torch.zeros(3)


def _cut(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.visual.pos_embed.weight"] = torch.zeros(9, 32)


def _code(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.visual.blocks.0.attn.qkv.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_drop, r"missing: model.visual.blocks.1.mlp.linear_fc1.bias \[48\]"),
        (_add, "no place for: model.visual.deepstack_merger_list.0.norm.weight"),
        (_cut, r"pos_embed.weight has shape \[9, 32\]; \[16, 32\] is expected"),
        (_code, "qkv.weight has the type F8_E4M3; vision towers are read in BF16, F16, F32"),
    ],
)
def test_what_does_not_fit_is_named(
    checkpoint: tuple[Any, Path], tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], told: str
) -> None:
    with pytest.raises(CheckpointError, match=told):
        opened(changed(checkpoint, tmp_path, change))
