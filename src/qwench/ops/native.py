"""The native kernels' C interface (csrc/include/qwench.h) as Python calls on CPU tensors.

Named dimensions are checked here, before memory is touched: a mismatch says which dimension and both sizes. It knows
neither which operations a model needs nor when a kernel is worth choosing (ops/kernels does).
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Mapping
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path

import torch

from qwench.ops.rows import Rows

INTERFACE = 1  # QW_INTERFACE of the header these declarations were written from
TYPES: Mapping[torch.dtype, int] = {torch.float32: 0, torch.bfloat16: 1}  # QW_F32, QW_BF16
DELTA_WIDTH = 256  # QW_DELTA_WIDTH
ATTENTION_WIDTH = 256  # QW_ATTENTION_WIDTH
ALIGNMENT = 64
FILE = Path(__file__).with_name("libqwench.so")


class LinearArguments(ctypes.Structure):
    """qw_linear_arguments"""

    _fields_ = (
        ("tokens", c_int64),
        ("in", c_int64),
        ("out", c_int64),
        ("weight_type", c_int32),
        ("type", c_int32),
        ("packed", c_void_p),
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("y", c_void_p),
        ("y_stride", c_int64),
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
        ("type", c_int32),
        ("epsilon", c_float),
        ("starts", c_void_p),
        ("slots", c_void_p),
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
        ("scale", c_float),
        ("query", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("page_table", c_void_p),
        ("page_stride", c_int64),
        ("contexts", c_void_p),
        ("output", c_void_p),
    )


# name -> (what it returns, what it takes); a test compares this table and the structures above with the header
DECLARATIONS: Mapping[str, tuple[type | None, tuple[type, ...]]] = {
    "qw_interface": (c_int32, ()),
    "qw_isas": (c_char_p, ()),
    "qw_open": (c_void_p, (c_int32, c_char_p)),
    "qw_close": (None, (c_void_p,)),
    "qw_memory_map": (c_void_p, (c_int64,)),
    "qw_memory_unmap": (None, (c_void_p, c_int64)),
    "qw_packed_bytes": (c_int64, (c_int32, c_int64, c_int64)),
    "qw_pack": (None, (c_void_p, c_int32, c_int64, c_int64, c_void_p, c_int64, c_void_p)),
    "qw_unpack_rows": (
        c_int32,
        (c_void_p, c_int32, c_int64, c_int64, c_void_p, c_void_p, c_int64, c_void_p, c_int64),
    ),
    "qw_linear": (c_int32, (c_void_p, POINTER(LinearArguments))),
    "qw_rms_norm": (None, (c_void_p, POINTER(NormArguments))),
    "qw_delta_net": (c_int32, (c_void_p, POINTER(DeltaArguments))),
    "qw_attention_step": (c_int32, (c_void_p, POINTER(AttentionArguments))),
    "qw_limits": (c_char_p, ()),
    "qw_limit_run": (c_int64, (c_void_p, c_char_p, c_int32, c_int64)),
    "qw_limit_read": (c_int64, (c_void_p, c_int32, c_void_p, c_int64)),
}


@functools.cache
def load_library(file: Path = FILE) -> ctypes.CDLL:
    """The library with its functions declared. Raises OSError with the reason where it cannot be used."""
    library = ctypes.CDLL(str(file))
    for name, (returned, taken) in DECLARATIONS.items():
        function = getattr(library, name, None)
        if function is None or (name == "qw_interface" and function() != INTERFACE):
            raise OSError(f"{file.name} is of another version")
        function.restype, function.argtypes = returned, taken
    return library


def instruction_sets() -> list[str]:
    """What this processor can run, best first. Raises OSError where there is no library to ask."""
    names: bytes = load_library().qw_isas()
    return names.decode().split()


def require_equal(operation: str, dimension: str, **sizes: int) -> None:
    """All ``sizes`` of one named dimension are the same number. Raises ValueError naming it and them."""
    if len(set(sizes.values())) > 1:
        told = " but ".join(f"{size} in {place}" for place, size in sizes.items())
        raise ValueError(f"{operation}: {dimension} is {told}")


def type_of(operation: str, **tensors: torch.Tensor) -> int:
    """The element type that all ``tensors`` share, as the library's number. Raises ValueError naming what differs."""
    kinds = {tensor.dtype for tensor in tensors.values()}
    if len(kinds) > 1 or not kinds <= TYPES.keys():
        told = ", ".join(f"{name} {tensor.dtype}" for name, tensor in tensors.items())
        raise ValueError(f"{operation}: types are {told}; they must be equal and float32 or bfloat16")
    return TYPES[kinds.pop()]


