"""The native kernels' C interface (csrc/include/qwench.h) as Python calls on arrays in main memory.

Named dimensions are checked here, before memory is touched: a mismatch says which dimension and both sizes. It knows
neither which operations a model needs nor when a kernel is worth choosing (ops/kernels does).
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Mapping, Sequence
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path

from qwench.ops.arrays import BFLOAT16, FLOAT32, Array, DType, Typed, address_of, dense, dtype_of, torch_dtype
from qwench.ops.lazy import torch
from qwench.ops.loading import ALIGNMENT, FILE, Arena, WeightTypeNumbers, numbers_of, open_library
from qwench.ops.loading import DECLARATIONS as LOADING
from qwench.ops.quantised import Codes
from qwench.ops.weight_types import WeightType

TYPES: Mapping[DType, int] = {FLOAT32: 0, BFLOAT16: 1}  # QW_F32, QW_BF16
DELTA_WIDTH = 256  # QW_DELTA_WIDTH
ATTENTION_WIDTH = 256  # QW_ATTENTION_WIDTH
PACKED_ROWS = 64  # rows of a matrix that are packed side by side: where it may be cut


class WeightArguments(ctypes.Structure):
    """qw_weight"""

    _fields_ = (
        ("type", c_void_p),
        ("packed", c_void_p),
        ("out", c_int64),
        ("in", c_int64),
    )


class CodesArguments(ctypes.Structure):
    """qw_codes"""

    _fields_ = (
        ("type", c_void_p),
        ("out", c_int64),
        ("in", c_int64),
        ("codes", c_void_p),
        ("scales", c_void_p),
        ("mins", c_void_p),
        ("super_scales", c_void_p),
        ("super_mins", c_void_p),
        ("factor", c_float),
    )


class UnpackArguments(ctypes.Structure):
    """qw_unpack_arguments"""

    _fields_ = (
        ("weight", c_void_p),
        ("count", c_int64),
        ("rows", c_void_p),
        ("type", c_int32),
        ("target", c_void_p),
        ("target_stride", c_int64),
    )


class LinearArguments(ctypes.Structure):
    """qw_linear_arguments"""

    _fields_ = (
        ("weight", c_void_p),
        ("tokens", c_int64),
        ("type", c_int32),
        ("x", c_void_p),
        ("rows", c_void_p),
        ("x_stride", c_int64),
        ("residual", c_void_p),
        ("residual_stride", c_int64),
        ("y", c_void_p),
        ("y_stride", c_int64),
        ("few", c_void_p),
    )


class NormArguments(ctypes.Structure):
    """qw_norm_arguments"""

    _fields_ = (
        ("rows", c_int64),
        ("width", c_int64),
        ("type", c_int32),
        ("epsilon", c_float),
        ("offset", c_float),
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("weight", c_void_p),
        ("y", c_void_p),
        ("y_stride", c_int64),
        ("bias", c_void_p),
    )


class DeltaArguments(ctypes.Structure):
    """qw_delta_arguments"""

    _fields_ = (
        ("rows", c_int64),
        ("num_slots", c_int64),
        ("key_heads", c_int64),
        ("value_heads", c_int64),
        ("key_dim", c_int64),
        ("value_dim", c_int64),
        ("taps", c_int64),
        ("tiled", c_int64),
        ("saves", c_int64),
        ("type", c_int32),
        ("epsilon", c_float),
        ("starts", c_void_p),
        ("slots", c_void_p),
        ("save_tokens", c_void_p),
        ("save_slots", c_void_p),
        ("mixed", c_void_p),
        ("beta", c_void_p),
        ("decay", c_void_p),
        ("gate", c_void_p),
        ("conv", c_void_p),
        ("decay_rate", c_void_p),
        ("decay_bias", c_void_p),
        ("scale", c_void_p),
        ("conv_states", c_void_p),
        ("states", c_void_p),
        ("output", c_void_p),
    )


class AttentionArguments(ctypes.Structure):
    """qw_attention_arguments"""

    _fields_ = (
        ("rows", c_int64),
        ("query_heads", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("page_size", c_int64),
        ("num_pages", c_int64),
        ("type", c_int32),
        ("coded", c_int32),
        ("scale", c_float),
        ("starts", c_void_p),
        ("contexts", c_void_p),
        ("page_table", c_void_p),
        ("page_stride", c_int64),
        ("kv_slots", c_void_p),
        ("query", c_void_p),
        ("query_stride", c_int64),
        ("key", c_void_p),
        ("key_stride", c_int64),
        ("value", c_void_p),
        ("value_stride", c_int64),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("output", c_void_p),
        ("output_stride", c_int64),
    )


class FramesArguments(ctypes.Structure):
    """qw_frames_arguments"""

    _fields_ = (
        ("frames", c_int64),
        ("heads", c_int64),
        ("head_dim", c_int64),
        ("type", c_int32),
        ("scale", c_float),
        ("starts", c_void_p),
        ("cosine", c_void_p),
        ("sine", c_void_p),
        ("query", c_void_p),
        ("key", c_void_p),
        ("value", c_void_p),
        ("stride", c_int64),
        ("output", c_void_p),
        ("output_stride", c_int64),
    )


class LayerArguments(ctypes.Structure):
    """qw_layer_arguments"""

    _fields_ = (
        ("weight", c_void_p),
        ("tokens", c_int64),
        ("type", c_int32),
        ("gelu", c_int32),
        ("epsilon", c_float),
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("norm", c_void_p),
        ("norm_bias", c_void_p),
        ("bias", c_void_p),
        ("residual", c_void_p),
        ("residual_stride", c_int64),
        ("y", c_void_p),
        ("y_stride", c_int64),
    )


class ExpertsArguments(ctypes.Structure):
    """qw_experts_arguments"""

    _fields_ = (
        ("tokens", c_int64),
        ("hidden", c_int64),
        ("width", c_int64),
        ("experts", c_int64),
        ("chosen", c_int64),
        ("normalise", c_int32),
        ("type", c_int32),
        ("gate_up", c_void_p),
        ("down", c_void_p),
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("logits", c_void_p),
        ("logits_stride", c_int64),
        ("y", c_void_p),
        ("y_stride", c_int64),
    )


# name -> (what it returns, what it takes); a test compares this table and the structures above with the header
DECLARATIONS: Mapping[str, tuple[type | None, tuple[type, ...]]] = {
    **LOADING,
    "qw_pack": (None, (c_void_p, c_int32, c_int64, c_int64, c_void_p, c_int64, c_void_p)),
    "qw_pack_codes": (c_int32, (c_void_p, POINTER(CodesArguments), c_void_p, c_int64, c_int64)),
    "qw_unpack_rows": (c_int32, (c_void_p, POINTER(UnpackArguments))),
    "qw_linear": (c_int32, (c_void_p, POINTER(LinearArguments))),
    "qw_linear_many": (c_int32, (c_void_p, POINTER(LinearArguments), c_int64)),
    "qw_rms_norm": (None, (c_void_p, POINTER(NormArguments))),
    "qw_delta_net": (c_int32, (c_void_p, POINTER(DeltaArguments))),
    "qw_attention": (c_int32, (c_void_p, POINTER(AttentionArguments))),
    "qw_frames": (c_int32, (c_void_p, POINTER(FramesArguments))),
    "qw_layer": (c_int32, (c_void_p, POINTER(LayerArguments))),
    "qw_experts": (c_int32, (c_void_p, POINTER(ExpertsArguments))),
    "qw_largest": (None, (c_void_p, c_int64, c_int64, c_void_p, c_int64, c_void_p)),
    "qw_top": (c_int32, (c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_void_p)),
    "qw_draw": (c_int32, (c_void_p, c_void_p)),
    "qw_run": (c_int32, (c_void_p, c_void_p, c_void_p, c_void_p)),
    "qw_limits": (c_char_p, ()),
    "qw_limit_run": (c_int64, (c_void_p, c_char_p, c_int32, c_int64)),
    "qw_limit_read": (c_int64, (c_void_p, c_int32, c_void_p, c_int64)),
}


@functools.cache
def load_library(file: Path = FILE) -> ctypes.CDLL:
    """The library with its functions declared. Raises OSError with the reason where it cannot be used."""
    return open_library(file, DECLARATIONS)


def instruction_sets() -> list[str]:
    """What this processor can run, best first. Raises OSError where there is no library to ask."""
    names: bytes = load_library().qw_isas()
    return names.decode().split()


def require_equal(operation: str, dimension: str, **sizes: int) -> None:
    """All ``sizes`` of one named dimension are the same number. Raises ValueError naming it and them."""
    if len(set(sizes.values())) > 1:
        told = " but ".join(f"{size} in {place}" for place, size in sizes.items())
        raise ValueError(f"{operation}: {dimension} is {told}")


def type_of(operation: str, **arrays: Typed) -> int:
    """The element type that all ``arrays`` share, as the library's number. Raises ValueError naming what differs."""
    kinds = {dtype_of(array) for array in arrays.values()}
    if len(kinds) > 1 or not kinds <= TYPES.keys():
        told = ", ".join(f"{name} {dtype_of(array)}" for name, array in arrays.items())
        raise ValueError(f"{operation}: types are {told}; they must be equal and float32 or bfloat16")
    return TYPES[kinds.pop()]


