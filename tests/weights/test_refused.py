"""A checkpoint that does not fit is refused before a byte of it is read: tensor, file, expected and found shape."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from qwench.config import ModelConfig
from qwench.errors import CheckpointError
from qwench.model.parameters import declare
from tests.weights import checkpoints
from tests.weights.collected import load

Tensors = dict[str, torch.Tensor]
LAYER = "model.language_model.layers.0"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One checkpoint of each sort, saved by transformers once."""
    folder = tmp_path_factory.mktemp("saved")
    for kind in ("qwen3_5", "qwen3_5_moe", "qwen3"):
        checkpoints.save(checkpoints.build(kind), folder / kind)
    checkpoints.save(checkpoints.build("qwen3", tied=True), folder / "tied")
    checkpoints.save(checkpoints.build("qwen3_5"), folder / "sharded", max_shard_size="12KB")
    return {path.name: path for path in folder.iterdir()}


def copied(source: Path, target: Path) -> Path:
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def message_of(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder, ModelConfig.from_folder(folder), dtype=torch.float32)
    assert caught.value.message.endswith((".", "?"))
    return caught.value.message


def changed(source: Path, target: Path, change: Callable[[Tensors], object], **metadata: str) -> Path:
    """``source`` with ``change`` done to its tensors."""
    copied(source, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"} | metadata)
    return target


def test_missing(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(saved["qwen3_5"], tmp_path / "x", lambda t: t.pop(f"{LAYER}.linear_attn.A_log"))
    assert message_of(folder) == f"Missing in the *.safetensors files of {folder}: {LAYER}.linear_attn.A_log [4]."


def test_a_missing_head_that_is_not_tied(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(saved["qwen3"], tmp_path / "x", lambda t: t.pop("lm_head.weight"))
    assert message_of(folder) == f"Missing in the *.safetensors files of {folder}: lm_head.weight [80, 32]."


def test_one_missing_expert(saved: dict[str, Path], tmp_path: Path) -> None:
    name = f"{LAYER}.mlp.experts.3.up_proj.weight"
    folder = changed(saved["qwen3_5_moe"], tmp_path / "x", lambda t: t.pop(name))
    assert message_of(folder) == f"Missing in the *.safetensors files of {folder}: {name} [12, 32]."


def test_many_missing_are_counted(saved: dict[str, Path], tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if ".layers.1." in name]:
            del tensors[name]

    message = message_of(changed(saved["qwen3_5"], tmp_path / "x", change))
    assert f"{LAYER[:-1]}1.input_layernorm.weight [32], " in message
    assert message.endswith(" and 6 more.")


def test_extra(saved: dict[str, Path], tmp_path: Path) -> None:
    name = f"{LAYER}.self_attn.q_proj.bias"
    folder = changed(saved["qwen3_5"], tmp_path / "x", lambda t: t.update({name: torch.zeros(3)}))
    assert message_of(folder) == (
        f"The checkpoint holds what this model has no place for: {name} [3] in {folder / 'model.safetensors'}; does "
        f"config.json belong to these weights?"
    )


@pytest.mark.parametrize("name", ["layers.9.input_layernorm.weight", "layers.1.linear_attn.A_log", "layers.01.mlp.x"])
def test_a_layer_that_config_does_not_have_is_extra(saved: dict[str, Path], tmp_path: Path, name: str) -> None:
    stored = f"model.language_model.{name}"
    folder = changed(saved["qwen3_5"], tmp_path / "x", lambda t: t.update({stored: torch.zeros(32)}))
    assert f"no place for: {stored} [32] in " in message_of(folder)


def test_an_expert_too_many_is_extra(saved: dict[str, Path], tmp_path: Path) -> None:
    name = f"{LAYER}.mlp.experts.5.up_proj.weight"
    folder = changed(saved["qwen3_5_moe"], tmp_path / "x", lambda t: t.update({name: torch.zeros(12, 32)}))
    assert f"no place for: {name} [12, 32] in " in message_of(folder)


@pytest.mark.parametrize(
    ("kind", "name", "found", "wanted"),
    [
        ("qwen3_5", f"{LAYER}.linear_attn.conv1d.weight", [80, 4], [80, 1, 4]),
        ("qwen3_5", f"{LAYER}.mlp.gate_proj.weight", [32, 24], [24, 32]),
        ("qwen3_5", "lm_head.weight", [81, 32], [80, 32]),
        ("qwen3_5_moe", f"{LAYER}.mlp.shared_expert_gate.weight", [32], [1, 32]),
        ("qwen3_5_moe", f"{LAYER}.mlp.experts.0.down_proj.weight", [12, 32], [32, 12]),
        ("qwen3_5_moe", f"{LAYER}.mlp.experts.4.gate_proj.weight", [24, 32], [12, 32]),
    ],
)
def test_misshapen(
    saved: dict[str, Path], tmp_path: Path, kind: str, name: str, found: list[int], wanted: list[int]
) -> None:
    folder = changed(saved[kind], tmp_path / "x", lambda t: t.update({name: torch.zeros(found)}))
    file = folder / "model.safetensors"
    assert message_of(folder) == f"Tensor {name} in {file} has shape {found}; {wanted} is expected from config.json."


def test_a_tied_head_of_another_shape(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(saved["tied"], tmp_path / "x", lambda t: t.update({"lm_head.weight": torch.zeros(79, 32)}))
    assert message_of(folder).endswith("config.json ties it to the embedding, so [80, 32] is expected.")


def test_the_same_parameter_twice(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(saved["qwen3_5"], tmp_path / "x", lambda t: t.update({"model.norm.weight": torch.zeros(32)}))
    message = message_of(folder)
    assert "model.norm.weight (model.safetensors)" in message
    assert "model.language_model.norm.weight (model.safetensors)" in message
    assert message.endswith(f"in {folder} are the same parameter; keep one of them.")


def test_fused_and_single_experts_together(saved: dict[str, Path], tmp_path: Path) -> None:
    name = f"{LAYER}.mlp.experts.down_proj"
    folder = changed(saved["qwen3_5_moe"], tmp_path / "x", lambda t: t.update({name: torch.zeros(5, 32, 12)}))
    assert f"Tensors {name} (model.safetensors) and {LAYER}.mlp.experts.0.down_proj.weight (" in message_of(folder)


@pytest.mark.parametrize(
    ("dtype", "sentence"),
    [
        (torch.int32, "has the type I32; supported are BF16, F16, F32 and F8_E4M3 with scale_inv scales."),
        (torch.float64, "has the type F64; supported are BF16"),
        (torch.float8_e5m2, "has the type F8_E5M2; supported are BF16"),
        (torch.float8_e4m3fn, "is FP8, but config.json has no quantization_config with weight_block_size"),
    ],
)
def test_a_type_that_cannot_be_read(saved: dict[str, Path], tmp_path: Path, dtype: torch.dtype, sentence: str) -> None:
    name = f"{LAYER}.mlp.up_proj.weight"
    folder = changed(saved["qwen3_5"], tmp_path / "x", lambda t: t.update({name: t[name].to(dtype)}))
    message = message_of(folder)
    assert message.startswith(f"Tensor {name} in {folder / 'model.safetensors'} ")
    assert sentence in message


FP8 = {"quant_method": "fp8", "weight_block_size": [10, 12]}


@pytest.mark.parametrize(
    ("name", "scale", "sentence"),
    [
        ("mlp.up_proj.weight", None, "is FP8, but its scales {name}_scale_inv are missing."),
        (
            "mlp.up_proj.weight",
            torch.ones(2, 3),
            "{name}_scale_inv in {file} has shape [2, 3]; [3, 3] is expected from",
        ),
        (
            "mlp.up_proj.weight",
            torch.ones(3, 3).int(),
            "{name}_scale_inv in {file} has the type I32; scales are floats.",
        ),
        ("linear_attn.dt_bias", torch.ones(1), "{name} in {file} is FP8, but it is not a matrix."),
    ],
)
def test_fp8_scales(
    saved: dict[str, Path], tmp_path: Path, name: str, scale: torch.Tensor | None, sentence: str
) -> None:
    name = f"{LAYER}.{name}"

    def change(tensors: Tensors) -> None:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        if scale is not None:
            tensors[f"{name}_scale_inv"] = scale

    folder = changed(saved["qwen3_5"], tmp_path / "x", change)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"quantization_config": FP8}))
    assert sentence.format(name=name, file=folder / "model.safetensors") in message_of(folder)


def test_scales_of_a_plain_tensor_are_extra(saved: dict[str, Path], tmp_path: Path) -> None:
    name = f"{LAYER}.mlp.up_proj.weight_scale_inv"
    folder = changed(saved["qwen3_5"], tmp_path / "x", lambda t: t.update({name: torch.ones(1, 1)}))
    assert f"no place for: {name} [1, 1]" in message_of(folder)


@pytest.mark.parametrize("sign", ["conv", "switch_mlp", "metadata"])
def test_mlx_conversions_are_refused_and_not_read_as_garbage(saved: dict[str, Path], tmp_path: Path, sign: str) -> None:
    def change(tensors: Tensors) -> None:
        if sign == "conv":
            name = f"{LAYER}.linear_attn.conv1d.weight"
            tensors[name] = tensors[name].transpose(1, 2).contiguous()
        elif sign == "switch_mlp":
            tensors["language_model.model.layers.0.mlp.switch_mlp.up_proj.weight"] = torch.zeros(5, 12, 32)

    note = {"format": "mlx"} if sign == "metadata" else {}
    message = message_of(changed(saved["qwen3_5"], tmp_path / "x", change, **note))
    assert "MLX" in message
    assert message.endswith("take the original repository instead.")


def test_qwen3_saved_by_mlx_without_changes_is_read(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(saved["qwen3"], tmp_path / "x", lambda tensors: None, format="mlx")
    assert load(folder, ModelConfig.from_folder(folder), dtype=torch.float32).tensors


def test_a_missing_shard(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(saved["sharded"], tmp_path / "x")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    assert message_of(folder) == f"{shard} is missing; download the checkpoint again."


def test_a_truncated_shard(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(saved["sharded"], tmp_path / "x")
    shard = sorted(folder.glob("*.safetensors"))[1]
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-5])
    assert message_of(folder) == (
        f"{shard} is truncated: its header describes {size} bytes, it has {size - 5}; download the checkpoint again."
    )


def edited_index(folder: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    edit(index)
    path.write_text(json.dumps(index))
    return path


def test_an_index_that_names_an_absent_tensor(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(saved["sharded"], tmp_path / "x")
    shard = min(folder.glob("*.safetensors")).name
    path = edited_index(folder, lambda index: index["weight_map"].update({"model.ghost": shard}))
    assert message_of(folder).startswith(f"{path} says that {shard} holds model.ghost, but it does not;")


def test_a_tensor_in_two_shards(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(saved["sharded"], tmp_path / "x")
    save_file({"lm_head.weight": torch.zeros(80, 32), "mtp.x": torch.zeros(1)}, folder / "more.safetensors")
    edited_index(folder, lambda index: index["weight_map"].update({"mtp.x": "more.safetensors"}))
    assert "Tensor lm_head.weight is in " in message_of(folder)


@pytest.mark.parametrize("file", ["../elsewhere.safetensors", "/etc/passwd", "weights.bin", 3])
def test_an_index_cannot_point_elsewhere(saved: dict[str, Path], tmp_path: Path, file: object) -> None:
    folder = copied(saved["sharded"], tmp_path / "x")
    edited_index(folder, lambda index: index["weight_map"].update({"lm_head.weight": file}))
    message = message_of(folder)
    assert message.endswith(f"lm_head.weight points to {file!r}, which is not a *.safetensors file beside it.")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}', "[" * 50_000])
def test_a_damaged_index(saved: dict[str, Path], tmp_path: Path, content: str) -> None:
    folder = copied(saved["sharded"], tmp_path / "x")
    (folder / "model.safetensors.index.json").write_text(content)
    assert message_of(folder).startswith(f"{folder / 'model.safetensors.index.json'} ")


@pytest.mark.parametrize(
    ("present", "sentence"),
    [
        (["pytorch_model.bin"], "has only pickled weights (*.bin), which can run code when opened and are never read"),
        (["model-q4.gguf"], "has only GGUF weights; give the path of the file itself"),
        (["model-00001-of-00002.safetensors"], "has safetensors files but neither model.safetensors nor model.safeten"),
        ([], "holds no weights: neither model.safetensors nor model.safetensors.index.json is there"),
    ],
)
def test_no_weights_to_read(saved: dict[str, Path], tmp_path: Path, present: list[str], sentence: str) -> None:
    (tmp_path / "config.json").write_bytes((saved["qwen3"] / "config.json").read_bytes())
    for name in present:
        (tmp_path / name).write_bytes(b"x")
    assert f"{tmp_path} {sentence}" in message_of(tmp_path)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_damaged_header_is_refused_or_reads_in_full(
    saved: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    source, folder = saved["qwen3"], tmp_path_factory.getbasetemp() / "damaged"
    if not folder.exists():
        copied(source, folder)
    raw = bytearray((source / "model.safetensors").read_bytes())
    header_end = 8 + int.from_bytes(raw[:8], "little")
    position = data.draw(st.integers(8, header_end - 1))
    raw[position] = data.draw(st.sampled_from(b'0123456789BFIU-.[]{},:"aw'))
    (folder / "model.safetensors").write_bytes(raw)
    config = ModelConfig.from_folder(folder)
    try:
        loaded = load(folder, config, dtype=torch.bfloat16)
    except CheckpointError:
        return
    assert loaded.tensors.keys() == declare(config).keys()
