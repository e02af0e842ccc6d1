"""The header of one GGUF file: its metadata, and where its tensors lie. It knows neither models nor torch.

A header comes from strangers: every count, length, type and offset is compared with the bytes that are left, or with a
limit below, before it is used. Files are read, not mapped: one that shrinks under a mapping kills the process.
"""

from __future__ import annotations

import math
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from qwench.errors import CheckpointError
from qwench.fault import fault

MAGIC, VERSIONS = b"GGUF", (2, 3)
MAX_HEADER = 128 * 2**20  # a vocabulary of 250,000 tokens with its merges takes about 12 MiB
MAX_ENTRIES = 100_000  # keys, and tensors, of one file
MAX_NAME = 1024
MAX_STRING = 2**24
MAX_ITEMS = 2**22  # of one array
MAX_AXES, MAX_ELEMENTS = 4, 2**48
MAX_ALIGNMENT, DEFAULT_ALIGNMENT = 2**20, 32
READ_AHEAD = 4 * 2**20
REPAIR = "download the file again."

STRING, ARRAY = 8, 9  # as types of metadata
# The scalar types of metadata, by number: name, and how struct spells it.
SCALARS: Mapping[int, tuple[str, str]] = MappingProxyType(
    {
        0: ("u8", "B"), 1: ("i8", "b"), 2: ("u16", "H"), 3: ("i16", "h"), 4: ("u32", "I"), 5: ("i32", "i"),
        6: ("f32", "f"), 7: ("bool", "B"), 10: ("u64", "Q"), 11: ("i64", "q"), 12: ("f64", "d"),
    }
)  # fmt: skip


@dataclass(frozen=True)
class TensorType:
    """How numbers are stored: ``block`` of them in ``num_bytes``."""

    name: str
    block: int
    num_bytes: int


# Every tensor type by its number; gaps were given up by their inventors.
TENSOR_TYPES: Mapping[int, TensorType] = MappingProxyType(
    {
        number: TensorType(*row)
        for number, row in {
            0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8),
            24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8),
            2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
            10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
            13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
            16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 22: ("IQ2_S", 256, 82), 18: ("IQ3_XXS", 256, 98),
            21: ("IQ3_S", 256, 110), 19: ("IQ1_S", 256, 50), 29: ("IQ1_M", 256, 56), 20: ("IQ4_NL", 32, 18),
            23: ("IQ4_XS", 256, 136), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
            40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
        }.items()
    }
)  # fmt: skip


@dataclass(frozen=True)
class Array:
    """An array of metadata as it lies in the file: ``item`` is the number of its items' type."""

    item: int
    count: int
    raw: bytes

    def __repr__(self) -> str:
        return f"an array of {self.count} {'strings' if self.item == STRING else SCALARS[self.item][0]}"