Element = WeightType | DType  # what a packed matrix is made of: codes, or elements as they are


@dataclass(frozen=True)
class PackedMatrix:
    """[out, in] of ``type`` at ``address`` in ``arena``, in the layout of csrc/packed.h or csrc/quantised.h."""

    arena: Arena
    address: int
    out: int
    width: int  # in
    type: Element

    @functools.cached_property
    def weight(self) -> WeightArguments:
        """What the library is told of it."""
        return WeightArguments(ctypes.addressof(weight_type_numbers(self.type)), self.address, self.out, self.width)


@dataclass(frozen=True)
class LinearInput:
    """One layer of many: x [T, in] times ``matrix`` transposed, plus ``residual`` [T, out]."""

    x: torch.Tensor
    matrix: PackedMatrix
    residual: torch.Tensor | None = None


def weight_address(matrix: PackedMatrix) -> int:
    """Of what the library is told of the matrix: good as long as the matrix lives."""
    return ctypes.addressof(matrix.weight)


@dataclass(frozen=True)
class PackedExperts:
    """Packed matrices of one shape, one for each expert."""

    matrices: tuple[PackedMatrix, ...]

    @functools.cached_property
    def weights(self) -> ctypes.Array[WeightArguments]:
        """What the library is told of them, side by side: good as long as the matrices live."""
        return (WeightArguments * len(self.matrices))(*(matrix.weight for matrix in self.matrices))


