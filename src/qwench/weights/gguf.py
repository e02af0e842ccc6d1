"""A GGUF file as a source of weights: matrices keep their stored types, the converter's changes are undone.

What a converter changed and where it is undone: norms hold 1 + w (here), decay rates -exp(a_log) (here), a scalar gate
lost an axis (here), gates and up-projections of experts are separate tensors (here), and value heads lie in another
order, which stays as it is: ``value_heads_tiled`` of the configuration tells the model.

Types that are indices into code books (IQ1 to IQ3, and the ternary ones) have no kernels. The gguf package knows the
books; where it is installed their numbers are rounded once more, to a type of ours that nearly holds them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Self

import torch

from qwench.config import ModelConfig
from qwench.errors import CheckpointError, listed
from qwench.fault import fault
from qwench.gguf.file import GgufFile
from qwench.gguf.header import REPAIR, StoredTensor
from qwench.model.parameters import ParameterSpec, declare
from qwench.ops.quantised import GGUF_TYPES, OWN_TYPES, WeightType, dequantise
from qwench.ops.store import Kind, Value
from qwench.weights.formats import gguf_blocks
from qwench.weights.names import Place
from qwench.weights.names_gguf import gguf_names, gguf_place, unused_gguf_reason
from qwench.weights.quantise import quantise
from qwench.weights.source import Part, Progress, UnusedTensor, piece_rows

ADVICE = "take another quantisation of this model, such as Q4_K_M, Q8_0 or BF16"
NORMS = ("mixer_norm", "mlp_norm", "final_norm", "query_norm", "key_norm")  # zero-centred in Qwen3.5
MIXED = GGUF_TYPES["Q8_0"]  # what two parts of one matrix become where their types differ
# What the numbers of code books become: q4 nearly holds their levels, q2 those of the ternary ones.
BOOKS: Mapping[str, WeightType] = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"), OWN_TYPES["q4"]),
    **dict.fromkeys(("TQ1_0", "TQ2_0"), OWN_TYPES["q2"]),
}


@dataclass(frozen=True)
class Conversion:
    """Stored tensors that are kept in another type than their own, and why."""

    names: tuple[str, ...]
    kept: str
    reason: str


class GgufSource:
    """A WeightSource. ``dtype`` is the type of unquantised weights; ``converted`` says what changes its type."""

    def __init__(self, file: GgufFile, config: ModelConfig, dtype: torch.dtype) -> None:
        self._file, self._config, self._dtype = file, config, dtype
        self._specs = declare(config)
        self.unused: list[UnusedTensor] = []
        self._stored = self._matched()
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

    def parts(self, progress: Progress | None = None) -> Iterator[tuple[Part, Value]]:
        total = sum(tensor.num_bytes for stored in self._stored.values() for tensor in stored)
        with _Reader(total, progress) as reader:
            order = sorted(self._stored, key=lambda name: (self._stored[name][0].file, self._stored[name][0].begin))
            for name in order:
                spec, stored = self._specs[name], self._stored[name]
                if spec.kind == "experts":
                    yield from self._experts(name, spec, stored, reader)
                elif spec.kind in ("vector", "float32"):
                    yield Part(name), self._vector(name, spec, stored[0], reader)
                else:
                    yield from self._matrix(name, spec, stored[0], reader)

    def _matched(self) -> dict[str, tuple[StoredTensor, ...]]:
        """Each parameter's tensors, in the order of its rows; raises if file and declaration differ in anything."""
        found: dict[Place, StoredTensor] = {}
        extra: list[StoredTensor] = []
        layers = self._config.num_layers
        predictors = range(layers, layers + self._config.num_mtp_layers)
        for tensor in self._file.tensors.values():
            place = gguf_place(tensor.name)
            reason = unused_gguf_reason(tensor.name, predictors)
            if reason is not None:
                self.unused.append(UnusedTensor(tensor.name, tensor.shape, reason))
            elif place is None or place.name not in self._specs:
                extra.append(tensor)
            elif place in found:
                raise self._error(f"holds {found[place].name} and {tensor.name}, which are the same parameter")
            else:
                _check(tensor, place, self._specs[place.name])
                found[place] = tensor
        if extra:
            names = listed([f"{tensor.name} {list(tensor.shape)}" for tensor in extra])
            raise self._error(f"holds what a model of this architecture has no place for: {names}")
        return self._complete(found)

    def _complete(self, found: Mapping[Place, StoredTensor]) -> dict[str, tuple[StoredTensor, ...]]:
        stored: dict[str, tuple[StoredTensor, ...]] = {}
        missing: list[str] = []
        for name in self._specs:
            whole, halves = Place(name), [Place(name, part="gate"), Place(name, part="up")]
            present = [place for place in halves if place in found]
            if whole in found and present:
                raise self._error(f"holds {found[whole].name} and {found[present[0]].name}, the same parameter twice")
            wanted = halves if present else [whole]
            missing += [gguf_names(place) for place in wanted if place not in found]
            stored[name] = tuple(found[place] for place in wanted if place in found)
        if missing:
            raise self._error(f"lacks {listed(missing)}")
        return stored

    def _error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._file.path} {problem}; take another conversion of this model.")

    def _kind(self, name: str) -> Kind:
        """The type a parameter has in memory."""
        spec, stored = self._specs[name], self._stored[name]
        if spec.kind == "float32":
            return torch.float32
        types = {tensor.type.name for tensor in stored}
        if spec.kind == "vector" or types <= gguf_blocks.FLOATS.keys():
            return self._dtype
        if len(types) > 1:
            return MIXED
        (stored_type,) = types
        return BOOKS.get(stored_type) or GGUF_TYPES[stored_type]

    def _vector(self, name: str, spec: ParameterSpec, stored: StoredTensor, reader: _Reader) -> torch.Tensor:
        """A small parameter, with what the converter did to it undone in fp32."""
        values = _floats(reader.rows(stored, 0, stored.num_bytes // _row_bytes(stored)), stored)
        values = values.view(spec.shape)
        inner = name.rpartition(".")[2]
        if inner in NORMS and self._config.zero_centred_norms:
            values = values - 1
        if inner == "a_log":
            if not (values < 0).all():
                raise CheckpointError(
                    f"{stored.file}: tensor {stored.name} holds decay rates that are not negative; {REPAIR}"
                )
            values = (-values).log()
        kind = self.kinds[name]
        assert isinstance(kind, torch.dtype)
        return values.to(kind)

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


def _check(tensor: StoredTensor, place: Place, spec: ParameterSpec) -> None:
    """Shape and type, before anything is read."""
    expected = spec.shape
    if place.part is not None:  # gates, or up-projections, of all experts
        experts, out, width = spec.shape
        expected = (experts, out // 2, width)
    possible = [expected]
    if place.name.endswith(".shared_gate"):  # converters differ in which axes of one they keep
        possible.append(expected[1:])
    if place.name.endswith(".conv"):
        possible.append((expected[0], 1, expected[1]))
    if tensor.shape not in possible:
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name} has shape {list(tensor.shape)}; {list(expected)} is expected from "
            f"the metadata."
        )
    kind = tensor.type.name
    if kind in BOOKS and importlib.util.find_spec("gguf") is None:
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name} has the type {kind}, whose code book is in the gguf package; "
            f"`pip install gguf`, or {ADVICE}."
        )
    if not {kind} & (gguf_blocks.FLOATS.keys() | GGUF_TYPES.keys() | BOOKS.keys()):
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name} has the type {kind}, which is not supported; {ADVICE}."
        )