Value = bool | int | float | str | Array


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: ``begin`` is its offset in ``file``. ``shape`` has the innermost axis last."""

    name: str
    file: Path
    type: TensorType
    shape: tuple[int, ...]
    begin: int
    num_bytes: int


@dataclass(frozen=True)
class Header:
    """One file's metadata and tensors, both in the file's order."""

    metadata: Mapping[str, Value]
    tensors: tuple[StoredTensor, ...]


def read_header(file: Path) -> Header:
    """The header of ``file``, checked in full. Raises CheckpointError naming file and field."""
    try:
        fault("read.header")
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{file} is not a regular file; give the path of a GGUF file.")
        with file.open("rb", buffering=0) as stream:
            return _read(_Cursor(stream, status.st_size, file))
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing; {REPAIR}") from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from None


class _Cursor:
    """Goes through a file from its beginning; never reads or keeps more than the file has or a header may have."""

    def __init__(self, stream: BinaryIO, size: int, file: Path) -> None:
        self.stream, self.size, self.file = stream, size, file
        self.data, self.position = bytearray(), 0

    def error(self, field: str, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.file}: {field} {reason}; {REPAIR}")

    @property
    def left(self) -> int:
        return self.size - self.position

    def take(self, count: int, field: str) -> int:
        """Go on by ``count`` bytes; returns where in ``data`` they begin."""
        start, self.position = self.position, self.position + count
        if self.position > len(self.data):
            self._read_to(self.position, field)
        return start

    def number(self, letter: str, field: str) -> int:
        start = self.take(struct.calcsize(f"<{letter}"), field)
        (value,) = struct.unpack_from(f"<{letter}", self.data, start)
        assert isinstance(value, int)
        return value

    def string(self, field: str, limit: int) -> str:
        length = self.number("Q", f"the length of {field}")
        if length > limit:
            raise self.error(field, f"would have {length} bytes, more than the {limit} a real file has")
        start = self.take(length, field)
        try:
            return self.data[start : start + length].decode("utf-8")
        except UnicodeDecodeError:
            raise self.error(field, "is not UTF-8") from None

    def skip_strings(self, count: int, field: str) -> None:
        """Go over ``count`` strings: the inner loop of reading a vocabulary, which asks for no more than it must."""
        read = struct.Struct("<Q").unpack_from
        data, position, index = self.data, self.position, 0
        while index < count:
            try:
                for index in range(index, count):  # noqa: B020 - it goes on where it was interrupted
                    (length,) = read(data, position)
                    if length > MAX_STRING:
                        raise self.error(f"{field}[{index}]", f"would have {length} bytes, more than a real file has")
                    position += 8 + length
                break
            except struct.error:  # it lies behind what has been read of the file
                self._read_to(position + 8, f"{field}[{index}]")
        self.take(position - self.position, f"{field}[{count - 1}]")

    def _read_to(self, end: int, field: str) -> None:
        if end > self.size:
            raise CheckpointError(
                f"{self.file} is truncated: {field} would end at byte {end}, but the file has {self.size}; {REPAIR}"
            )
        if end > MAX_HEADER:
            raise self.error(field, f"would end behind the {MAX_HEADER} bytes that a header may have")
        target = min(max(end, len(self.data) + READ_AHEAD), self.size, MAX_HEADER)
        while len(self.data) < target:
            piece = self.stream.read(target - len(self.data))
            if not piece:
                raise CheckpointError(f"{self.file} became shorter while it was read; {REPAIR}")
            self.data += piece


def _read(cursor: _Cursor) -> Header:
    _check_magic(cursor)
    num_tensors, num_keys = cursor.number("Q", "the number of tensors"), cursor.number("Q", "the number of keys")
    # The least a tensor takes (length, letter, axes, an axis, type, offset), and a key (length, letter, type, byte).
    for field, count, least in (("the number of tensors", num_tensors, 33), ("the number of keys", num_keys, 14)):
        if count > min(MAX_ENTRIES, cursor.left // least):
            raise cursor.error(field, f"is {count}, more than {cursor.left} bytes can describe or a real file has")
    metadata: dict[str, Value] = {}
    for index in range(num_keys):
        key = _name(cursor, f"the name of key {index}")
        if key in metadata:
            raise cursor.error(f"key {key!r}", "is there twice")
        metadata[key] = _value(cursor, cursor.number("I", f"the type of {key!r}"), f"key {key!r}")
    alignment = _alignment(cursor, metadata)
    infos = [_tensor_info(cursor, index, alignment) for index in range(num_tensors)]
    start = -(-cursor.position // alignment) * alignment
    tensors = tuple(_placed(cursor.file, start, *info) for info in infos)
    _check_places(cursor, tensors, start, alignment)
    return Header(MappingProxyType(metadata), tensors)


def _check_magic(cursor: _Cursor) -> None:
    start = cursor.take(len(MAGIC), "the magic number") if cursor.left >= len(MAGIC) else 0
    magic = bytes(cursor.data[start : start + len(MAGIC)])
    if magic != MAGIC:
        raise CheckpointError(f"{cursor.file} is not a GGUF file: it begins with {magic!r}; {REPAIR}")
    version = cursor.number("I", "the version")
    if version in VERSIONS:
        return
    if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
        raise CheckpointError(f"{cursor.file} is a big-endian GGUF file; take a little-endian one.")
    known = " and ".join(map(str, VERSIONS))
    raise CheckpointError(f"{cursor.file} has the GGUF version {version}; read are {known}, take a newer conversion.")


def _name(cursor: _Cursor, field: str) -> str:
    name = cursor.string(field, MAX_NAME)
    if not name or not name.isprintable():
        raise cursor.error(field, f"is {name!r}")
    return name


def _value(cursor: _Cursor, kind: int, field: str) -> Value:
    if kind == STRING:
        return cursor.string(field, MAX_STRING)
    if kind == ARRAY:
        return _array(cursor, field)
    if kind not in SCALARS:
        raise cursor.error(field, f"has the unknown type {kind}")
    name, letter = SCALARS[kind]
    start = cursor.take(struct.calcsize(f"<{letter}"), field)
    (value,) = struct.unpack_from(f"<{letter}", cursor.data, start)
    if name == "bool":
        if value > 1:
            raise cursor.error(field, f"is {value} where true (1) or false (0) is expected")
        return bool(value)
    assert isinstance(value, (int, float))
    return value


def _array(cursor: _Cursor, field: str) -> Array:
    """An array, gone over and kept as bytes."""
    item, count = cursor.number("I", f"the type of {field}"), cursor.number("Q", f"the length of {field}")
    if item == ARRAY:
        raise cursor.error(field, "holds arrays of arrays, which no model has")
    if item != STRING and item not in SCALARS:
        raise cursor.error(field, f"holds the unknown type {item}")
    least = 8 if item == STRING else struct.calcsize(f"<{SCALARS[item][1]}")  # a string takes at least its length
    if count > min(MAX_ITEMS, cursor.left // least):
        raise cursor.error(field, f"would have {count} items, more than {cursor.left} bytes hold or a real file has")
    start = cursor.position
    if item == STRING:
        cursor.skip_strings(count, field)
    else:
        cursor.take(count * least, field)
    return Array(item, count, bytes(cursor.data[start : cursor.position]))


def _alignment(cursor: _Cursor, metadata: Mapping[str, Value]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    # bool is an int to Python
    if type(value) is not int or not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise cursor.error("key 'general.alignment'", f"is {value!r}; it must be a power of two up to {MAX_ALIGNMENT}")
    return value


_Info = tuple[str, tuple[int, ...], TensorType, int]


def _tensor_info(cursor: _Cursor, index: int, alignment: int) -> _Info:
    """Name, shape, type and offset of the next tensor."""
    name = _name(cursor, f"the name of tensor {index}")
    field = f"tensor {name}"
    axes = cursor.number("I", f"the number of axes of {field}")
    if not 1 <= axes <= MAX_AXES:
        raise cursor.error(field, f"has {axes} axes; 1 to {MAX_AXES} are possible")
    shape = tuple(cursor.number("Q", f"the shape of {field}") for _ in range(axes))[::-1]
    if min(shape) < 1 or math.prod(shape) > MAX_ELEMENTS:
        raise cursor.error(field, f"has the shape {list(shape)}, which no tensor can have")
    number, offset = cursor.number("I", f"the type of {field}"), cursor.number("Q", f"the offset of {field}")
    if number not in TENSOR_TYPES:
        raise CheckpointError(
            f"{cursor.file}: {field} has the type number {number}, which is not known; take a file with another "
            f"quantisation, such as Q4_K_M or Q8_0."
        )
    kind = TENSOR_TYPES[number]
    if shape[-1] % kind.block:
        raise cursor.error(
            field, f"has rows of {shape[-1]} numbers, but {kind.name} stores whole blocks of {kind.block}"
        )
    if offset % alignment:
        raise cursor.error(field, f"has the offset {offset}, which is not a multiple of the alignment {alignment}")
    return name, shape, kind, offset


def _placed(file: Path, start: int, name: str, shape: tuple[int, ...], kind: TensorType, offset: int) -> StoredTensor:
    num_bytes = math.prod(shape) // kind.block * kind.num_bytes
    return StoredTensor(name, file, kind, shape, start + offset, num_bytes)


def _check_places(cursor: _Cursor, tensors: tuple[StoredTensor, ...], start: int, alignment: int) -> None:
    """Tensors follow one another, each from the next multiple of the alignment on, inside the file."""
    names: set[str] = set()
    expected = start
    for tensor in sorted(tensors, key=lambda each: each.begin):
        field = f"tensor {tensor.name}"
        if tensor.name in names:
            raise cursor.error(field, "is there twice")
        names.add(tensor.name)
        if tensor.begin != expected:
            problem = "overlaps the one before it" if tensor.begin < expected else "leaves a gap before it"
            raise cursor.error(field, f"begins at byte {tensor.begin} where {expected} is expected: it {problem}")
        end = tensor.begin + tensor.num_bytes
        if end > cursor.size:
            raise CheckpointError(
                f"{cursor.file} is truncated: {field} ends at byte {end}, but the file has {cursor.size}; {REPAIR}"
            )
        expected = -(-end // alignment) * alignment