@functools.cache  # also because structures hold its address: each stays where it is
def weight_type_numbers(kind: Element) -> WeightTypeNumbers:
    """A weight type as the library knows it. Raises ValueError for elements it does not have."""
    if isinstance(kind, WeightType):
        return numbers_of(kind)
    if kind not in TYPES:
        raise ValueError(f"weights of {kind} cannot be packed")
    return numbers_of(TYPES[kind])


class Native:
    """One instruction set and one pool of threads. Serves one caller at a time, like the engine that owns it."""

    def __init__(self, isa: str, threads: int) -> None:
        self._library = load_library()
        self.isa, self.threads = isa, threads
        self._context: int | None = self._library.qw_open(threads, isa.encode())
        if self._context is None:
            raise ValueError(f"no context for {isa} with {threads} threads; this processor runs {instruction_sets()}")
        weakref.finalize(self, self._library.qw_close, self._context)

    @property
    def context(self) -> int:
        """The library's own handle, for operations that are declared elsewhere; good as long as this lives."""
        assert self._context is not None
        return self._context

    def packed_bytes(self, kind: Element, out: int, width: int) -> int:
        """Bytes of a packed [out, width], whole cache lines. Raises ValueError for a type without kernels."""
        size: int = self._library.qw_packed_bytes(weight_type_numbers(kind), out, width)
        if size < 0:
            raise ValueError(f"weights of type {kind} cannot be packed")
        return -(-size // ALIGNMENT) * ALIGNMENT

    def reserve(self, kind: Element, out: int, width: int, arena: Arena) -> PackedMatrix:
        """Room for a matrix whose rows are packed later."""
        return PackedMatrix(arena, arena.take(self.packed_bytes(kind, out, width)), out, width, kind)

    def pack(self, weight: torch.Tensor, arena: Arena) -> PackedMatrix:
        """A copy of weight [out, in] in the kernels' layout."""
        out, width = weight.shape
        matrix = self.reserve(dtype_of(weight), out, width, arena)
        self.pack_rows(weight, matrix, 0)
        return matrix

    def pack_codes(self, codes: Codes, arena: Arena) -> PackedMatrix:
        """A copy of a quantised matrix in the kernels' layout."""
        matrix = self.reserve(codes.type, codes.out, codes.width, arena)
        self.pack_rows(codes, matrix, 0)
        return matrix

    def pack_rows(self, rows: Array | Codes, matrix: PackedMatrix, first: int) -> None:
        """Copy ``rows`` to where row ``first`` (a multiple of PACKED_ROWS) of ``matrix`` and the next ones lie."""
        count, width = (rows.out, rows.width) if isinstance(rows, Codes) else rows.shape
        require_equal("pack", "in", rows=width, matrix=matrix.width)
        assert first % PACKED_ROWS == 0, f"rows are packed in groups of {PACKED_ROWS}"
        assert first + count <= matrix.out, f"rows {first} to {first + count} of {matrix.out}"
        if isinstance(rows, Codes):
            assert rows.type == matrix.type
            self._pack_codes(rows, matrix, first)
            return
        assert dtype_of(rows) == matrix.type
        rows = dense(rows)
        address = matrix.address + (self.packed_bytes(matrix.type, first, width) if first else 0)
        self._library.qw_pack(
            self._context, type_of("pack", weight=rows), count, width, address_of(rows), width, address
        )

    def _pack_codes(self, rows: Codes, matrix: PackedMatrix, first: int) -> None:
        parts = (rows.codes, rows.scales, rows.mins, rows.super_scales, rows.super_mins)
        whole = [None if part is None else dense(part) for part in parts]
        arguments = CodesArguments(
            ctypes.addressof(weight_type_numbers(rows.type)), rows.out, rows.width,
            *(None if part is None else address_of(part) for part in whole), rows.factor,
        )  # fmt: skip
        self._library.qw_pack_codes(self._context, arguments, matrix.address, matrix.out, first)

    def unpack_rows(self, matrix: PackedMatrix, rows: torch.Tensor, dtype: DType | None = None) -> torch.Tensor:
        """Rows [n] of the matrix: [n, in] in ``dtype``, without one in the matrix's own (fp32 of codes).

        Raises IndexError where a row does not exist.
        """
        if dtype is None:
            dtype = FLOAT32 if isinstance(matrix.type, WeightType) else matrix.type
        rows = rows.to(torch.int64).contiguous()
        target = torch.empty(len(rows), matrix.width, dtype=torch_dtype(dtype))
        arguments = UnpackArguments(
            weight_address(matrix), len(rows), rows.data_ptr(), type_of("unpack_rows", target=target),
            target.data_ptr(), matrix.width,
        )  # fmt: skip
        if self._library.qw_unpack_rows(self._context, arguments):
            raise IndexError(f"unpack_rows: a row of {rows.tolist()} is not among the {matrix.out} there are")
        return target

    def linear(self, x: torch.Tensor, matrix: PackedMatrix) -> torch.Tensor:
        """x [T, in] times the matrix transposed: [T, out] in x's type."""
        return self.linear_many([LinearInput(x, matrix)])[0]

    def linear_many(self, layers: Sequence[LinearInput]) -> list[torch.Tensor]:
        """Layers that do not read one another's results, as one job: [T, out] of each in its x's type.

        A residual is added to the rounded product. Neighbours with the same x share what is done to it.
        """
        kept = [LinearInput(_dense_rows(layer.x), layer.matrix, layer.residual) for layer in layers]
        outputs = [torch.empty(len(layer.x), layer.matrix.out, dtype=layer.x.dtype) for layer in kept]
        arguments = (LinearArguments * len(kept))(*(map(_linear_arguments, kept, outputs)))
        if self._library.qw_linear_many(self._context, arguments, len(kept)):
            told = ", ".join(f"{len(layer.x)} tokens of {layer.matrix.width}" for layer in kept)
            raise MemoryError(f"linear: {told} do not fit into memory")
        return outputs

    def run(self, program: int, step: int) -> tuple[int, int]:
        """Run the program for the step, both addresses of structures: its status, and the instruction that failed."""
        failed = c_int64()
        status: int = self._library.qw_run(self._context, program, step, ctypes.byref(failed))
        return status, failed.value


def _linear_arguments(layer: LinearInput, output: torch.Tensor) -> LinearArguments:
    x, matrix, residual = layer.x, layer.matrix, layer.residual
    require_equal("linear", "in", x=x.shape[1], weight=matrix.width)
    arguments = LinearArguments(
        weight_address(matrix), len(x), type_of("linear", x=x), x.data_ptr(), None, x.stride(0), None, 0,
        output.data_ptr(), matrix.out,
    )  # fmt: skip
    if residual is not None:
        require_equal("linear", "out", residual=residual.shape[1], weight=matrix.out)
        require_equal("linear", "tokens", residual=len(residual), x=len(x))
        type_of("linear", x=x, residual=residual)
        assert residual.stride(1) == 1, "the residual's rows are dense"
        arguments.residual, arguments.residual_stride = residual.data_ptr(), residual.stride(0)
    return arguments


def _dense_rows(x: torch.Tensor) -> torch.Tensor:
    """x [n, d] with neighbouring elements side by side; rows may lie apart. A copy only where they do not."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
