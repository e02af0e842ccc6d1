"""The vision tower's weights: compared with the declaration when a model is opened, read when the first picture comes.

Whoever only writes never pays for them. They lie in the checkpoint's own files, or in the projector (mmproj) beside a
GGUF file. Knows no forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwench.config import VisionConfig
from qwench.errors import CheckpointError, listed
from qwench.fault import fault
from qwench.files import ModelFiles
from qwench.gguf.file import GgufFile
from qwench.gguf.header import StoredTensor as GgufTensor
from qwench.model.parameters import ParameterSpec, declare_vision
from qwench.ops.arrays import FLOAT32, DType, to_torch, torch_dtype
from qwench.ops.lazy import torch
from qwench.ops.quantised import Codes, allocate
from qwench.ops.store import Kind, Value
from qwench.ops.weight_types import GGUF_TYPES, OWN_TYPES, WeightType
from qwench.weights.formats import gguf_blocks
from qwench.weights.formats.safetensors import StoredTensor, open_checkpoint
from qwench.weights.load import FLOATS, Reader
from qwench.weights.names import VISION, stored_vision_name, vision_name
from qwench.weights.names_gguf import PATCH_SLICES, mmproj_name
from qwench.weights.quantise import rounder
from qwench.weights.source import bits_of

ROUNDED = OWN_TYPES["q8"]
Found = dict[str, Sequence[StoredTensor | GgufTensor]]


@dataclass(frozen=True)
class VisionWeights:
    """``kinds``: the type each parameter will have in memory; ``stored``: what of the files it is made of."""

    specs: Mapping[str, ParameterSpec]
    kinds: Mapping[str, Kind]
    stored: Mapping[str, Sequence[StoredTensor | GgufTensor]]

    @property
    def memory_bytes(self) -> int:
        return math.ceil(sum(bits_of(spec, self.kinds[name]) for name, spec in self.specs.items()) / 8)

    def parts(self) -> Iterator[tuple[str, Value]]:
        """Every parameter, in the type of ``kinds``. Raises CheckpointError where a file cannot be read, or holds what
        cannot be rounded.
        """
        to_codes: Callable[[torch.Tensor, WeightType], Codes] | None = None
        for name, spec in self.specs.items():
            kind, stored = self.kinds[name], self.stored[name]
            values = [_read(each, kind) for each in stored]
            numbers = [each for each in values if isinstance(each, torch.Tensor)]
            if not numbers:
                (value,) = values
                yield name, value
                continue
            # The frames of a patch may be stored one by one.
            whole = (numbers[0] if len(numbers) == 1 else torch.stack(numbers, dim=2)).reshape(spec.shape)
            if isinstance(kind, WeightType):
                to_codes = to_codes or rounder()
                yield name, _rounded(name, to_codes(whole, kind))
            else:
                yield name, whole.to(torch_dtype(kind))


def open_vision(
    files: ModelFiles, vision: VisionConfig, dtype: DType, quantization: str | None = None
) -> VisionWeights | None:
    """The tower's weights in ``files``; None where nothing of it is stored.

    Numbers become ``dtype``, and under any ``quantization`` the layers' matrices 8 bits: fewer are not for seeing.

    Raises CheckpointError where only a part is there, or of a shape or type that does not fit.
    """
    specs = declare_vision(vision)
    path, found = _projector(files) if isinstance(files, GgufFile) else _checkpoint(files)
    if not found:
        return None
    if extra := found.keys() - specs.keys():
        raise CheckpointError(f"{path} holds what this vision tower has no place for: {listed(sorted(extra))}.")
    if missing := [name for name in specs if name not in found]:
        names = listed([f"{stored_vision_name(name)} {list(specs[name].shape)}" for name in missing])
        raise CheckpointError(f"{path} holds only a part of the vision tower; missing: {names}.")
    kinds = {name: _kind(specs[name], found[name], dtype) for name in specs}
    if quantization is not None:
        layers = [name for name, spec in specs.items() if spec.kind == "matrix" and kinds[name] == dtype]
        kinds |= {name: ROUNDED for name in layers if name != "patch"}  # of bare pixels, and few multiplications
    return VisionWeights(specs, kinds, found)


def _checkpoint(folder: Path) -> tuple[Path, Found]:
    """By our names; what has none keeps its own."""
    tensors = open_checkpoint(folder).tensors.items()
    return folder, {vision_name(name) or name: (stored,) for name, stored in tensors if name.startswith(VISION)}


def _projector(file: GgufFile) -> tuple[Path, Found]:
    if file.projector is None:
        return file.path, {}
    tensors = file.projector.tensors
    others = {name: stored for name, stored in tensors.items() if name not in PATCH_SLICES}
    found: Found = {mmproj_name(name) or name: (stored,) for name, stored in others.items()}
    return file.projector.path, {"patch": [tensors[name] for name in PATCH_SLICES if name in tensors], **found}


def _kind(spec: ParameterSpec, stored: Sequence[StoredTensor | GgufTensor], dtype: DType) -> Kind:
    """Raises CheckpointError where shape or type do not fit."""
    count = sum(math.prod(each.shape) for each in stored)
    rows = {each.shape[:1] for each in stored}
    if count != math.prod(spec.shape) or rows != {spec.shape[:1]}:
        shapes = " and ".join(str(list(each.shape)) for each in stored)
        raise CheckpointError(
            f"{stored[0].file}: tensor {stored[0].name} has shape {shapes}; {list(spec.shape)} is expected from the "
            f"vision tower's configuration."
        )
    types = {each.type.name if isinstance(each, GgufTensor) else each.dtype for each in stored}
    if types <= FLOATS.keys():
        return FLOAT32 if spec.kind == "float32" else dtype
    (found,) = types if len(types) == 1 else ("several types",)
    if found in GGUF_TYPES and isinstance(stored[0], GgufTensor) and spec.kind == "matrix" and len(stored) == 1:
        return GGUF_TYPES[found]
    raise CheckpointError(
        f"{stored[0].file}: tensor {stored[0].name} has the type {found}; vision towers are read in "
        f"{', '.join(FLOATS)}, and from mmproj files also in Q8_0."
    )


def _rounded(name: str, codes: Codes) -> Codes:
    """Raises CheckpointError where there is no scale for what was rounded."""
    if not codes.is_finite:
        raise CheckpointError(f"{name} of the vision tower holds weights that are no finite numbers.")
    return codes


def _read(stored: StoredTensor | GgufTensor, kind: Kind) -> Value:
    """One stored tensor: numbers in the type they are stored in, or codes."""
    if isinstance(stored, StoredTensor):
        return Reader(0, None).load(stored, torch_dtype(FLOATS[stored.dtype]))
    raw = bytearray(stored.num_bytes)
    try:
        fault("read.weights")
        with stored.file.open("rb") as stream:
            stream.seek(stored.begin)
            if stream.readinto(raw) < len(raw):
                raise CheckpointError(f"{stored.file} ended inside tensor {stored.name}; download the file again.")
    except OSError as error:
        raise CheckpointError(f"{stored.file} cannot be read: {error.strerror}.") from None
    data = np.frombuffer(raw, np.uint8)
    if not isinstance(kind, WeightType) or stored.type.name in FLOATS:
        return to_torch(data.view(FLOATS[stored.type.name]).reshape(stored.shape))
    codes = allocate(kind, *stored.shape)
    gguf_blocks.decode(data.reshape(len(codes.codes), -1), codes)
    return codes
