"""Whatever form a checkpoint has, every tensor arrives bit for bit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwench.config import ModelConfig
from qwench.model.parameters import declare
from qwench.weights.names import PREFIXES, Place, place_of, stored_name
from tests.weights import checkpoints
from tests.weights.collected import Loaded, load

KINDS = sorted(checkpoints.CLASSES)
FLOAT32_ALWAYS = ("a_log", "dt_bias")


def read(folder: Path, dtype: torch.dtype = torch.float32) -> Loaded:
    return load(folder, ModelConfig.from_folder(folder), dtype=dtype)


def assert_same(loaded: Loaded, wanted: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    assert loaded.tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        kept = torch.float32 if name.endswith(FLOAT32_ALWAYS) else dtype
        assert loaded.tensors[name].dtype == kept, name
        assert torch.equal(loaded.tensors[name], tensor.to(kept)), name
    assert loaded.num_bytes == sum(tensor.nbytes for tensor in loaded.tensors.values())


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("sharded", [False, True], ids=["single", "sharded"])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_by_transformers(kind: str, sharded: bool, tied: bool, tmp_path: Path) -> None:
    model = checkpoints.build(kind, tied=tied, dtype=torch.bfloat16)
    checkpoints.save(model, tmp_path, max_shard_size="12KB" if sharded else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == sharded
    for dtype in (torch.bfloat16, torch.float32):
        assert_same(read(tmp_path, dtype), checkpoints.expected(model), dtype)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A sparse wrapper checkpoint on disk, with its model."""
    folder = tmp_path_factory.mktemp("hybrid")
    model = checkpoints.build("qwen3_5_moe", dtype=torch.bfloat16, seed=1)
    checkpoints.save(model, folder)
    return folder, model


