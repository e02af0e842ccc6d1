"""Headers of safetensors files: what the library writes is understood, damage is a CheckpointError and never more."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from qwench.errors import CheckpointError
from qwench.weights.formats.safetensors import StoredTensor, open_checkpoint, read_chunks, read_header

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.arange(5, dtype=torch.int8),
    "empty": torch.zeros(0, 4),
    "scalar": torch.tensor(3.5, dtype=torch.bfloat16),
}


def file_with(folder: Path, header: object, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return file


def entry(begin: int, end: int, shape: list[int] | None = None, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def content(tensor: StoredTensor, chunk: int) -> bytes:
    scratch = bytearray(chunk)
    return b"".join(bytes(scratch[:count]) for count in read_chunks(tensor, memoryview(scratch)))


@pytest.mark.parametrize("chunk", [1, 3, 8, 1000])
def test_reads_what_the_library_writes(tmp_path: Path, chunk: int) -> None:
    file = tmp_path / "model.safetensors"
    save_file(TENSORS, file, metadata={"format": "pt"})
    stored, note = read_header(file)
    assert note == "pt"
    assert {tensor.name: tensor.shape for tensor in stored} == {
        name: tuple(each.shape) for name, each in TENSORS.items()
    }
    for tensor in stored:
        assert content(tensor, chunk) == bytes(TENSORS[tensor.name].view(-1).view(torch.uint8).tolist())


DAMAGED: list[tuple[object, bytes, str]] = [
    (b"", b"", "is not a safetensors file: its header is not a JSON object"),
    (b"[1]", b"", "is not a safetensors file: its header is not a JSON object"),
    (b'{"a": ', b"", "the header is not valid JSON"),
    (b'{"a": "\xff"}', b"", "the header is not valid JSON"),
    (b'{"a":' + b"[" * 100_000, b"", "the header is not valid JSON"),
    (b'{"a": {"shape": [' + b"9" * 5000 + b"]}}", b"", "the header is not valid JSON"),
    (b'{"a": 1, "a": 2}', b"", "a appears twice in the header"),
    ({"__metadata__": 3}, b"", "__metadata__ of the header is not an object"),
    ({"a": 3}, b"", "the header's entry of a is damaged: 3"),
    ({"a": {"dtype": "U8", "shape": [1]}}, b"x", "the header's entry of a is damaged"),
    ({"a": entry(0, 1) | {"dtype": None}}, b"x", "the header's entry of a is damaged"),
    ({"a": entry(0, 1, [-1])}, b"x", "the header's entry of a is damaged"),
    ({"a": entry(0, 1, [True])}, b"x", "the header's entry of a is damaged"),
    ({"a": entry(0, 1, [1.0])}, b"x", "the header's entry of a is damaged"),  # type: ignore[list-item]  # on purpose
    ({"a": entry(0, 1, [1] * 9)}, b"x", "the header's entry of a is damaged"),
    ({"a": entry(0, 1) | {"data_offsets": [0, 1, 2]}}, b"x", "the header's entry of a is damaged"),
    ({"a": entry(0, 1) | {"data_offsets": [0, 2**70]}}, b"x", "the header's entry of a is damaged"),
    ({"a": entry(0, 1, dtype="Q4")}, b"x", "tensor a has the unknown type Q4; known are BOOL, "),
    ({"a": entry(0, 4, [2], "F32")}, b"xxxx", "tensor a is F32 [2], which needs 8 bytes, but its offsets span 4"),
    ({"a": entry(0, 4, [2**62, 2**62])}, b"xxxx", f"which needs {2**124} bytes, but its offsets span 4"),
    ({"a": entry(4, 2, [2])}, b"xxxx", "which needs 2 bytes, but its offsets span -2"),
    ({"a": entry(0, 3), "b": entry(2, 5)}, b"xxxxx", "tensor b overlaps another tensor; the header is damaged"),
    ({"a": entry(0, 2), "b": entry(0, 2)}, b"xx", "tensor b overlaps another tensor; the header is damaged"),
    ({"a": entry(0, 2), "b": entry(3, 5)}, b"xxxxx", "tensor b leaves a gap before it; the header is damaged"),
    ({"a": entry(1, 2)}, b"xx", "tensor a leaves a gap before it; the header is damaged"),
    ({"a": entry(0, 4)}, b"xxx", "is truncated: its header describes"),
    ({"a": entry(0, 4)}, b"xxxxx", "has bytes that no tensor owns: its header describes"),
]


@pytest.mark.parametrize(("header", "data", "sentence"), DAMAGED, ids=range(len(DAMAGED)))
def test_damage_is_named(tmp_path: Path, header: object, data: bytes, sentence: str) -> None:
    file = file_with(tmp_path, header, data)
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    assert caught.value.message.startswith(str(file))
    assert sentence in caught.value.message


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "is not a safetensors file: it has only 0 bytes"),
        (b"\x01\x00\x00", "is not a safetensors file: it has only 3 bytes"),
        (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00pickle", "is not a safetensors file: its header would be"),
        (struct.pack("<Q", 50) + b'{"a":1}', "is truncated inside its header: 50 bytes announced, 7 there"),
        (b"<!DOCTYPE html><html>", "is not a safetensors file: its header would be"),
    ],
)
def test_other_files_are_named(tmp_path: Path, raw: bytes, sentence: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(raw)
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    assert f"{file} {sentence}" in caught.value.message


def test_a_file_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(TENSORS, file)
    stored = open_checkpoint(tmp_path).tensors["b"]
    file.write_bytes(file.read_bytes()[: stored.begin + 2])
    with pytest.raises(CheckpointError, match=r"model.safetensors ended inside tensor b; download"):
        content(stored, 100)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("valid") / "model.safetensors"
    save_file(TENSORS, file, metadata={"format": "pt"})
    return file.read_bytes()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_corruption_is_refused_or_reads_within_the_file(
    valid: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Bytes changed, removed or inserted anywhere in the header; if it still parses, it must still be sound."""
    raw = bytearray(valid)
    header_end = 8 + struct.unpack("<Q", valid[:8])[0]
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, header_end - 1))
        action = data.draw(st.sampled_from(("change", "remove", "insert")))
        byte = data.draw(st.sampled_from(b'0123456789-.eE[]{},:"\x00\xff') | st.integers(0, 255))
        if action == "change":
            raw[position] = byte
        elif action == "remove":
            del raw[position]
        else:
            raw.insert(position, byte)
    file = tmp_path_factory.getbasetemp() / "corrupted.safetensors"
    file.write_bytes(raw)
    try:
        stored, _ = read_header(file)
    except CheckpointError:
        return
    for tensor in stored:
        assert header_end - 16 <= tensor.begin <= tensor.begin + tensor.num_bytes <= len(raw)
        assert len(content(tensor, 64)) == tensor.num_bytes


@settings(max_examples=60, deadline=None)
@given(length=st.integers(0, 10_000))
def test_any_truncation_is_refused(valid: bytes, tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    file = tmp_path_factory.getbasetemp() / "truncated.safetensors"
    file.write_bytes(valid[: length % len(valid)])
    with pytest.raises(CheckpointError):
        read_header(file)


def test_the_library_agrees_on_a_written_file(tmp_path: Path) -> None:
    """The hand-made files of this module are in the library's format: a sound one is read by both alike."""
    file = file_with(tmp_path, {"a": entry(0, 3), "b": entry(3, 5)}, b"xyzuv")
    theirs = load_file(file)
    stored, _ = read_header(file)
    assert {tensor.name: content(tensor, 2) for tensor in stored} == {"a": b"xyz", "b": b"uv"}
    assert {name: bytes(tensor.tolist()) for name, tensor in theirs.items()} == {"a": b"xyz", "b": b"uv"}
