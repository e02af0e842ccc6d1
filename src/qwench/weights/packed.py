"""Packed matrices of a checkpoint: which stored tensors make one, whether they fit its scheme, what they hold.

One table leads from a scheme to its reader in weights/formats. Knows neither parameters nor who reads the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from qwench.errors import CheckpointError
from qwench.ops.lazy import torch
from qwench.ops.quantised import Codes, codes_of, concatenate
from qwench.ops.weight_types import WeightType
from qwench.quantisation import Format, Scheme, StoredQuantisation
from qwench.weights.formats import awq, compressed, fp8, gptq, mxfp4, nvfp4, own
from qwench.weights.formats.layout import Tensor, Unreadable
from qwench.weights.formats.safetensors import StoredTensor

TYPES: Mapping[str, str] = {  # torch's names
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "I8": "int8",
    "U8": "uint8",
    "I32": "int32",
    "I64": "int64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "uint8",  # exponents, which readers take as bytes
}
Load = Callable[[StoredTensor, "torch.dtype"], "torch.Tensor"]


class _Layout(Protocol):
    def __call__(self, scheme: Scheme, out: int, width: int) -> tuple[Tensor, ...]: ...


class _Decode(Protocol):
    def __call__(
        self, tensors: Mapping[str, torch.Tensor], scheme: Scheme, out: int, width: int
    ) -> Codes | torch.Tensor: ...


@dataclass(frozen=True)
class Reader:
    """The functions of one file of weights/formats; no ``weight_type`` where plain numbers come of it."""

    layout: _Layout
    decode: _Decode
    weight_type: Callable[[Scheme], WeightType] | None = None
    by_rows: bool = False  # rows of every stored tensor are rows of the matrix


_GPTQ = Reader(gptq.layout, gptq.decode, gptq.weight_type)
_COMPRESSED = Reader(compressed.layout, compressed.decode, compressed.weight_type)
_NVFP4 = Reader(nvfp4.layout, nvfp4.decode, nvfp4.weight_type)
_MXFP4 = Reader(mxfp4.layout, mxfp4.decode, mxfp4.weight_type)
READERS: Mapping[Format, Reader] = {
    "gptq": _GPTQ,
    "gptq_v2": _GPTQ,
    "awq": Reader(awq.layout, awq.decode, awq.weight_type),
    "packed": _COMPRESSED,
    "int8": _COMPRESSED,
    "nvfp4": _NVFP4,
    "nvfp4_packed": _NVFP4,
    "mxfp4": _MXFP4,
    "mxfp4_packed": _MXFP4,
    "mxfp4_blocks": _MXFP4,
    "own": Reader(own.layout, own.decode, own.weight_type, by_rows=True),
    "fp8_block": Reader(fp8.layout, fp8.decode),
    "fp8_scale": Reader(fp8.layout, fp8.decode),
}


@dataclass(frozen=True)
class StoredMatrix:
    """One matrix, or all experts' in one; ``name`` is what it would be called unpacked, ``parts`` go by suffix."""

    name: str
    scheme: Scheme
    parts: Mapping[str, StoredTensor]

    @property
    def kind(self) -> WeightType | None:
        """The type it will have; None where it becomes plain numbers."""
        weight_type = READERS[self.scheme.format].weight_type
        return None if weight_type is None else weight_type(self.scheme)

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts.values())

    def check(self, shape: Sequence[int]) -> None:
        """Raises CheckpointError where a stored tensor does not fit a matrix of ``shape`` [(experts,) out, width]."""
        if len(shape) < 2:
            first = next(iter(self.parts.values()))
            raise CheckpointError(f"Tensor {first.name} in {first.file} is packed, but {self.name} is no matrix.")
        *experts, out, width = shape
        for tensor in READERS[self.scheme.format].layout(self.scheme, out, width):
            stored = self.parts.get(tensor.suffix)
            if stored is not None:
                _check_form(stored, [(types, (*experts, *each)) for types, each in tensor.forms])

    @property
    def by_rows(self) -> bool:
        """Whether it may be read in pieces."""
        return READERS[self.scheme.format].by_rows

    def rows(self, first: int, count: int) -> StoredMatrix:
        """Some of its rows."""
        return replace(self, parts={suffix: part.rows(first, count) for suffix, part in self.parts.items()})

    def expert(self, index: int) -> StoredMatrix:
        """The matrix of one expert of all."""
        return replace(self, parts={suffix: _entry(part, index) for suffix, part in self.parts.items()})

    def read(self, load: Load, shape: Sequence[int]) -> Codes | torch.Tensor:
        """The matrix of ``shape`` [out, width]; ``load`` brings stored bytes. Raises CheckpointError."""
        tensors = {suffix: load(part, getattr(torch, TYPES[part.dtype])) for suffix, part in self.parts.items()}
        try:
            return READERS[self.scheme.format].decode(tensors, self.scheme, *shape)
        except Unreadable as error:
            stored = self.parts[error.suffix]
            raise CheckpointError(f"Tensor {stored.name} in {stored.file} {error.reason}.") from None