def _row_bytes(tensor: StoredTensor) -> int:
    return tensor.shape[-1] // tensor.type.block * tensor.type.num_bytes


def _target(kind: Kind, out: int, width: int) -> Value:
    if isinstance(kind, WeightType):
        return gguf_blocks.allocate(kind, out, width)
    return torch.empty(out, width, dtype=kind)


def _floats(raw: torch.Tensor, stored: StoredTensor) -> torch.Tensor:
    """Rows of bytes as fp32 [rows, width]."""
    name = stored.type.name
    if name in gguf_blocks.FLOATS:
        return raw.view(gguf_blocks.FLOATS[name]).to(torch.float32, copy=True)
    if name in BOOKS:
        import gguf

        return torch.from_numpy(gguf.quants.dequantize(raw.numpy(), gguf.GGMLQuantizationType[name]))
    codes = gguf_blocks.allocate(GGUF_TYPES[name], len(raw), stored.shape[-1])
    gguf_blocks.decode(raw, codes)
    return dequantise(codes)


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
        if isinstance(target, torch.Tensor):
            target[at:last].copy_(_floats(raw, stored))
        elif target.type.name == stored.type.name:
            gguf_blocks.decode(raw, gguf_blocks.rows(target, at, last))
        elif target.type == MIXED:
            gguf_blocks.round_to_q8(_floats(raw, stored), gguf_blocks.rows(target, at, last))
        else:
            rounded = quantise(_floats(raw, stored), target.type).arrays
            for name, array in gguf_blocks.rows(target, at, last).arrays.items():
                array.copy_(rounded[name])

    def rows(self, stored: StoredTensor, begin: int, end: int) -> torch.Tensor:
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
        return torch.frombuffer(self._buffer, dtype=torch.uint8, count=count).view(end - begin, size)

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