class Arena:
    """Memory on huge pages for tensors in the library's own layouts, handed out front to back and freed as a whole."""

    def __init__(self, num_bytes: int) -> None:
        library = load_library()
        self.num_bytes = num_bytes
        self._used = 0
        self._memory: int | None = library.qw_memory_map(max(1, num_bytes))
        if self._memory is None:
            raise MemoryError(f"{num_bytes / 2**30:.2f} GiB for weights are not there")
        weakref.finalize(self, library.qw_memory_unmap, self._memory, max(1, num_bytes))

    def take(self, num_bytes: int) -> int:
        """The address of the next ``num_bytes``, aligned to a cache line."""
        assert self._memory is not None
        assert self._used + num_bytes <= self.num_bytes, "the arena was sized for less"
        address = self._memory + self._used
        self._used += -(-num_bytes // ALIGNMENT) * ALIGNMENT
        return address


@dataclass(frozen=True)
class PackedMatrix:
    """[out, in] of ``dtype`` at ``address`` in ``arena``, in the layout of csrc/packed.h."""

    arena: Arena
    address: int
    out: int
    width: int  # in
    dtype: torch.dtype


class Native:
    """One instruction set and one pool of threads. Serves one caller at a time, like the engine that owns it."""

    def __init__(self, isa: str, threads: int) -> None:
        self._library = load_library()
        self.isa, self.threads = isa, threads
        self._context: int | None = self._library.qw_open(threads, isa.encode())
        if self._context is None:
            raise ValueError(f"no context for {isa} with {threads} threads; this processor runs {instruction_sets()}")
        weakref.finalize(self, self._library.qw_close, self._context)

    def packed_bytes(self, dtype: torch.dtype, out: int, width: int) -> int:
        """Bytes of a packed [out, width], whole cache lines."""
        size: int = self._library.qw_packed_bytes(TYPES[dtype], out, width)
        return -(-size // ALIGNMENT) * ALIGNMENT

    def pack(self, weight: torch.Tensor, arena: Arena) -> PackedMatrix:
        """A copy of weight [out, in] in the kernels' layout."""
        code = type_of("pack", weight=weight)
        weight = _dense_rows(weight)
        out, width = weight.shape
        address = arena.take(self.packed_bytes(weight.dtype, out, width))
        self._library.qw_pack(self._context, code, out, width, weight.data_ptr(), weight.stride(0), address)
        return PackedMatrix(arena, address, out, width, weight.dtype)

    def unpack_rows(self, matrix: PackedMatrix, rows: torch.Tensor) -> torch.Tensor:
        """Rows [n] of the matrix: [n, in]. Raises IndexError where one does not exist."""
        rows = rows.to(torch.int64).contiguous()
        target = torch.empty(len(rows), matrix.width, dtype=matrix.dtype)
        code = TYPES[matrix.dtype]
        status = self._library.qw_unpack_rows(
            self._context, code, matrix.out, matrix.width, matrix.address, rows.data_ptr(), len(rows),
            target.data_ptr(), matrix.width,
        )  # fmt: skip
        if status:
            raise IndexError(f"unpack_rows: a row of {rows.tolist()} is not among the {matrix.out} there are")
        return target

    def linear(self, x: torch.Tensor, matrix: PackedMatrix) -> torch.Tensor:
        """x [T, in] times the matrix transposed: [T, out] in x's type."""
        require_equal("linear", "in", x=x.shape[1], weight=matrix.width)
        x = _dense_rows(x)
        y = torch.empty(x.shape[0], matrix.out, dtype=x.dtype)
        arguments = LinearArguments(
            x.shape[0], matrix.width, matrix.out, TYPES[matrix.dtype], type_of("linear", x=x),
            matrix.address, x.data_ptr(), x.stride(0), y.data_ptr(), matrix.out,
        )  # fmt: skip
        if self._library.qw_linear(self._context, arguments):
            raise MemoryError(f"linear: {x.shape[0]} tokens of {matrix.width} do not fit into memory")
        return y

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
        """x [..., D] normalised and scaled by weight [D] + offset."""
        require_equal("rms_norm", "width", x=x.shape[-1], weight=weight.shape[0])
        code = type_of("rms_norm", x=x, weight=weight)
        y = torch.empty(x.shape, dtype=x.dtype)
        rows = _dense_rows(x.reshape(-1, x.shape[-1]))
        weight = weight.contiguous()
        arguments = NormArguments(
            rows.shape[0], rows.shape[1], code, eps, offset, rows.data_ptr(), rows.stride(0), weight.data_ptr(),
            y.data_ptr(), x.shape[-1],
        )  # fmt: skip
        self._library.qw_rms_norm(self._context, arguments)
        return y

    def delta_net(self, arguments: DeltaArguments) -> bool:
        """All tokens of every row; the caller has checked dimensions. False and nothing done for slots out of range."""
        status: int = self._library.qw_delta_net(self._context, arguments)
        return status == 0

    def attention_step(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: Rows) -> torch.Tensor:
        """The rows' single tokens [R, H, D] attend to the cache [tokens, K, D], which holds them already: [R, H, D]."""
        require_equal("attention_step", "head_dim", query=query.shape[2], keys=keys.shape[2], values=values.shape[2])
        require_equal("attention_step", "kv_heads", keys=keys.shape[1], values=values.shape[1])
        require_equal("attention_step", "tokens", keys=len(keys), values=len(values))
        require_equal("attention_step", "rows", query=len(query), page_table=len(rows.page_table))
        require_equal("attention_step", "heads beyond whole groups", query=query.shape[1] % keys.shape[1], needed=0)
        code = type_of("attention_step", query=query, keys=keys, values=values)
        assert keys.is_contiguous()
        assert values.is_contiguous()
        assert query.shape[2] <= ATTENTION_WIDTH, f"attention_step: heads are at most {ATTENTION_WIDTH} wide"
        query, table = query.contiguous(), rows.page_table.to(torch.int64).contiguous()
        output = torch.empty_like(query)
        arguments = AttentionArguments(
            len(query), query.shape[1], keys.shape[1], query.shape[2], rows.page_size, len(keys) // rows.page_size,
            code, query.shape[2] ** -0.5, query.data_ptr(), keys.data_ptr(), values.data_ptr(), table.data_ptr(),
            table.shape[1], rows.context_lengths.data_ptr(), output.data_ptr(),
        )  # fmt: skip
        status = self._library.qw_attention_step(self._context, arguments)
        if status == 1:
            raise IndexError(
                f"attention_step: contexts {rows.contexts} need pages that {tuple(table.shape)} do not name"
            )
        if status:
            raise MemoryError(f"attention_step: {len(query)} rows do not fit into memory")
        return output


def _dense_rows(x: torch.Tensor) -> torch.Tensor:
    """x [n, d] with neighbouring elements side by side; rows may lie apart. A copy only where they do not."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