def rewritten(source: Path, target: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Path:
    """The checkpoint ``source`` with other tensors."""
    target.mkdir(exist_ok=True)
    shutil.copy(source / "config.json", target)
    whole = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    save_file(whole, target / "model.safetensors", metadata={"format": "pt"} | metadata)
    return target


def official(model: Any) -> dict[str, torch.Tensor]:
    """Tensors as in the published BF16 files: the wrapper's prefix, experts fused."""
    return dict(model.state_dict())


def test_fused_experts_as_published(hybrid: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = hybrid
    tensors = official(model)
    assert any(name.endswith("mlp.experts.gate_up_proj") for name in tensors)
    assert_same(read(rewritten(folder, tmp_path, tensors)), checkpoints.expected(model), torch.float32)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_prefix(hybrid: tuple[Path, Any], prefix: str, tmp_path: Path) -> None:
    folder, model = hybrid
    old = "model.language_model."
    tensors = {name: tensor for name, tensor in official(model).items() if "visual" not in name}
    renamed = {
        prefix + name.removeprefix(old) if name.startswith(old) else name: each for name, each in tensors.items()
    }
    head = renamed.pop("lm_head.weight")
    renamed[stored_name(Place("head"), prefix)] = head
    loaded = read(rewritten(folder, tmp_path, renamed))
    assert_same(loaded, checkpoints.expected(model), torch.float32)
    assert not loaded.unused


def test_mixed_types(hybrid: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = hybrid
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    tensors = {name: each.to(kinds[index % 3]) for index, (name, each) in enumerate(sorted(official(model).items()))}
    names = {place.name: tensor for name, tensor in tensors.items() if (place := place_of(name))}
    wanted = {name: names[name].reshape(tensor.shape) for name, tensor in checkpoints.expected(model).items()}
    assert {tensor.dtype for tensor in wanted.values()} == set(kinds)
    for dtype in kinds:
        assert_same(read(rewritten(folder, tmp_path, tensors), dtype), wanted, dtype)


def test_what_is_not_run_is_listed_with_its_reason(hybrid: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = hybrid
    extra = {"mtp.fc.weight": torch.zeros(32, 64), "mtp.layers.0.self_attn.q_norm.weight": torch.zeros(16)}
    loaded = read(rewritten(folder, tmp_path, official(model) | extra))
    listed = {unused.name: unused for unused in loaded.unused}
    visual = {name for name in model.state_dict() if name.startswith("model.visual.")}
    assert visual
    assert listed.keys() == visual | extra.keys()
    assert listed["mtp.fc.weight"].shape == (32, 64)
    assert listed["mtp.fc.weight"].reason == "multi-token prediction head (mtp): not run yet"
    assert listed["model.visual.patch_embed.proj.weight"].reason == "vision tower: read when the first picture comes"
    assert listed["model.visual.patch_embed.proj.weight"].shape == (16, 3, 2, 16, 16)


def test_a_head_that_is_stored_though_tied_is_listed(tmp_path: Path) -> None:
    model = checkpoints.build("qwen3", tied=True)
    checkpoints.save(model, tmp_path / "saved")
    tensors = load_file(tmp_path / "saved" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    loaded = read(rewritten(tmp_path / "saved", tmp_path / "both", tensors))
    assert [(unused.name, unused.reason) for unused in loaded.unused] == [
        ("lm_head.weight", "head: tied to the embedding")
    ]
    assert_same(loaded, checkpoints.expected(model), torch.float32)


@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("fused", [False, True], ids=["per-expert", "fused"])
def test_block_fp8_with_ragged_edges(
    hybrid: tuple[Path, Any], tmp_path: Path, scale_dtype: torch.dtype, fused: bool
) -> None:
    """Every matrix and expert as FP8 with 10 x 12 blocks, which divide neither 32 rows nor 32 columns."""
    folder, model = hybrid
    rows, columns = 10, 12
    generator = torch.Generator().manual_seed(3)
    stored: dict[str, torch.Tensor] = {}
    wanted = checkpoints.expected(model)
    specs = declare(ModelConfig.from_folder(folder))
    source = official(model) if fused else load_file(folder / "model.safetensors")
    for name, tensor in source.items():
        place = place_of(name)
        if place is None or place.name == "head" or specs[place.name].kind not in ("matrix", "experts"):
            stored[name] = tensor
            continue
        shape = (*tensor.shape[:-2], -(-tensor.shape[-2] // rows), -(-tensor.shape[-1] // columns))
        scale = (torch.rand(shape, generator=generator) + 0.5).to(scale_dtype)
        weight = tensor.to(torch.float8_e4m3fn)
        stored[name], stored[f"{name}_scale_inv"] = weight, scale
        picked = scale[..., torch.arange(tensor.shape[-2]) // rows, :][..., torch.arange(tensor.shape[-1]) // columns]
        value = weight.float() * picked.float()
        if place.expert is None:
            wanted[place.name] = value
        else:
            wanted[place.name] = wanted[place.name].float()
            part = wanted[place.name][place.expert]
            half = part.shape[0] // 2
            (part if place.part == "down" else part[:half] if place.part == "gate" else part[half:]).copy_(value)
    target = rewritten(folder, tmp_path, stored)
    raw = json.loads((target / "config.json").read_text())
    raw["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [rows, columns]}
    (target / "config.json").write_text(json.dumps(raw))
    for dtype in (torch.float32, torch.bfloat16):
        assert_same(read(target, dtype), wanted, dtype)


def test_progress_counts_every_byte_once(hybrid: tuple[Path, Any]) -> None:
    folder, model = hybrid
    calls: list[tuple[int, int]] = []
    config = ModelConfig.from_folder(folder)
    load(folder, config, dtype=torch.float32, progress=lambda done, total: calls.append((done, total)))
    total = sum(tensor.nbytes for tensor in checkpoints.expected(model).values())
    assert calls[-1] == (total, total)
    assert calls == sorted(calls)
    assert {whole for _, whole in calls} == {total}


PEAK = """
import resource, sys, torch
from pathlib import Path
from qwench.config import ModelConfig
from qwench.engine.start import build_model
from qwench.ops.arrays import BFLOAT16
from qwench.ops.kernels import make_kernels
from qwench.ops.native import instruction_sets
from qwench.weights.open import open_weights
from qwench.weights.source import memory_bytes
folder = Path(sys.argv[1])
config = ModelConfig.from_folder(folder)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
torch.set_num_threads(1)
source = open_weights(folder, config, BFLOAT16, sys.argv[3] or None)
kernels = make_kernels(instruction_sets()[0] if sys.argv[2] == "native" else None, 1)
before = peak()
model = build_model(config, source, kernels)
print(peak() - before, memory_bytes(config, source.kinds))
"""


@pytest.fixture(scope="module")
def large(hybrid: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """F32 on disk, experts one by one, a vocabulary that makes up half of it."""
    folder, target = hybrid[0], tmp_path_factory.mktemp("large")
    raw = json.loads((folder / "config.json").read_text())
    raw["text_config"] |= {"vocab_size": 50_000, "hidden_size": 256, "moe_intermediate_size": 512}
    raw["vision_config"]["out_hidden_size"] = 256
    (target / "config.json").write_text(json.dumps(raw))
    tensors: dict[str, torch.Tensor] = {}
    for name, spec in declare(ModelConfig.from_folder(target)).items():
        shape = (spec.shape[0], 1, spec.shape[1]) if name.endswith("delta.conv") else spec.shape
        if spec.kind != "experts":
            tensors[stored_name(Place(name))] = torch.ones(shape)
            continue
        parts = ("down",) if name.endswith("down") else ("gate", "up")
        for expert in range(shape[0]):
            for part in parts:
                tensors[stored_name(Place(name, expert, part))] = torch.ones(shape[1] // len(parts), shape[2])
    save_file(tensors, target / "model.safetensors")
    return target


@pytest.mark.parametrize("kernels", ["torch", "native"])
def test_memory_is_the_weights_and_little_more(large: Path, kernels: str) -> None:
    """From the file to the finished model: neither the file nor a second copy may count."""
    command = [sys.executable, "-c", PEAK, str(large), kernels, ""]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    grown, weights = map(int, result.stdout.split())
    assert weights > 50e6
    assert grown < weights * 1.05 + 24e6
