"""A GGUF file as a source of weights: matrices keep their stored types, the converter's changes are undone.

What a converter changed and where it is undone: norms hold 1 + w (here), decay rates -exp(a_log) (here), a scalar gate
lost an axis (here), gates and up-projections of experts are separate tensors (here), and value heads lie in another
order, which stays as it is: ``value_heads_tiled`` of the configuration tells the model.

Types that are indices into code books (IQ1 to IQ3, and the ternary ones) have no kernels. The gguf package knows the
books; where it is installed their numbers are rounded once more, to a type of ours that nearly holds them.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Self

import numpy as np

from qwench.config import ModelConfig
from qwench.errors import CheckpointError
from qwench.fault import fault
from qwench.gguf.file import GgufFile
from qwench.gguf.header import REPAIR, StoredTensor
from qwench.model.parameters import ParameterSpec
from qwench.ops.arrays import FLOAT32, DType, Host, to_host
from qwench.ops.lazy import torch
from qwench.ops.loading import MatrixInFile
from qwench.ops.quantised import Codes, allocate, dequantise
from qwench.ops.store import Kind, Value
from qwench.ops.weight_types import GGUF_TYPES, WeightType
from qwench.weights.formats import gguf_blocks
from qwench.weights.gguf_match import BOOKS, GgufTensors, stored_matrices
from qwench.weights.quantise import quantise
from qwench.weights.source import Part, Progress, UnusedTensor, piece_rows

NORMS = ("mixer_norm", "mlp_norm", "final_norm", "query_norm", "key_norm")  # zero-centred in Qwen3.5
MIXED = GGUF_TYPES["Q8_0"]  # what two parts of one matrix become where their types differ


@dataclass(frozen=True)
class Conversion:
    """Stored tensors that are kept in another type than their own, and why."""

    names: tuple[str, ...]
    kept: str
    reason: str


class GgufSource:
    """A WeightSource. ``dtype`` is the type of unquantised weights; ``converted`` says what changes its type."""

    def __init__(self, file: GgufFile, config: ModelConfig, dtype: DType) -> None:
        self._config, self._dtype = config, dtype
        self._tensors = GgufTensors(file, config)
        self._specs, self._stored = self._tensors.specs, self._tensors.stored
        self.unused = [UnusedTensor(tensor.name, tensor.shape, reason) for tensor, reason in self._tensors.unused]
        self.kinds: Mapping[str, Kind] = {name: self._kind(name) for name in self._specs}

    @property
    def converted(self) -> Sequence[Conversion]:
        found: dict[tuple[str, str], list[str]] = {}
        for name, stored in self._stored.items():
            kept, types = self.kinds[name], {each.type.name for each in stored}
            if not isinstance(kept, WeightType) or types == {kept.name}:
                continue
            reason = "gate and up of one expert differ in type"
            if len(types) == 1:
                reason = f"{types.pop()} has no kernels here; its numbers are rounded once more"
            found.setdefault((kept.name, reason), []).extend(each.name for each in stored)
        return [Conversion(tuple(names), kept, reason) for (kept, reason), names in found.items()]

    def stored(self) -> Sequence[MatrixInFile]:
        return stored_matrices(self._tensors, str(self._dtype))

    def parts(self, progress: Progress | None = None, without: Container[str] = ()) -> Iterator[tuple[Part, Value]]:
        chosen = {name: stored for name, stored in self._stored.items() if name not in without}
        total = sum(tensor.num_bytes for stored in chosen.values() for tensor in stored)
        with _Reader(total, progress) as reader:
            for name in sorted(chosen, key=lambda name: (chosen[name][0].file, chosen[name][0].begin)):
                spec, stored = self._specs[name], self._stored[name]
                if spec.kind == "experts":
                    yield from self._experts(name, spec, stored, reader)
                elif spec.kind in ("vector", "float32"):
                    yield Part(name), self._vector(name, spec, stored[0], reader)
                else:
                    yield from self._matrix(name, spec, stored[0], reader)

    def _kind(self, name: str) -> Kind:
        """The type a parameter has in memory."""
        spec, stored = self._specs[name], self._stored[name]
        if spec.kind == "float32":
            return FLOAT32
        if spec.kind == "vector" or all(tensor.type.name in gguf_blocks.FLOATS for tensor in stored):
            return self._dtype
        types = {tensor.type.name for tensor in stored}
        if len(types) > 1:
            return MIXED
        (stored_type,) = types
        return BOOKS.get(stored_type) or GGUF_TYPES[stored_type]

    def _vector(self, name: str, spec: ParameterSpec, stored: StoredTensor, reader: _Reader) -> Host:
        """A small parameter, with what the converter did to it undone in fp32."""
        raw = reader.rows(stored, 0, stored.num_bytes // _row_bytes(stored))
        values = _floats(raw, stored).reshape(spec.shape)
        inner = name.rpartition(".")[2]
        if inner in NORMS and self._config.zero_centred_norms:
            values = values - 1
        if inner == "a_log":
            if not (values < 0).all():
                raise CheckpointError(
                    f"{stored.file}: tensor {stored.name} holds decay rates that are not negative; {REPAIR}"
                )
            values = np.log(-values.astype(np.float64))
        kind = self.kinds[name]
        assert not isinstance(kind, WeightType)
        return values.astype(kind)

    def _matrix(
        self, name: str, spec: ParameterSpec, stored: StoredTensor, reader: _Reader
    ) -> Iterator[tuple[Part, Value]]:
        out, width = spec.shape
        step = piece_rows(width)
        for begin in range(0, out, step):
            end = min(begin + step, out)
            target = _target(self.kinds[name], end - begin, width)
            reader.fill(target, 0, stored, begin, end)
            yield Part(name), target

    def _experts(
        self, name: str, spec: ParameterSpec, stored: Sequence[StoredTensor], reader: _Reader
    ) -> Iterator[tuple[Part, Value]]:
        experts, out, width = spec.shape
        rows = out // len(stored)
        for expert in range(experts):
            target = _target(self.kinds[name], out, width)
            for index, tensor in enumerate(stored):
                reader.fill(target, index * rows, tensor, expert * rows, (expert + 1) * rows)
            yield Part(name, expert), target


def _row_bytes(tensor: StoredTensor) -> int:
    return tensor.shape[-1] // tensor.type.block * tensor.type.num_bytes


def _target(kind: Kind, out: int, width: int) -> Value:
    if isinstance(kind, WeightType):
        return allocate(kind, out, width)
    return np.empty((out, width), kind)


def _floats(raw: Host, stored: StoredTensor) -> Host:
    """Rows of bytes as fp32 [rows, width]."""
    name = stored.type.name
    if name in gguf_blocks.FLOATS:
        return raw.view(gguf_blocks.FLOATS[name]).astype(np.float32)
    if name in BOOKS:
        import gguf

        numbers: Host = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
        return numbers
    codes = allocate(GGUF_TYPES[name], len(raw), stored.shape[-1])
    gguf_blocks.decode(raw, codes)
    return to_host(dequantise(codes))


class _Reader:
    """Reads rows of stored tensors, keeps one file open, and counts bytes."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._done, self._progress = total, 0, progress
        self._buffer = bytearray()  # one for all reads: fresh memory costs as much as the reading
        self._path: Path | None = None
        self._stream: FileIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def fill(self, target: Value, at: int, stored: StoredTensor, begin: int, end: int) -> None:
        """Rows [begin, end) of ``stored`` into ``target`` from row ``at`` on."""
        raw, last = self.rows(stored, begin, end), at + end - begin
        if not isinstance(target, Codes):
            target[at:last] = _floats(raw, stored).astype(target.dtype)
        elif target.type.name == stored.type.name:
            gguf_blocks.decode(raw, gguf_blocks.rows(target, at, last))
        elif target.type == MIXED:
            gguf_blocks.round_to_q8(_floats(raw, stored), gguf_blocks.rows(target, at, last))
        else:
            rounded = quantise(torch.from_numpy(_floats(raw, stored)), target.type).arrays
            for name, array in gguf_blocks.rows(target, at, last).arrays.items():
                array[:] = to_host(rounded[name])

    def rows(self, stored: StoredTensor, begin: int, end: int) -> Host:
        """Rows [begin, end) as they are stored, uint8 [rows, bytes of a row], until the next call."""
        size = _row_bytes(stored)
        count = (end - begin) * size
        if len(self._buffer) < count:
            self._buffer = bytearray(count)
        try:
            self._read(stored, begin * size, memoryview(self._buffer)[:count])
        except OSError as error:
            raise CheckpointError(f"{stored.file} cannot be read: {error.strerror}.") from None
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)
        return np.frombuffer(self._buffer, np.uint8, count).reshape(end - begin, size)

    def _read(self, stored: StoredTensor, offset: int, buffer: memoryview) -> None:
        if self._path != stored.file or self._stream is None:
            if self._stream is not None:
                self._stream.close()
            self._stream, self._path = stored.file.open("rb", buffering=0), stored.file
        self._stream.seek(stored.begin + offset)
        filled = 0
        while filled < len(buffer):
            fault("read.weights")
            count = self._stream.readinto(buffer[filled:])
            if not count:
                raise CheckpointError(f"{stored.file} ended inside tensor {stored.name}; {REPAIR}")
            filled += count
