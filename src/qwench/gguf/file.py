"""A model in GGUF: one file, or the parts of a split one, as one set of metadata and tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qwench.errors import CheckpointError
from qwench.gguf.header import REPAIR, Header, StoredTensor, Value, read_header

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
SPLIT_NUMBER, SPLIT_COUNT, SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"


@dataclass(frozen=True)
class GgufFile:
    """``path`` is the file, or the first of its ``parts``, whose metadata count; ``projector`` (mmproj) sees for it."""

    path: Path
    parts: tuple[Path, ...]
    metadata: Mapping[str, Value]
    tensors: dict[str, StoredTensor]
    projector: GgufFile | None = None


def is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def open_gguf(path: Path) -> GgufFile:
    """Read the header of ``path``, or of all parts where it is one of several. Raises CheckpointError."""
    parts = _parts(path)
    headers = [read_header(part) for part in parts]
    for index, (part, header) in enumerate(zip(parts, headers, strict=True)):
        _check_part(part, header, index, len(parts))
    tensors: dict[str, StoredTensor] = {}
    for header in headers:
        for tensor in header.tensors:
            if tensor.name in tensors:
                first = tensors[tensor.name].file.name
                raise CheckpointError(f"Tensor {tensor.name} is in {first} and again in {tensor.file}; {REPAIR}")
            tensors[tensor.name] = tensor
    announced = headers[0].metadata.get(SPLIT_TENSORS, len(tensors))
    if announced != len(tensors):
        raise CheckpointError(
            f"{parts[0]}: key {SPLIT_TENSORS!r} is {announced!r}, but the parts hold {len(tensors)} tensors; {REPAIR}"
        )
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors; {REPAIR}")
    return GgufFile(parts[0], parts, headers[0].metadata, tensors)


def _parts(path: Path) -> tuple[Path, ...]:
    """The files of the set that ``path`` belongs to by its name, all of which must be there."""
    match = _PART.fullmatch(path.name)
    if match is None:
        return (path,)
    stem, number, count = match[1], int(match[2]), int(match[3])
    if not 1 <= number <= count:
        raise CheckpointError(f"{path} is named as part {number} of {count}; parts are counted from 1, rename it.")
    parts = []
    for index in range(count):  # stops at the first part that is not there, whatever the name announces
        part = path.with_name(f"{stem}-{index + 1:05d}-of-{match[3]}{path.suffix}")
        if not part.is_file():
            raise CheckpointError(f"{path} is part {number} of {count}, but {part.name} is not beside it; download it.")
        parts.append(part)
    return tuple(parts)


def _check_part(part: Path, header: Header, index: int, count: int) -> None:
    """What a part says of itself must be what its name says."""
    told = header.metadata.get(SPLIT_COUNT, 1 if count == 1 else None)
    if told not in (count, 0 if count == 1 else count):
        expected = (
            f"its name says {count}" if count > 1 else "its name is not that of a part (NAME-00001-of-00002.gguf)"
        )
        raise CheckpointError(f"{part}: key {SPLIT_COUNT!r} is {told!r}, but {expected}; restore the published name.")
    number = header.metadata.get(SPLIT_NUMBER, 0 if count == 1 else None)
    if number != index:
        raise CheckpointError(
            f"{part}: key {SPLIT_NUMBER!r} is {number!r}, but by its name the file is number {index} (counted from 0); "
            f"restore the published name."
        )
