"""Bytes from shapes against the published totals, and against the engine's own arithmetic."""

from __future__ import annotations

import dataclasses
import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from qwench.bench.random_gguf import write_random_gguf
from qwench.cache.storage import CacheSpec
from qwench.config import EngineConfig, ModelConfig
from qwench.device import resident_bytes
from qwench.engine.client import EngineClient
from qwench.errors import CheckpointError, ModelNotFound, UsageError
from qwench.footprint import CacheShape, largest_picture, tower_bytes
from qwench.gguf.file import open_gguf
from qwench.ops.arrays import BFLOAT16
from qwench.plan.memory import Load, footprint
from qwench.plan.model import PRECISIONS, at, from_files, published
from qwench.plan.shapes import SHAPES, Shape, text_parameters
from qwench.weights.gguf import GgufSource
from qwench.weights.recipe import kinds_for
from qwench.weights.source import memory_bytes
from tests.bench.test_random_gguf import small

GOLDEN = Path(__file__).parents[1] / "golden"
# GB of the text models in BF16, as published or as the parameter counts of the cards come to.
BF16_GB = {
    "qwen3.5:397b-a17b": 793.0, "qwen3.5:122b-a10b": 244.2, "qwen3.5:35b-a3b": 69.3, "qwen3.5:27b": 53.8,
    "qwen3.5:9b": 17.9, "qwen3.5:4b": 8.4, "qwen3.5:2b": 3.76, "qwen3.5:0.8b": 1.505,
}  # fmt: skip


@pytest.mark.parametrize("name", BF16_GB)
def test_weights_in_bf16_are_the_published_bytes(name: str) -> None:
    assert at(name, published(name).config, "bf16").weight_bytes / 1e9 == pytest.approx(BF16_GB[name], rel=0.01)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.short_name)
def test_a_plan_counts_the_bytes_the_loader_counts(shape: Shape, precision: str) -> None:
    kinds = kinds_for(shape.config, None if precision == "bf16" else precision, BFLOAT16)
    planned = at(shape.short_name, shape.config, precision)
    assert planned.weight_bytes == pytest.approx(memory_bytes(shape.config, kinds), abs=1)
    assert sum(group.parameters for group in planned.groups.values()) == text_parameters(shape.config)


@pytest.mark.parametrize("kept", ["auto", "int8"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.short_name)
def test_a_plan_counts_the_cache_the_allocator_makes(shape: Shape, kept: str) -> None:
    spec, planned = CacheSpec.of(shape.config, BFLOAT16, kept), CacheShape.of(shape.config, "bfloat16", kept)
    assert (planned.token_bytes, planned.sequence_bytes) == (spec.token_bytes, spec.sequence_bytes)


def test_the_stack_is_what_was_asked_for() -> None:
    subject = at("qwen3.5:27b", published("27b").config, "q4")
    one, many = (footprint(subject, Load(32768, users)) for users in (1, 8))
    lines = {line.name: line.bytes for line in many.cache}
    assert lines["keys and values"] == 8 * 32768 * 65_536
    assert lines["recurrent states"] == 8 * (144 * 2**20 + 2880 * 2**10)
    assert sum(line.bytes for line in many.cache) == 8 * sum(line.bytes for line in one.cache)
    assert {line.name for line in footprint(subject, Load(1024, pixels=10**6)).lines} >= {
        "vision tower",
        "vision buffers",
    }
    kept = footprint(subject, Load(1024, snapshots=3))
    assert {line.name: line.bytes for line in kept.cache}["snapshots"] == 3 * lines["recurrent states"] / 8


def test_pages_are_whole() -> None:
    subject = at("qwen3.5:0.8b", published("0.8b").config, "q4")
    assert footprint(subject, Load(1)).cache[0].bytes == footprint(subject, Load(64)).cache[0].bytes


@pytest.mark.parametrize("mix", ["Q4_K_M", "Q8_0"])
def test_a_gguf_file_is_counted_by_its_own_types(mix: str, tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    write_random_gguf(path, small("qwen3.5:35b-a3b"), mix)
    planned = from_files("small", path, None)
    source = GgufSource(open_gguf(path), planned.config, BFLOAT16)
    assert planned.precision == "as stored"
    assert planned.weight_bytes == pytest.approx(memory_bytes(planned.config, source.kinds), rel=0.02)


def test_a_folder_is_counted_as_it_is() -> None:
    folder = GOLDEN / "dense"
    planned = from_files("x", folder, None)
    assert planned.config == ModelConfig.from_folder(folder)
    assert from_files("x", folder, "q8").weight_bytes < planned.weight_bytes


def test_a_quantised_folder_is_counted_from_its_headers(tmp_path: Path) -> None:
    config = json.loads((GOLDEN / "dense" / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {
        "model.layers.0.x": {"dtype": "I32", "shape": [250], "data_offsets": [0, 1000]},
        "mtp.fc.weight": {"dtype": "F32", "shape": [100], "data_offsets": [1000, 1400]},
    }
    header = json.dumps(tensors).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert from_files("x", tmp_path, None).weight_bytes == pytest.approx(1000)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"model\.safetensors has a header that cannot be read"):
        from_files("x", tmp_path, None)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("35b-a3b", "qwen3.5:35b-a3b"),
        ("397B", "qwen3.5:397b-a17b"),
        ("30b-a3b", "qwen3:30b-a3b"),
        ("Qwen3.5-4B", "qwen3.5:4b"),
    ],
)
def test_a_model_is_known_by_the_part_that_names_it(name: str, found: str) -> None:
    assert published(name).short_name == found


@pytest.mark.parametrize(("name", "nearest"), [("35b-a4b", "qwen3.5:35b-a3b"), ("qwen3.5:28b", "qwen3.5:27b")])
def test_an_unknown_model_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ModelNotFound, match=f"is no published model.*nearest: .*{nearest}"):
        published(name)
    with pytest.raises(ModelNotFound, match=r"file; `qwench models` lists"):
        published("zzzz")


def test_an_unknown_precision_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="--quantization is 'q7'; use bf16, q8"):
        at("x", published("0.8b").config, "q7")


@pytest.mark.skipif(not resident_bytes(), reason="this system does not tell what a process holds")
def test_the_start_tells_planned_and_taken_side_by_side() -> None:
    # In a process of its own: what an earlier test gave back to this one would be taken again without growing it.
    program = "from qwench import LLM\nwith LLM('nano', device='cpu', offline=True) as llm: print(*llm.client.banner())"
    started = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    config = EngineClient(EngineConfig(model="nano", offline=True)).model
    planned = at("nano", dataclasses.replace(config, dtype="float32"), "bf16").weight_bytes / 2**20
    told = re.search(r"memory ([\d,]+) MiB taken \(([\d,]+) MiB planned for the weights; ", started.stdout)
    assert told
    assert int(told.group(2)) == round(planned)
    assert int(told.group(1)) >= int(told.group(2)) * 0.95


def test_the_largest_picture_leaves_half_the_window_and_most_of_the_memory() -> None:
    vision = published("qwen3.5:0.8b").config.vision
    assert vision is not None
    assert largest_picture(vision, 8192, 2**40) == 4096 * 32 * 32
    few = largest_picture(vision, 262_144, 2**30)
    assert few.bit_count() == 1
    assert tower_bytes(vision, few) < 2**28 < 4 * tower_bytes(vision, few)
    assert largest_picture(vision, 1, 1) == 32 * 32
