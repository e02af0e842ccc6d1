"""Checkpoint -> tensors: every parameter that the model declares, filled exactly once, cast and placed while streaming.

Headers are compared with the declaration before the first byte is read: a checkpoint that does not fit costs nothing.
Memory: the parameters themselves, one small buffer, and for block-FP8 one matrix. Knows no forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from qwench.config import ModelConfig
from qwench.errors import CheckpointError
from qwench.model.parameters import ParameterSpec, declare
from qwench.weights.formats import fp8
from qwench.weights.formats.safetensors import StoredCheckpoint, StoredTensor, open_checkpoint, read_chunks
from qwench.weights.names import SCALE, Place, place_of, prefix_of, stored_name, unused_reason

Progress = Callable[[int, int], None]
FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
CHUNK = 8 * 2**20
LISTED = 5  # how many names a sentence lists before it only counts
MLX = "this is an MLX conversion, whose convolutions and norms are changed; take the original repository instead."


@dataclass(frozen=True)
class UnusedTensor:
    """A stored tensor that was left in its file, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class LoadedWeights:
    """``tensors`` by our names, ``unused`` as stored, ``num_bytes`` of all tensors in memory."""

    tensors: dict[str, torch.Tensor]
    unused: list[UnusedTensor]
    num_bytes: int


@dataclass(frozen=True)
class _Job:
    """One stored tensor to read into one place; ``scale`` where it is block-FP8."""

    stored: StoredTensor
    place: Place
    scale: StoredTensor | None


def load(
    folder: Path, config: ModelConfig, *, device: str, dtype: torch.dtype, progress: Progress | None = None
) -> LoadedWeights:
    """Read the checkpoint in ``folder`` as ``dtype`` onto ``device``; parameters of kind float32 stay float32.

    ``progress(done, total)`` counts the bytes to read. Raises CheckpointError naming tensor, file and shapes.
    """
    specs = declare(config)
    checkpoint = open_checkpoint(folder)
    jobs, unused = _plan(checkpoint, config, specs)
    reader = _Reader(sum(job.stored.num_bytes for job in jobs), progress)
    tensors: dict[str, torch.Tensor] = {}
    for job in sorted(jobs, key=lambda job: (job.stored.file.name, job.stored.begin)):
        spec = specs[job.place.name]
        if job.place.name not in tensors:
            kept = torch.float32 if spec.kind == "float32" else dtype
            tensors[job.place.name] = torch.empty(spec.shape, dtype=kept, device=device)
        target = _target(tensors[job.place.name], job.place)
        if job.scale is None:
            reader.read(job.stored, FLOATS[job.stored.dtype], target)
        else:
            assert config.fp8_block is not None
            reader.read_fp8(job.stored, job.scale, config.fp8_block, target)
    reader.finish()
    ordered = {name: tensors[name] for name in specs}
    return LoadedWeights(ordered, unused, sum(tensor.nbytes for tensor in ordered.values()))


def _plan(
    checkpoint: StoredCheckpoint, config: ModelConfig, specs: dict[str, ParameterSpec]
) -> tuple[list[_Job], list[UnusedTensor]]:
    """Match stored tensors with declared parameters; raises if the two differ in anything."""
    _refuse_mlx(checkpoint, config)
    jobs: list[_Job] = []
    unused: list[UnusedTensor] = []
    extra: list[StoredTensor] = []
    filled: dict[Place, StoredTensor] = {}
    for stored in checkpoint.tensors.values():
        reason = unused_reason(stored.name)
        place = place_of(stored.name)
        if reason is None and place == Place("head") and config.tie_embeddings:
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
            jobs.append(_Job(stored, place, _scale_of(stored, checkpoint, config)))
        elif not _is_used_scale(stored, checkpoint):
            extra.append(stored)
    if extra:
        raise CheckpointError(_extra_sentence(extra))
    _check_missing(filled, checkpoint, config, specs)
    for job in jobs:
        _check_shape(job, specs[job.place.name], config)
    return jobs, unused


def _exists(place: Place, specs: dict[str, ParameterSpec], config: ModelConfig) -> bool:
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
    names = _listed([f"{tensor.name} {list(tensor.shape)} in {tensor.file}" for tensor in extra])
    return f"The checkpoint holds what this model has no place for: {names}; does config.json belong to these weights?"


def _check_missing(
    filled: dict[Place, StoredTensor],
    checkpoint: StoredCheckpoint,
    config: ModelConfig,
    specs: dict[str, ParameterSpec],
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
        names = _listed([f"{stored_name(place, prefix)} {list(shape)}" for place, shape in missing])
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
    if job.stored.shape != expected:
        raise CheckpointError(_shape_sentence(job.stored, expected))
    if job.scale is None:
        return
    assert config.fp8_block is not None
    if len(expected) < 2:
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


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _target(parameter: torch.Tensor, place: Place) -> torch.Tensor:
    """The part of ``parameter`` that ``place`` fills. Fused experts hold all gate rows, then all up rows."""
    if place.expert is None:
        return parameter
    expert = parameter[place.expert]
    if place.part == "down":
        return expert
    half = expert.shape[0] // 2
    return expert[:half] if place.part == "gate" else expert[half:]


class _Reader:
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
            self._advance(num_bytes)

    def read_fp8(self, stored: StoredTensor, scale: StoredTensor, block: tuple[int, int], target: torch.Tensor) -> None:
        """Fill ``target`` [R, C] or [E, R, C] with dequantised values, holding one FP8 matrix at a time."""
        scales = torch.empty(scale.shape, dtype=torch.float32)
        _Reader(0, None).read(scale, FLOATS[scale.dtype], scales)
        matrices = target if target.dim() == 3 else target[None]
        size = stored.num_bytes // len(matrices)
        weight = torch.empty(matrices.shape[1:], dtype=torch.float8_e4m3fn)
        for index, (matrix, factor) in enumerate(
            zip(matrices, scales.view(len(matrices), *scales.shape[-2:]), strict=True)
        ):
            part = replace(stored, begin=stored.begin + index * size, num_bytes=size)
            self.read(part, torch.float8_e4m3fn, weight)
            fp8.dequantise(weight, factor, block, matrix)

    def finish(self) -> None:
        assert self._done == self._total, "every byte is read once"
        if self._progress is not None:
            self._progress(self._done, self._total)

    def _advance(self, num_bytes: int) -> None:
        self._done += num_bytes
        if self._progress is not None:
            self._progress(self._done, self._total)