def gather(tensors: Mapping[str, StoredTensor], quantised: StoredQuantisation | None) -> dict[str, StoredMatrix]:
    """The packed matrices among ``tensors``, by the name of the tensor that holds the codes; block-FP8 is not packed.

    Raises CheckpointError where a matrix lacks a part, or is packed although config.json says that it was kept.
    """
    found: dict[str, StoredMatrix] = {}
    for suffix, types in _code_tensors(quantised):
        for name, stored in tensors.items():
            # Where a plain matrix has the same name, its type tells.
            coded = stored.dtype in types or suffix != ".weight"
            if name.endswith(suffix) and coded and name not in found:
                assert quantised is not None
                module = name.removesuffix(suffix)
                found[name] = _matrix(module, stored, tensors, _scheme(module, suffix, stored, quantised))
    return found


def join(pieces: Sequence[Codes]) -> Codes:
    """One matrix of the rows of all ``pieces``.

    Where their factors differ scales are expressed in the largest: exact for powers of two, else rounded to 16 bits.
    """
    largest = max(piece.factor for piece in pieces)
    return concatenate([piece if piece.factor == largest else _in_factor(piece, largest) for piece in pieces])


def _in_factor(piece: Codes, factor: float) -> Codes:
    ratio = piece.factor / factor
    scaled = {name: (each.float() * ratio).to(each.dtype) for name, each in piece.arrays.items() if name != "codes"}
    return codes_of(piece.type, piece.width, {"codes": piece.codes, **scaled}, factor)


def _code_tensors(quantised: StoredQuantisation | None) -> dict[tuple[str, tuple[str, ...]], None]:
    """Suffixes and types of the tensors that hold codes."""
    schemes = quantised.schemes if quantised is not None else ()
    first = [READERS[each.format].layout(each, 32, 32)[0] for each in schemes if each.format != "fp8_block"]
    return dict.fromkeys((tensor.suffix, tensor.forms[0][0]) for tensor in first)


def _scheme(module: str, suffix: str, stored: StoredTensor, quantised: StoredQuantisation) -> Scheme:
    rule, scheme = quantised.rule_of(module), quantised.scheme_of(module)
    where = "quantization_config" if rule is None else rule.field
    if scheme is None:
        raise CheckpointError(
            f"Tensor {stored.name} in {stored.file} is packed, but {where} of config.json says that {module} was kept "
            f"unquantised; take config.json from the repository of these weights."
        )
    if READERS[scheme.format].layout(scheme, 32, 32)[0].suffix != suffix:
        raise CheckpointError(
            f"Tensor {stored.name} in {stored.file} is not how {where} of config.json stores {module} "
            f"({scheme.format}); take config.json from the repository of these weights."
        )
    return scheme


def _matrix(module: str, stored: StoredTensor, tensors: Mapping[str, StoredTensor], scheme: Scheme) -> StoredMatrix:
    layout = READERS[scheme.format].layout(scheme, 32, 32)
    parts = {each.suffix: tensors[module + each.suffix] for each in layout if module + each.suffix in tensors}
    missing = [each.suffix for each in layout if each.needed and each.suffix not in parts]
    if missing:
        raise CheckpointError(
            f"Tensor {stored.name} in {stored.file} is packed, but its {module}{missing[0]} is missing; download the "
            f"checkpoint again."
        )
    return StoredMatrix(f"{module}.weight" if layout[0].suffix.startswith(".") else module, scheme, parts)


def _check_form(stored: StoredTensor, forms: Sequence[tuple[tuple[str, ...], tuple[int, ...]]]) -> None:
    """Raises CheckpointError where neither type nor shape is among ``forms``."""
    types = list(dict.fromkeys(name for names, _ in forms for name in names))
    if stored.dtype not in types:
        raise CheckpointError(
            f"Tensor {stored.name} in {stored.file} has the type {stored.dtype}; {' or '.join(types)} is expected."
        )
    shapes = [shape for names, shape in forms if stored.dtype in names]
    if stored.shape not in shapes:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise CheckpointError(
            f"Tensor {stored.name} in {stored.file} has shape {list(stored.shape)}; {expected} is expected from "
            f"config.json."
        )


def _entry(stored: StoredTensor, index: int) -> StoredTensor:
    """One entry of the first axis."""
    size = stored.num_bytes // stored.shape[0]
    return replace(stored, shape=stored.shape[1:], begin=stored.begin + index * size, num_bytes=size)
