"""Whole models through GGUF: logits of a file exported from transformers equal transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from qwench.config import ModelConfig
from qwench.files import open_files, read_config
from qwench.gguf.file import GgufFile, open_gguf
from qwench.model.parameters import declare
from qwench.ops.arrays import FLOAT32, to_torch
from qwench.ops.kernels import make_kernels
from qwench.ops.quantised import Codes, dequantise
from qwench.ops.weight_types import GGUF_TYPES, WeightType
from qwench.weights.gguf import GgufSource
from tests.gguf.export import (
    all_f32,
    export,
    finish,
    matrices_as,
    stub_tokens,
    write_configuration,
    write_tensor,
)
from tests.model.driver import Driver
from tests.oracle import KINDS, VOCABULARY, build_model, make_checkpoint
from tests.tolerances import tolerance

LENGTHS = (1, 2, 17, 70)
Q8_0, Q4_1, F16, BF16 = (gguf.GGMLQuantizationType[name] for name in ("Q8_0", "Q4_1", "F16", "BF16"))
# A GGUF file has no way to say that some layers have a dense MLP.
EXPORTED = [kind for kind in KINDS if kind != "qwen3_moe_mixed"]


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(0, VOCABULARY, (length,), generator=generator).tolist() for length in LENGTHS]


def difference(reference: Any, driver: Driver, chunk: int = 64) -> float:
    """The largest difference of a logit."""
    sequences = prompts()
    worst = 0.0
    for ids, found in zip(sequences, driver.logits(sequences, chunk), strict=True):
        with torch.inference_mode():
            expected = reference(torch.tensor([ids])).logits[0].float()
        worst = max(worst, (found - expected).abs().max().item())
    return worst


@pytest.mark.parametrize("kind", EXPORTED)
def test_logits_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    reference = build_model(*KINDS[kind], seed=1)
    assert difference(reference, Driver(export(reference, tmp_path / "model.gguf"))) < tolerance("model_logits")


@pytest.mark.parametrize("kind", ["dense_odd", "moe"])
def test_native_kernels_know_tiled_heads(kind: str, tmp_path: Path) -> None:
    reference = build_model(*KINDS[kind], seed=2)
    driver = Driver(export(reference, tmp_path / "model.gguf"), kernels=make_kernels("avx2", threads=2))
    assert driver.config.delta is not None
    assert driver.config.delta.num_value_heads != driver.config.delta.num_key_heads
    assert difference(reference, driver) < tolerance("model_logits")


def test_experts_may_be_fused_and_files_split(tmp_path: Path) -> None:
    reference = build_model(*KINDS["moe"], seed=1)
    first = export(reference, tmp_path / "model.gguf", fused=True, split=30)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) > 2
    assert first == parts[0]
    for part in (parts[0], parts[1], parts[-1]):  # any of them stands for the whole
        opened = open_files(part)
        assert isinstance(opened, GgufFile)
        assert opened.parts == tuple(parts)
    assert difference(reference, Driver(parts[1])) < tolerance("model_logits")


@pytest.mark.parametrize("kind", ["dense", "dense_odd", "dense_yarn", "moe", "qwen3", "qwen3_yarn", "qwen3_moe"])
def test_the_configuration_is_the_folder_s(kind: str, tmp_path: Path) -> None:
    reference = make_checkpoint(tmp_path / "folder", kind, 0)
    theirs = ModelConfig.from_folder(tmp_path / "folder")
    ours = read_config(open_files(export(reference, tmp_path / "model.gguf")))
    differing = {name for name, value in vars(theirs).items() if getattr(ours, name) != value}
    assert differing <= {
        "delta",
        "eos_token_ids",
        "rms_norm_eps",
        "intermediate_size",
        "image_token_id",
        "video_token_id",
    }
    assert ours.rms_norm_eps == pytest.approx(theirs.rms_norm_eps)
    if theirs.delta is not None:
        assert ours.delta is not None
        assert ours.delta.value_heads_tiled
        assert vars(ours.delta) | {"value_heads_tiled": False} == vars(theirs.delta)


def values_of(path: Path) -> dict[str, torch.Tensor]:
    """Every parameter as plain numbers, fp32."""
    file = open_gguf(path)
    pieces: dict[str, list[torch.Tensor]] = {}
    for part, value in GgufSource(file, read_config(file), FLOAT32).parts():
        plain = dequantise(value) if isinstance(value, Codes) else to_torch(value)
        pieces.setdefault(part.name, []).append(plain.clone())
    return {name: torch.cat(found) for name, found in pieces.items()}


@pytest.mark.parametrize("stored", [Q8_0, Q4_1, F16, BF16], ids=lambda kind: kind.name)
def test_quantised_matrices_are_what_the_package_dequantises(stored: gguf.GGMLQuantizationType, tmp_path: Path) -> None:
    """The same model twice: quantised by the package, and with the values that the package makes of that, as F32."""
    reference = build_model(*KINDS["moe"], seed=4)
    quantised = export(reference, tmp_path / "quantised.gguf", choose=matrices_as(stored))
    file = open_gguf(quantised)
    kinds = GgufSource(file, read_config(file), FLOAT32).kinds.values()
    types = {kind for kind in kinds if isinstance(kind, WeightType)}
    assert types == ({GGUF_TYPES[stored.name]} if stored.name in GGUF_TYPES else set())
    plain = tmp_path / "plain.gguf"
    rewrite(quantised, plain)
    found, expected = values_of(quantised), values_of(plain)
    assert found.keys() == expected.keys() == declare(read_config(file)).keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def rewrite(path: Path, target: Path) -> None:
    """The file ``path`` with every tensor as the package dequantises it."""
    writer = gguf.GGUFWriter(target, "qwen35moe")
    config = build_model(*KINDS["moe"], seed=4).config
    write_configuration(writer, config)
    stub_tokens(writer, config.vocab_size)
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        write_tensor(writer, tensor.name, torch.from_numpy(values.copy()), all_f32(tensor.name, ()))
    finish(writer)


def test_gate_and_up_of_two_types_become_one_and_it_is_told(tmp_path: Path) -> None:
    def choose(name: str, shape: tuple[int, ...]) -> gguf.GGMLQuantizationType:
        return {"ffn_gate_exps": Q4_1, "ffn_up_exps": BF16}.get(name.split(".")[-2], all_f32(name, shape))

    path = export(build_model(*KINDS["moe"], seed=5), tmp_path / "mixed.gguf", choose=choose)
    file = open_gguf(path)
    source = GgufSource(file, read_config(file), FLOAT32)
    assert source.kinds["layers.0.moe.gate_up"] == GGUF_TYPES["Q8_0"]
    (conversion,) = source.converted
    assert len(conversion.names) == 2 * 8
    assert (conversion.kept, conversion.reason) == ("Q8_0", "gate and up of one expert differ in type")
    found = values_of(path)["layers.0.moe.gate_up"]
    stored = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(path).tensors
    }
    halves = [torch.from_numpy(stored[f"blk.0.ffn_{name}_exps.weight"].copy()) for name in ("gate", "up")]
    expected = torch.cat(halves, dim=1)
    assert (found.view_as(expected) - expected).abs().max() < expected.abs().max() / 200
