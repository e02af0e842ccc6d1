"""A checkpoint's safetensors -> a stream of every parameter that the model declares, each cast as it is read.

Headers are compared with the declaration before the first byte is read: a checkpoint that does not fit costs nothing.
Memory: one piece at a time, and of packed matrices and block-FP8 one matrix. Knows no forward pass and nobody who
stores what comes.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qwench.config import ModelConfig
from qwench.errors import CheckpointError, listed
from qwench.model.parameters import ParameterSpec, declare
from qwench.ops.arrays import BFLOAT16, FLOAT16, FLOAT32, DType, Host, torch_dtype
from qwench.ops.lazy import torch
from qwench.ops.loading import BITS, ELEMENTS, MatrixInFile, RowsInFile
from qwench.ops.quantised import ARRAYS, Codes
from qwench.ops.store import Kind, Value
from qwench.ops.weight_types import WeightType
from qwench.weights.formats import fp8
from qwench.weights.formats.safetensors import StoredCheckpoint, StoredTensor, open_checkpoint, read_chunks
from qwench.weights.names import SCALE, Place, place_of, prefix_of, stored_name, unused_reason
from qwench.weights.packed import StoredMatrix, gather, join
from qwench.weights.source import Part, Progress, UnusedTensor, piece_rows, plain_kinds

FLOATS = {"BF16": BFLOAT16, "F16": FLOAT16, "F32": FLOAT32}
VECTORS = ("vector", "float32")  # small: read whole
CHUNK = 8 * 2**20
LARGE = ("embedding", "head")
MLX = "this is an MLX conversion, whose convolutions and norms are changed; take the original repository instead."


@dataclass(frozen=True)
class _Job:
    """One stored tensor, or rows of it, to read into one place.

    ``scale`` where it is block-FP8, ``packed`` where it holds codes that more tensors belong to.
    """

    stored: StoredTensor
    place: Place
    scale: StoredTensor | None = None
    packed: StoredMatrix | None = None

    @property
    def num_bytes(self) -> int:
        return self.stored.num_bytes if self.packed is None else self.packed.num_bytes


@dataclass(frozen=True)
class _Piece:
    """What is read at once: ``jobs`` fill ``shape`` one after the other."""

    part: Part
    shape: tuple[int, ...]
    jobs: tuple[_Job, ...]


class CheckpointSource:
    """The WeightSource of a folder; parameters come as ``dtype``, those of kind float32 stay float32."""

    def __init__(self, folder: Path, config: ModelConfig, dtype: DType) -> None:
        """Raises CheckpointError naming tensor, file and shapes."""
        self.kinds: dict[str, Kind] = plain_kinds(config, dtype)
        self._config = config
        checkpoint = open_checkpoint(folder)
        self._specs = declare(config)
        self._jobs, self.unused = _plan(checkpoint, config, self._specs)
        self.kinds |= _packed_kinds(self._jobs)

    def stored(self) -> Sequence[MatrixInFile]:
        """See WeightSource: plain numbers, and our own format."""
        found: dict[Part, list[RowsInFile | None]] = {}
        for piece in _pieces(self._jobs, self._specs):
            rows = piece.shape[0] // len(piece.jobs)
            found.setdefault(piece.part, []).extend(_stored_rows(job, rows) for job in piece.jobs)
        matrices = [self._stored_matrix(part, rows) for part, rows in found.items()]
        left = {part.name for part, matrix in zip(found, matrices, strict=True) if matrix is None or not matrix.fits}
        return [matrix for matrix in matrices if matrix is not None and matrix.name not in left]

    def _stored_matrix(self, part: Part, rows: Sequence[RowsInFile | None]) -> MatrixInFile | None:
        spec, kind = self._specs[part.name], self.kinds[part.name]
        whole = tuple(each for each in rows if each is not None)
        if spec.kind in VECTORS or len(whole) < len(rows):
            return None
        element = kind if isinstance(kind, WeightType) else ELEMENTS[str(kind)]
        return MatrixInFile(part.name, part.expert or 0, element, spec.shape[-2], spec.shape[-1], whole)

    def parts(self, progress: Progress | None = None, without: Container[str] = ()) -> Iterator[tuple[Part, Value]]:
        """See WeightSource. Packed matrices come as they are stored, in codes."""
        jobs = [job for job in self._jobs if job.place.name not in without]
        reader = Reader(sum(job.num_bytes for job in jobs), progress)
        for piece in _pieces(jobs, self._specs):
            kind = self.kinds[piece.part.name]
            if isinstance(kind, WeightType):
                yield piece.part, _read_codes(piece, reader)
            elif self._specs[piece.part.name].kind in VECTORS:
                yield piece.part, reader.numbers(piece.jobs[0].stored).astype(kind).reshape(piece.shape)
            else:
                yield piece.part, self._read(piece, torch.empty(piece.shape, dtype=torch_dtype(kind)), reader)
        reader.finish()

    def _read(self, piece: _Piece, value: torch.Tensor, reader: Reader) -> torch.Tensor:
        row = 0
        for job in piece.jobs:
            rows = len(value) if len(piece.jobs) == 1 else len(value) // len(piece.jobs)
            target = value[row : row + rows]
            row += rows
            if job.packed is not None:
                numbers = job.packed.read(reader.load, target.shape)
                assert isinstance(numbers, torch.Tensor)
                target.copy_(numbers)
            elif job.scale is None:
                reader.read(job.stored, torch_dtype(FLOATS[job.stored.dtype]), target)
            else:
                assert self._config.fp8_block is not None
                reader.read_fp8(job.stored, job.scale, self._config.fp8_block, target)
        return value


def _stored_rows(job: _Job, rows: int) -> RowsInFile | None:
    """Where the rows of ``job`` lie, if they are stored in a way that the native library reads."""
    stored = job.stored
    if job.packed is None and job.scale is None and stored.dtype in FLOATS:
        number = ELEMENTS[str(FLOATS[stored.dtype])]
        return RowsInFile(stored.file, number, rows, stored.num_bytes, (stored.begin,))
    if job.packed is None or job.packed.scheme.format != "own":
        return None
    parts = [job.packed.parts.get(f"_{name}") for name in ARRAYS]
    if any(part is not None and part.file != stored.file for part in parts):
        return None
    offsets = tuple(0 if part is None else part.begin for part in parts)
    return RowsInFile(stored.file, BITS, rows, job.packed.num_bytes, offsets)


def _read_codes(piece: _Piece, reader: Reader) -> Codes:
    """The rows of all jobs of ``piece``, each of which is packed."""
    rows, width = piece.shape
    found = []
    for job in piece.jobs:
        assert job.packed is not None
        codes = job.packed.read(reader.load, (rows // len(piece.jobs), width))
        assert isinstance(codes, Codes)
        found.append(codes)
    return join(found)


def _pieces(jobs: Sequence[_Job], specs: Mapping[str, ParameterSpec]) -> Iterator[_Piece]:
    """The stored tensors in the order of the files, cut or joined to what is read at once.

    The large tables come first, while the place of the weights is still empty: what is temporary then costs nothing.
    """
    parts: dict[Part, list[_Job]] = {}
    for job in sorted(jobs, key=lambda job: (job.place.name not in LARGE, job.stored.file.name, job.stored.begin)):
        parts.setdefault(Part(job.place.name, job.place.expert), []).append(job)
    for part, found in parts.items():
        spec = specs[part.name]
        if part.expert is not None:  # gate rows first, then up rows, wherever they are stored
            found.sort(key=lambda job: job.place.part or "")
            yield _Piece(part, spec.shape[1:], tuple(found))
        elif spec.kind == "experts":
            for expert in range(spec.shape[0]):
                yield _Piece(Part(part.name, expert), spec.shape[1:], (_expert(found[0], expert),))
        elif spec.kind in VECTORS or not _may_be_cut(found[0]):
            yield _Piece(part, spec.shape, tuple(found))
        else:
            out, width = spec.shape
            step = piece_rows(width)
            for first in range(0, out, step):
                count = min(step, out - first)
                yield _Piece(part, (count, width), (_rows(found[0], first, count),))


def _may_be_cut(job: _Job) -> bool:
    return job.scale is None if job.packed is None else job.packed.by_rows


def _expert(job: _Job, index: int) -> _Job:
    """One expert of all; of packed ones the axis goes."""
    return _rows(job, index, 1) if job.packed is None else replace(job, packed=job.packed.expert(index))


def _rows(job: _Job, first: int, count: int) -> _Job:
    """Some entries of the first axis, of experts or rows; scales go along, which only experts have there."""
    packed = None if job.packed is None else job.packed.rows(first, count)
    scale = None if job.scale is None else job.scale.rows(first, count)
    return _Job(job.stored.rows(first, count), job.place, scale, packed)


def _plan(
    checkpoint: StoredCheckpoint, config: ModelConfig, specs: Mapping[str, ParameterSpec]
) -> tuple[list[_Job], list[UnusedTensor]]:
    """Match stored tensors with declared parameters; raises if the two differ in anything."""
    _refuse_mlx(checkpoint, config)
    jobs: list[_Job] = []
    unused: list[UnusedTensor] = []
    extra: list[StoredTensor] = []
    filled: dict[Place, StoredTensor] = {}
    used = {name: stored for name, stored in checkpoint.tensors.items() if unused_reason(name) is None}
    packed = gather(used, config.quantised)
    companions = {part.name for matrix in packed.values() for part in matrix.parts.values()} - packed.keys()
    for stored in checkpoint.tensors.values():
        if stored.name in companions:
            continue
        matrix = packed.get(stored.name)
        reason = unused_reason(stored.name)
        place = place_of(stored.name if matrix is None else matrix.name)
        if reason is None and place == Place("head") and config.tie_embeddings:
            if matrix is None:
                _check_tied_head(stored, specs["embedding"])
            reason = "head: tied to the embedding"
        if reason is not None:
            unused.append(UnusedTensor(stored.name, stored.shape, reason))
        elif place is not None and _exists(place, specs, config):
            if place in filled:
                raise CheckpointError(
                    f"Tensors {filled[place].name} ({filled[place].file.name}) and {stored.name} "
                    f"({stored.file.name}) in {checkpoint.folder} are the same parameter; keep one of them."
                )
            filled[place] = stored
            scale = _scale_of(stored, checkpoint, config) if matrix is None else None
            jobs.append(_Job(stored, place, scale, matrix))
        elif not _is_used_scale(stored, checkpoint):
            extra.append(stored)
    if extra:
        raise CheckpointError(_extra_sentence(extra))
    _check_missing(filled, checkpoint, config, specs)
    for job in jobs:
        _check_shape(job, specs[job.place.name], config)
    return jobs, unused


def _packed_kinds(jobs: Sequence[_Job]) -> dict[str, Kind]:
    """The types of the parameters that stay in codes. Raises CheckpointError where parts of one differ."""
    kinds: dict[str, Kind] = {}
    first: dict[str, _Job] = {}
    for job in jobs:
        before = first.setdefault(job.place.name, job)
        kind = job.packed.kind if job.packed is not None else None
        if kind is not None:
            kinds[job.place.name] = kind
        if kind != (before.packed.kind if before.packed is not None else None):
            raise CheckpointError(
                f"Tensors {before.stored.name} ({before.stored.file.name}) and {job.stored.name} "
                f"({job.stored.file.name}) are parts of one parameter but are stored in different ways; that is not "
                f"supported, take a checkpoint whose experts are all alike."
            )
    return kinds


def _exists(place: Place, specs: Mapping[str, ParameterSpec], config: ModelConfig) -> bool:
    if place.expert is None or config.moe is None:
        return place.name in specs and place.expert is None
    return place.name in specs and place.expert < config.moe.num_experts


def _refuse_mlx(checkpoint: StoredCheckpoint, config: ModelConfig) -> None:
    """MLX folds the +1 into norms and turns the convolution; read as they are, such weights answer with garbage."""
    if config.zero_centred_norms and "mlx" in checkpoint.formats:
        raise CheckpointError(f"{checkpoint.folder} is marked as written by MLX: {MLX}")
    for tensor in checkpoint.tensors.values():
        turned = tensor.name.endswith(".conv1d.weight") and tensor.shape[1:2] != (1,) and tensor.shape[2:] == (1,)
        if turned or ".switch_mlp." in tensor.name:
            raise CheckpointError(f"Tensor {tensor.name} {list(tensor.shape)} in {tensor.file}: {MLX}")


def _check_tied_head(head: StoredTensor, embedding: ParameterSpec) -> None:
    if head.shape != embedding.shape:
        raise CheckpointError(
            f"Tensor {head.name} in {head.file} has shape {list(head.shape)}; config.json ties it to the embedding, "
            f"so {list(embedding.shape)} is expected."
        )


def _scale_of(stored: StoredTensor, checkpoint: StoredCheckpoint, config: ModelConfig) -> StoredTensor | None:
    """The scales of a block-FP8 tensor, None for a plain one; any other type is refused."""
    if stored.dtype in FLOATS:
        return None
    if stored.dtype != "F8_E4M3":
        raise CheckpointError(
            f"Tensor {stored.name} in {stored.file} has the type {stored.dtype}; supported are {', '.join(FLOATS)} and "
            f"F8_E4M3 with {SCALE[1:]} scales."
        )
    if config.fp8_block is None:
        raise CheckpointError(
            f"Tensor {stored.name} in {stored.file} is FP8, but config.json has no quantization_config with "
            f"weight_block_size; take config.json from the repository of these weights."
        )
    scale = checkpoint.tensors.get(stored.name + SCALE)
    if scale is None:
        raise CheckpointError(
            f"Tensor {stored.name} in {stored.file} is FP8, but its scales {stored.name}{SCALE} are missing."
        )
    return scale


def _is_used_scale(stored: StoredTensor, checkpoint: StoredCheckpoint) -> bool:
    owner = checkpoint.tensors.get(stored.name.removesuffix(SCALE))
    return stored.name.endswith(SCALE) and owner is not None and owner.dtype == "F8_E4M3"


def _extra_sentence(extra: list[StoredTensor]) -> str:
    names = listed([f"{tensor.name} {list(tensor.shape)} in {tensor.file}" for tensor in extra])
    return f"The checkpoint holds what this model has no place for: {names}; does config.json belong to these weights?"


def _check_missing(
    filled: dict[Place, StoredTensor],
    checkpoint: StoredCheckpoint,
    config: ModelConfig,
    specs: Mapping[str, ParameterSpec],
) -> None:
    """Every parameter must be filled once: whole, or expert by expert."""
    missing: list[tuple[Place, tuple[int, ...]]] = []
    for name, spec in specs.items():
        whole = Place(name)
        parts = _expert_places(name, config) if spec.kind == "experts" else []
        present = [place for place in parts if place in filled]
        if whole in filled and present:
            raise CheckpointError(
                f"Tensors {filled[whole].name} ({filled[whole].file.name}) and {filled[present[0]].name} "
                f"({filled[present[0]].file.name}) in {checkpoint.folder} are the same parameter; keep one of them."
            )
        if whole not in filled and present:
            missing += [(place, _expected_shape(place, spec)) for place in parts if place not in filled]
        elif whole not in filled:
            missing.append((whole, _expected_shape(whole, spec)))
    if missing:
        prefix = prefix_of(list(checkpoint.tensors))
        names = listed([f"{stored_name(place, prefix)} {list(shape)}" for place, shape in missing])
        raise CheckpointError(f"Missing in the *.safetensors files of {checkpoint.folder}: {names}.")


def _expert_places(name: str, config: ModelConfig) -> list[Place]:
    assert config.moe is not None
    names = ("gate", "up") if name.endswith(".gate_up") else ("down",)
    return [Place(name, expert, part) for expert in range(config.moe.num_experts) for part in names]


def _expected_shape(place: Place, spec: ParameterSpec) -> tuple[int, ...]:
    """The shape in the checkpoint: ours, but for the convolution's middle axis and a single expert's part."""
    if place.expert is not None:
        rows, columns = spec.shape[1:]
        return (rows // 2, columns) if place.part in ("gate", "up") else (rows, columns)
    if place.name.endswith(".delta.conv"):
        return (spec.shape[0], 1, spec.shape[1])
    return spec.shape


def _check_shape(job: _Job, spec: ParameterSpec, config: ModelConfig) -> None:
    expected = _expected_shape(job.place, spec)
    if job.packed is not None:
        job.packed.check(() if spec.kind in VECTORS else expected)
        return
    if job.stored.shape != expected:
        raise CheckpointError(_shape_sentence(job.stored, expected))
    if job.scale is None:
        return
    assert config.fp8_block is not None
    if spec.kind in VECTORS:
        raise CheckpointError(f"Tensor {job.stored.name} in {job.stored.file} is FP8, but it is not a matrix.")
    blocks = (*expected[:-2], *fp8.scale_shape((expected[-2], expected[-1]), config.fp8_block))
    if job.scale.shape != blocks:
        raise CheckpointError(_shape_sentence(job.scale, blocks))
    if job.scale.dtype not in FLOATS:
        raise CheckpointError(
            f"Tensor {job.scale.name} in {job.scale.file} has the type {job.scale.dtype}; scales are floats."
        )


def _shape_sentence(stored: StoredTensor, expected: tuple[int, ...]) -> str:
    return (
        f"Tensor {stored.name} in {stored.file} has shape {list(stored.shape)}; {list(expected)} is expected from "
        f"config.json."
    )


class Reader:
    """Streams stored bytes through one small buffer into tensors, and counts them."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._buffer = bytearray(CHUNK)
        self._total, self._done, self._progress = total, 0, progress

    def read(self, stored: StoredTensor, dtype: torch.dtype, target: torch.Tensor) -> None:
        """Fill the contiguous ``target`` with ``stored``, element by element, cast to its type on the way."""
        flat, position = target.view(-1), 0
        for num_bytes in read_chunks(stored, memoryview(self._buffer)):
            piece = torch.frombuffer(self._buffer, dtype=dtype, count=num_bytes // dtype.itemsize)
            flat[position : position + len(piece)].copy_(piece)
            position += len(piece)
            self.advance(num_bytes)

    def numbers(self, stored: StoredTensor) -> Host:
        """All of a small plain tensor."""
        scratch = memoryview(self._buffer)
        raw = b"".join(bytes(scratch[:num_bytes]) for num_bytes in read_chunks(stored, scratch))
        self.advance(stored.num_bytes)
        return np.frombuffer(raw, FLOATS[stored.dtype])

    def load(self, stored: StoredTensor, dtype: torch.dtype) -> torch.Tensor:
        """All of ``stored``, whose elements are ``dtype``."""
        found = torch.empty(stored.shape, dtype=dtype)
        self.read(stored, dtype, found)
        return found

    def read_fp8(self, stored: StoredTensor, scale: StoredTensor, block: tuple[int, int], target: torch.Tensor) -> None:
        """Fill the matrix ``target`` [R, C] with dequantised values; its FP8 codes are held beside it."""
        scales = torch.empty(scale.shape[-2:], dtype=torch.float32)
        Reader(0, None).read(scale, torch_dtype(FLOATS[scale.dtype]), scales)
        weight = torch.empty(target.shape, dtype=torch.float8_e4m3fn)
        self.read(stored, torch.float8_e4m3fn, weight)
        fp8.dequantise(weight, scales, block, target)

    def finish(self) -> None:
        assert self._done == self._total, "every byte is read once"
        if self._progress is not None:
            self._progress(self._done, self._total)

    def advance(self, num_bytes: int) -> None:
        """Bytes that were read elsewhere, or here."""
        self._done += num_bytes
        if self._progress is not None:
            self._progress(self._done, self._total)
