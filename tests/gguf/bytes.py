"""A GGUF file byte by byte, so that a test can lie in any field. Knows nothing of the package."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

U8, U16, I32, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 2, 5, 4, 6, 7, 8, 9, 10
LETTERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}


def string(text: str | bytes, length: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def scalar(kind: int, value: Any) -> bytes:
    raw = string(value) if kind == STRING else struct.pack(f"<{LETTERS[kind]}", value)
    return struct.pack("<I", kind) + raw


def array(kind: int, items: Sequence[Any], count: int | None = None) -> bytes:
    head = struct.pack("<IIQ", ARRAY, kind, len(items) if count is None else count)
    if kind == STRING:
        return head + b"".join(string(item) for item in items)
    return head + struct.pack(f"<{len(items)}{LETTERS[kind]}", *items)


@dataclass(frozen=True)
class Tensor:
    """``shape`` as the file has it, innermost first; None leaves a field to be worked out."""

    name: str
    shape: tuple[int, ...]
    kind: int = 0
    offset: int | None = None
    num_bytes: int | None = None
    axes: int | None = None


@dataclass(frozen=True)
class File:
    """All parts of a file; what is None is worked out as an honest writer would."""

    keys: tuple[tuple[str | bytes, bytes], ...]
    tensors: tuple[Tensor, ...] = field(default=(Tensor("token_embd.weight", (8, 4)),))
    magic: bytes = b"GGUF"
    version: int = 3
    num_tensors: int | None = None
    num_keys: int | None = None
    alignment: int = 32
    cut: int | None = None
    more: bytes = b""

    def but(self, **change: Any) -> File:
        return replace(self, **change)

    def with_key(self, name: str | bytes, raw: bytes | None) -> File:
        """A key replaced or added, or left out where None."""
        kept = tuple(pair for pair in self.keys if pair[0] != name)
        return replace(self, keys=kept if raw is None else (*kept, (name, raw)))

    def encoded(self) -> bytes:
        num_tensors = len(self.tensors) if self.num_tensors is None else self.num_tensors
        num_keys = len(self.keys) if self.num_keys is None else self.num_keys
        raw = self.magic + struct.pack("<IQQ", self.version, num_tensors, num_keys)
        raw += b"".join(string(name) + value for name, value in self.keys)
        offset, data = 0, b""
        for tensor in self.tensors:
            size = tensor.num_bytes
            if size is None:
                size = 4
                for length in tensor.shape:
                    size *= length
            axes = len(tensor.shape) if tensor.axes is None else tensor.axes
            raw += string(tensor.name) + struct.pack(f"<I{len(tensor.shape)}Q", axes, *tensor.shape)
            raw += struct.pack("<IQ", tensor.kind, offset if tensor.offset is None else tensor.offset)
            data += bytes(size) + bytes(-size % self.alignment)
            offset = len(data)
        raw += bytes(-len(raw) % self.alignment) + data + self.more
        return raw if self.cut is None else raw[: self.cut]

    def write(self, path: Path) -> Path:
        path.write_bytes(self.encoded())
        return path
