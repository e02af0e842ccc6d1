"""Offline quantisation: the folder gives the bits of quantising on load; whatever interrupts it, it goes on."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from qwench.config import ModelConfig
from qwench.errors import CheckpointError, OutputError, UsageError
from qwench.fault import Plan, planned
from qwench.ops.arrays import BFLOAT16, FLOAT32
from qwench.ops.quantised import Codes
from qwench.quantisation import QUANTIZATIONS
from qwench.weights.open import open_weights
from qwench.weights.rewrite import JOURNAL, Rewriting
from tests.weights import checkpoints
from tests.weights.collected import parts_of


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts one by one over several shards, and a file beside them."""
    folder = tmp_path_factory.mktemp("sharded")
    checkpoints.save(checkpoints.build("qwen3_5_moe", dtype=torch.bfloat16), folder, max_shard_size="40KB")
    (folder / "tokenizer.json").write_text("{}")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture
def plan() -> Iterator[Plan]:
    with planned() as plan:
        yield plan


def quiet(done: int, total: int) -> None:
    assert 0 <= done <= total


def rewrite(source: Path, target: Path, quantization: str = "q4", *, delete_source: bool = False) -> None:
    work = Rewriting(source, target, ModelConfig.from_folder(source), quantization)
    work.run(delete_source=delete_source, progress=quiet)
    work.close()


def assert_same_bits(source: Path, target: Path, quantization: str) -> None:
    config, written = ModelConfig.from_folder(source), ModelConfig.from_folder(target)
    on_load = open_weights(source, config, BFLOAT16, quantization)
    stored = open_weights(target, written, BFLOAT16)
    assert stored.kinds == on_load.kinds
    wanted, found = parts_of(on_load), parts_of(stored)
    assert found.keys() == wanted.keys()
    for part, value in wanted.items():
        other = found[part]
        if isinstance(value, Codes):
            assert isinstance(other, Codes)
            assert all(torch.equal(other.arrays[name], value.arrays[name]) for name in value.arrays), part
        else:
            assert isinstance(other, torch.Tensor)
            assert torch.equal(other, value), part


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_the_folder_gives_the_bits_of_quantising_on_load(sharded: Path, tmp_path: Path, quantization: str) -> None:
    rewrite(sharded, tmp_path / "new", quantization)
    assert_same_bits(sharded, tmp_path / "new", quantization)
    assert not (tmp_path / "new" / JOURNAL).exists()
    assert (tmp_path / "new" / "tokenizer.json").read_text() == "{}"
    assert {file.name for file in (tmp_path / "new").iterdir()} == {file.name for file in sharded.iterdir()}


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe", "qwen3_5"])
def test_one_file_and_every_architecture(kind: str, tmp_path: Path) -> None:
    checkpoints.save(checkpoints.build(kind, tied=kind == "qwen3"), tmp_path / "old")
    rewrite(tmp_path / "old", tmp_path / "new")
    assert_same_bits(tmp_path / "old", tmp_path / "new", "q4")


@pytest.mark.parametrize("writes", [0, 5, 300])
def test_a_full_disk_is_one_sentence_and_the_same_call_goes_on(
    sharded: Path, tmp_path: Path, plan: Plan, writes: int
) -> None:
    target = tmp_path / "new"
    plan.fail("write.weights", OSError(errno.ENOSPC, "No space left on device"), after=writes, times=1)
    with pytest.raises(
        OutputError, match=r"the disk is full; \d+ of \d+ shards are finished and kept\. Make room"
    ) as told:
        rewrite(sharded, target)
    assert told.value.message.count("\n") == 0
    assert not list(target.glob("*.part"))
    assert not (target / "config.json").exists(), "half a model must not look like one"
    before = {file.name: file.stat().st_mtime_ns for file in target.glob("*.safetensors")}
    rewrite(sharded, target)
    assert all((target / name).stat().st_mtime_ns == time for name, time in before.items()), "written again"
    assert_same_bits(sharded, target, "q4")


def test_a_shard_that_was_damaged_since_is_written_again(sharded: Path, tmp_path: Path, plan: Plan) -> None:
    target = tmp_path / "new"
    plan.fail("write.weights", OSError(errno.EIO, "Input/output error"), after=300, times=1)
    with pytest.raises(OutputError, match="it cannot be written"):
        rewrite(sharded, target)
    first = min(target.glob("*.safetensors"))
    raw = bytearray(first.read_bytes())
    raw[-1] ^= 1
    first.write_bytes(raw)
    rewrite(sharded, target)
    assert_same_bits(sharded, target, "q4")


def test_source_shards_go_once_their_results_are_verified(sharded: Path, tmp_path: Path, plan: Plan) -> None:
    source, target = tmp_path / "old", tmp_path / "new"
    shutil.copytree(sharded, source)
    plan.fail("write.weights", OSError(errno.ENOSPC, "No space left on device"), after=300, times=1)
    with pytest.raises(OutputError):
        rewrite(source, target, delete_source=True)
    gone = {file.name for file in sharded.glob("*.safetensors")} - {file.name for file in source.glob("*.safetensors")}
    assert gone
    assert gone == {file.name for file in target.glob("*.safetensors")}
    rewrite(source, target, delete_source=True)
    assert not list(source.glob("*.safetensors"))
    assert_same_bits(sharded, target, "q4")


def test_what_cannot_be_written_is_refused_before_it_begins(sharded: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "old", tmp_path / "new"
    shutil.copytree(sharded, source)
    with pytest.raises(UsageError, match="is the source itself"):
        rewrite(source, source)
    target.mkdir()
    (target / "letter.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty; give a new folder"):
        rewrite(source, target)
    (target / "letter.txt").unlink()
    (target / JOURNAL).write_text(
        json.dumps({"source": str(source.resolve()), "recipe": "q2", "shards": {}, "types": {}})
    )
    with pytest.raises(UsageError, match=r"holds an unfinished conversion of .* to q2; finish that one"):
        rewrite(source, target)
    shutil.rmtree(target)
    rewrite(source, target)
    with pytest.raises(CheckpointError, match=r"is quantised already \(qwench\)"):
        rewrite(target, tmp_path / "again")
    with pytest.raises(CheckpointError, match="is quantised already"):
        open_weights(target, ModelConfig.from_folder(target), BFLOAT16, "q4")
    next(source.glob("*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        rewrite(source, tmp_path / "other")


@pytest.mark.parametrize("cut", ["codes", "scales"])
def test_a_part_that_is_missing_is_named(sharded: Path, tmp_path: Path, cut: str) -> None:
    from safetensors.torch import load_file, save_file

    checkpoints.save(checkpoints.build("qwen3"), tmp_path / "old")
    rewrite(tmp_path / "old", tmp_path / "new")
    file = tmp_path / "new" / "model.safetensors"
    tensors = load_file(file)
    name = f"model.layers.0.mlp.up_proj.weight_{cut}"
    del tensors[name]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.mlp\.up_proj\.weight"):
        open_weights(tmp_path / "new", ModelConfig.from_folder(tmp_path / "new"), FLOAT32)
