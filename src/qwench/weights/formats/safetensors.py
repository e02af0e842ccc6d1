"""Safetensors files of a checkpoint: headers read and checked in full, tensor bytes read on demand.

The file is read, not mapped: a file that shrinks under a mapping kills the process, a short read is an error with a
name, and pages of a mapping would count as memory of this process. Knows no model and no parameter names.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from qwench.errors import CheckpointError
from qwench.fault import fault
from qwench.weights.locate import INDEX, SINGLE

MAX_HEADER = 100_000_000
_ONE, _TWO = ("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), ("I16", "U16", "F16", "BF16")
_FOUR, _EIGHT = ("I32", "U32", "F32"), ("I64", "U64", "F64")
ITEM_BYTES = dict.fromkeys(_ONE, 1) | dict.fromkeys(_TWO, 2) | dict.fromkeys(_FOUR, 4) | dict.fromkeys(_EIGHT, 8)
MAX_AXES = 8


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: ``begin`` is its offset in ``file``, ``dtype`` the format's own name (BF16, F32, ...)."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    num_bytes: int

    def rows(self, first: int, count: int) -> StoredTensor:
        """Entries of the first axis."""
        size = self.num_bytes // self.shape[0]
        shape = (count, *self.shape[1:])
        return replace(self, shape=shape, begin=self.begin + first * size, num_bytes=count * size)


@dataclass(frozen=True)
class StoredCheckpoint:
    """All tensors of a folder by name, and the ``format`` notes of its files ("pt", "mlx")."""

    folder: Path
    tensors: dict[str, StoredTensor]
    formats: frozenset[str]


def open_checkpoint(folder: Path) -> StoredCheckpoint:
    """Read the headers of every file of the checkpoint. Raises CheckpointError naming the file."""
    tensors: dict[str, StoredTensor] = {}
    formats: set[str] = set()
    expected = file_of_tensors(folder)
    files = [folder / name for name in dict.fromkeys(expected.values())] if expected else [folder / SINGLE]
    for file in files:
        stored, note = read_header(file)
        formats |= {note} if note else set()
        for tensor in stored:
            if tensor.name in tensors:
                first = tensors[tensor.name].file.name
                raise CheckpointError(f"Tensor {tensor.name} is in {first} and again in {file}; keep one of them.")
            tensors[tensor.name] = tensor
    for name, file_name in expected.items():
        if name not in tensors or tensors[name].file.name != file_name:
            raise CheckpointError(f"{folder / INDEX} says that {file_name} holds {name}, but it does not; {REPAIR}")
    return StoredCheckpoint(folder, tensors, frozenset(formats))


REPAIR = "download the checkpoint again."


def file_of_tensors(folder: Path) -> dict[str, str]:
    """Tensor name -> file name as the index says; empty where one file holds them all. Raises CheckpointError."""
    if (folder / SINGLE).is_file():
        return {}
    if (folder / INDEX).is_file():
        return _read_index(folder / INDEX)
    raise _nothing_to_read(folder)


def read_header(file: Path) -> tuple[list[StoredTensor], str | None]:
    """The tensors of one file, checked to lie inside it without gap or overlap, and its ``format`` note."""
    try:
        fault("read.header")
        size = file.stat().st_size
        with file.open("rb") as stream:
            raw = _header_bytes(stream, size, file)
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing; {REPAIR}") from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from None
    header = _parse_header(raw, file)
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{file}: __metadata__ of the header is not an object; {REPAIR}")
    start = 8 + len(raw)
    tensors = [_stored_tensor(name, entry, file, start) for name, entry in header.items()]
    position = start
    for tensor in sorted(tensors, key=lambda item: (item.begin, item.num_bytes)):
        if tensor.begin != position:
            kind = "overlaps another tensor" if tensor.begin < position else "leaves a gap before it"
            raise CheckpointError(f"{file}: tensor {tensor.name} {kind}; the header is damaged, {REPAIR}")
        position += tensor.num_bytes
    if position != size:
        problem = "is truncated" if position > size else "has bytes that no tensor owns"
        raise CheckpointError(f"{file} {problem}: its header describes {position} bytes, it has {size}; {REPAIR}")
    note = metadata.get("format")
    return tensors, note if isinstance(note, str) else None


def _header_bytes(stream: BinaryIO, size: int, file: Path) -> bytes:
    start = stream.read(8)
    if len(start) < 8:
        raise CheckpointError(f"{file} is not a safetensors file: it has only {size} bytes; {REPAIR}")
    (length,) = struct.unpack("<Q", start)
    if length > MAX_HEADER:
        raise CheckpointError(f"{file} is not a safetensors file: its header would be {length} bytes; {REPAIR}")
    if length > size - 8:
        raise CheckpointError(
            f"{file} is truncated inside its header: {length} bytes announced, {size - 8} there; {REPAIR}"
        )
    raw = stream.read(length)
    if raw[:1] != b"{":
        raise CheckpointError(f"{file} is not a safetensors file: its header is not a JSON object; {REPAIR}")
    return raw


def _parse_header(raw: bytes, file: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise CheckpointError(f"{file}: {twice} appears twice in the header; {REPAIR}")
        return keys

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: the header is not valid JSON ({error}); {REPAIR}") from None
    assert isinstance(header, dict)  # the first byte is "{"
    return header


def _stored_tensor(name: str, entry: object, file: Path, start: int) -> StoredTensor:
    fault = CheckpointError(f"{file}: the header's entry of {name} is damaged: {str(entry)[:200]}; {REPAIR}")
    if not isinstance(entry, dict):
        raise fault
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
        raise fault
    if dtype not in ITEM_BYTES:
        raise CheckpointError(f"{file}: tensor {name} has the unknown type {dtype}; known are {', '.join(ITEM_BYTES)}.")
    begin, end = offsets
    needed = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != needed:
        raise CheckpointError(
            f"{file}: tensor {name} is {dtype} {shape}, which needs {needed} bytes, but its offsets span "
            f"{end - begin}; {REPAIR}"
        )
    return StoredTensor(name, file, dtype, tuple(shape), start + begin, end - begin)


def _whole_numbers(value: object) -> TypeGuard[list[int]]:
    if not isinstance(value, list) or len(value) > MAX_AXES:
        return False
    return all(type(item) is int and 0 <= item < 2**63 for item in value)


def _read_index(path: Path) -> dict[str, str]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        pairs = dict(raw["weight_map"])
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError, KeyError, TypeError):
        raise CheckpointError(f"{path} is not a safetensors index (an object with weight_map); {REPAIR}") from None
    for name, file in pairs.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointError(f"{path}: {name} points to {file!r}, which is not a *.safetensors file beside it.")
    if not pairs:
        raise CheckpointError(f"{path} names no tensor; {REPAIR}")
    return pairs


def _nothing_to_read(folder: Path) -> CheckpointError:
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if any(name.endswith(".safetensors") for name in found):
        return CheckpointError(f"{folder} has safetensors files but neither {SINGLE} nor {INDEX}; {REPAIR}")
    if any(name.endswith((".bin", ".pt", ".pth")) for name in found):
        return CheckpointError(
            f"{folder} has only pickled weights (*.bin), which can run code when opened and are never read; take a "
            f"safetensors copy of the model, or re-save it with transformers' save_pretrained."
        )
    if gguf := next((name for name in found if name.endswith(".gguf")), None):
        return CheckpointError(f"{folder} has only GGUF weights; give the path of the file itself, {folder / gguf}.")
    return CheckpointError(f"{folder} holds no weights: neither {SINGLE} nor {INDEX} is there; {REPAIR}")


def read_chunks(tensor: StoredTensor, scratch: memoryview) -> Iterator[int]:
    """Fill ``scratch`` again and again with the next bytes of ``tensor``; yields how many bytes are valid each time."""
    left = tensor.num_bytes
    try:
        with tensor.file.open("rb", buffering=0) as stream:
            stream.seek(tensor.begin)
            while left:
                wanted = scratch[: min(left, len(scratch))]
                filled = 0
                while filled < len(wanted):
                    fault("read.weights")
                    got = stream.readinto(wanted[filled:])
                    if not got:
                        raise CheckpointError(f"{tensor.file} ended inside tensor {tensor.name}; {REPAIR}")
                    filled += got
                left -= filled
                yield filled
    except OSError as error:
        raise CheckpointError(f"{tensor.file} cannot be read: {error.strerror}.") from None
