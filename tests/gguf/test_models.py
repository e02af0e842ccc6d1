"""Whole models through GGUF: logits of a file exported from transformers equal transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from qwench.config import ModelConfig
from qwench.files import open_files, read_config
from qwench.gguf.file import GgufFile
from qwench.ops.quantised import GGUF_TYPES
from qwench.weights.gguf import GgufSource
from tests.gguf.export import export, matrices_as
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
    driver = Driver(export(reference, tmp_path / "model.gguf"), isa="avx2")
    assert driver.config.delta is not None
    assert driver.config.delta.num_value_heads != driver.config.delta.num_key_heads
    assert difference(reference, driver) < tolerance("model_logits")


def test_experts_may_be_fused_and_files_split(tmp_path: Path) -> None:
    reference = build_model(*KINDS["moe"], seed=3)
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


@pytest.mark.parametrize("stored", [Q8_0, Q4_1, F16, BF16], ids=lambda kind: kind.name)
def test_quantised_matrices_are_what_the_package_dequantises(stored: gguf.GGMLQuantizationType, tmp_path: Path) -> None:
    """The same model twice: quantised by the package, and with the values that the package makes of that, as F32."""
    reference = build_model(*KINDS["moe"], seed=4)
    quantised = export(reference, tmp_path / "quantised.gguf", choose=matrices_as(stored))
    opened = open_files(quantised)
    assert isinstance(opened, GgufFile)
    source = GgufSource(opened, read_config(opened), torch.float32)
    types = {kind for kind in source.kinds.values() if not isinstance(kind, torch.dtype)}
    assert types == ({GGUF_TYPES[stored.name]} if stored.name in GGUF_TYPES else set())
    reader = gguf.GGUFReader(quantised)
    plain = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    writer_of = {name: torch.from_numpy(values.copy()) for name, values in plain.items()}
    again = tmp_path / "plain.gguf"
    rewrite(reference, again, writer_of)
    sequences = prompts()
    for found, expected in zip(
        Driver(quantised).logits(sequences, 64), Driver(again).logits(sequences, 64), strict=True
    ):
        assert torch.equal(found, expected)


def rewrite(model: Any, path: Path, values: dict[str, torch.Tensor]) -> None:
    """``model``'s file with other values."""
    from tests.gguf import export as exporter

    writer = gguf.GGUFWriter(path, exporter.ARCHITECTURES[model.config.model_type])
    exporter.write_configuration(writer, model.config)
    exporter.stub_tokens(writer, model.config.vocab_size)
    for name, tensor in values.items():
        exporter.write_tensor(writer, name, tensor, exporter.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
