"""Weights from files into the native kernels' layout, and the memory they lie in, without torch.

Reading and packing is one native call that holds no Python lock, so it goes on while Python imports torch. It knows
neither formats nor names: whoever knows where rows lie in a file (weights/stored.py) says so.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from ctypes import POINTER, c_char_p, c_int8, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path

from qwench.fault import fault
from qwench.ops.weight_types import WeightType

INTERFACE = 9  # QW_INTERFACE of the header these declarations were written from
ISA_VARIABLE = "QWENCH_ISA"  # for tests and comparisons: an instruction set of the native kernels, or "torch"
FILE = Path(__file__).with_name("libqwench.so")
ALIGNMENT = 64
CODES = 3  # QW_CODES
ELEMENTS: Mapping[str, int] = {"float32": 0, "bfloat16": 1, "float16": 2}  # QW_F32, QW_BF16, QW_F16
BITS, GGUF = 8, 16  # QW_BITS, QW_GGUF
LOAD_ROWS = 64  # QW_LOAD_ROWS
SHORT = 3  # QW_SHORT
LOOK_SECONDS = 0.05  # how often a load's progress is told


class WeightTypeNumbers(ctypes.Structure):
    """qw_weight_type"""

    _fields_ = (
        ("element", c_int32),
        ("bits", c_int32),
        ("block", c_int32),
        ("zero", c_int32),
        ("scale_type", c_int32),
        ("nested", c_int32),
        ("has_min", c_int32),
        ("has_table", c_int32),
        ("table", c_int8 * 16),
    )


class RowsArguments(ctypes.Structure):
    """qw_stored_rows"""

    _fields_ = (
        ("type", c_void_p),
        ("packed", c_void_p),
        ("out", c_int64),
        ("in", c_int64),
        ("first", c_int64),
        ("rows", c_int64),
        ("stored", c_int32),
        ("file", c_int32),
        ("offsets", c_int64 * 5),
    )


class LoadState(ctypes.Structure):
    """qw_load_state"""

    _fields_ = (("stop", c_int64), ("next", c_int64), ("bytes", c_int64), ("failed", c_int64))


class RoundArguments(ctypes.Structure):
    """qw_round_arguments"""

    _fields_ = (
        ("type", c_void_p),
        ("out", c_int64),
        ("in", c_int64),
        ("element", c_int32),
        ("source", c_void_p),
        ("source_stride", c_int64),
        ("codes", c_void_p),
        ("scales", c_void_p),
        ("mins", c_void_p),
        ("super_scales", c_void_p),
        ("super_mins", c_void_p),
    )


# name -> (what it returns, what it takes); ops/native.py has the others
DECLARATIONS: Mapping[str, tuple[type | None, tuple[type, ...]]] = {
    "qw_interface": (c_int32, ()),
    "qw_isas": (c_char_p, ()),
    "qw_open": (c_void_p, (c_int32, c_char_p)),
    "qw_close": (None, (c_void_p,)),
    "qw_memory_map": (c_void_p, (c_int64,)),
    "qw_memory_unmap": (None, (c_void_p, c_int64)),
    "qw_packed_bytes": (c_int64, (POINTER(WeightTypeNumbers), c_int64, c_int64)),
    "qw_round": (c_int32, (c_void_p, POINTER(RoundArguments))),
    "qw_load": (c_int32, (c_void_p, POINTER(RowsArguments), c_int64, POINTER(LoadState))),
}


def open_library(file: Path, declarations: Mapping[str, tuple[type | None, tuple[type, ...]]]) -> ctypes.CDLL:
    """The library with these functions declared. Raises OSError with the reason where it cannot be used."""
    fault("library.open")
    library = ctypes.CDLL(str(file))
    for name, (returned, taken) in declarations.items():
        function = getattr(library, name, None)
        if function is None or (name == "qw_interface" and function() != INTERFACE):
            raise OSError(f"{file.name} is of another version")
        function.restype, function.argtypes = returned, taken
    return library


@functools.cache
def load_library() -> ctypes.CDLL:
    """What this file needs of the library. Raises OSError."""
    return open_library(FILE, DECLARATIONS)


@functools.cache  # also because structures hold its address: each stays where it is
def numbers_of(kind: WeightType | int) -> WeightTypeNumbers:
    """A weight type, or one of ELEMENTS, as the library knows it."""
    if isinstance(kind, int):
        return WeightTypeNumbers(kind)
    table = (c_int8 * 16)(*(kind.table or ()))
    return WeightTypeNumbers(
        CODES, kind.bits, kind.block, kind.zero, ELEMENTS[kind.scale_format], kind.nested, kind.has_min,
        kind.table is not None, table,
    )  # fmt: skip


def packed_bytes(kind: WeightType | int, out: int, width: int) -> int:
    """Bytes of a packed [out, width], whole cache lines."""
    size: int = load_library().qw_packed_bytes(numbers_of(kind), out, width)
    return -(-size // ALIGNMENT) * ALIGNMENT


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
class RowsInFile:
    """Some rows of a matrix in a file: ``stored`` is one of ELEMENTS, BITS or GGUF plus the type's number there.

    ``offsets`` are where the first row of each array begins: numbers, blocks or codes, then scales, mins and so on.
    """

    file: Path
    stored: int
    rows: int
    num_bytes: int
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class MatrixInFile:
    """A matrix [out, width], or one expert's, and the rows it is made of, from the top; what it becomes: ``type``."""

    name: str
    expert: int
    type: WeightType | int
    out: int
    width: int
    rows: tuple[RowsInFile, ...]

    @property
    def fits(self) -> bool:
        """Whether its pieces begin where packed rows may be cut."""
        return all(each.rows % LOAD_ROWS == 0 for each in self.rows[:-1])


class Unloadable(Exception):
    """A matrix could not be loaded; ``status`` as the header says it."""

    def __init__(self, name: str, status: int) -> None:
        super().__init__(name, status)
        self.name, self.status = name, status


class Loading:
    """Matrices on their way into an arena. It can be begun with few threads and finished with others.

    Raises OSError where a file or the library cannot be opened, MemoryError.
    """

    def __init__(self, matrices: Sequence[MatrixInFile]) -> None:
        self._library = load_library()
        self.matrices = matrices
        self.names = frozenset(matrix.name for matrix in matrices)
        sizes = [packed_bytes(matrix.type, matrix.out, matrix.width) for matrix in matrices]
        self.arena = Arena(sum(sizes))
        self.addresses = {
            (matrix.name, matrix.expert): self.arena.take(size) for matrix, size in zip(matrices, sizes, strict=True)
        }
        self.num_bytes = sum(rows.num_bytes for matrix in matrices for rows in matrix.rows)
        self._packed_bytes = sum(sizes)
        self._state = LoadState()
        self._owners: list[MatrixInFile] = []
        with ExitStack() as opened:
            files = dict.fromkeys(rows.file for matrix in matrices for rows in matrix.rows)
            for file in files:
                descriptor = os.open(file, os.O_RDONLY)
                opened.callback(os.close, descriptor)
                files[file] = descriptor
            self._arguments = self._described(files)
            self._files = opened.pop_all()
        self._failure = 0
        self._thread: threading.Thread | None = None

    def _described(self, files: Mapping[Path, int | None]) -> ctypes.Array[RowsArguments]:
        described = []
        for matrix in self.matrices:
            first, address = 0, self.addresses[matrix.name, matrix.expert]
            kind = ctypes.addressof(numbers_of(matrix.type))
            for rows in matrix.rows:
                offsets = (c_int64 * 5)(*rows.offsets)
                described.append(
                    RowsArguments(
                        kind,
                        address,
                        matrix.out,
                        matrix.width,
                        first,
                        rows.rows,
                        rows.stored,
                        files[rows.file],
                        offsets,
                    )
                )
                self._owners.append(matrix)
                first += rows.rows
        return (RowsArguments * len(described))(*described)

    @property
    def bytes_read(self) -> int:
        return int(self._state.bytes)

    @property
    def bytes_taken(self) -> int:
        """Bytes of memory that what was read by now takes."""
        return self._packed_bytes * self.bytes_read // max(1, self.num_bytes)

    def begin(self, threads: int) -> None:
        """Load in the background, with threads of its own."""
        isas: bytes = self._library.qw_isas()
        context = self._library.qw_open(threads, isas.split()[0])
        if context is not None:  # without threads to be had, ``finish`` does everything
            self._start(context, close=True)

    def _start(self, context: int, *, close: bool) -> None:
        def work() -> None:
            self._failure = self._library.qw_load(context, self._arguments, len(self._arguments), self._state)
            if close:
                self._library.qw_close(context)

        atexit.register(self.stop)  # before the arena is freed
        self._thread = threading.Thread(target=work, name="qwench-loading", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End what was begun, within a piece of each thread."""
        atexit.unregister(self.stop)
        running, self._thread = self._thread, None
        if running is not None:
            self._state.stop = 1
            running.join()

    def close(self) -> None:
        """Nothing is read after this. Safe to call again."""
        self.stop()
        self._files.close()

    def finish(self, context: int, told: Callable[[int], None]) -> None:
        """Load what is left with the threads of ``context``; ``told`` hears the bytes read so far.

        Raises Unloadable, and what ``told`` raises, after which nothing runs any more.
        """
        self.stop()
        fault("read.weights")
        if not self._failure:
            self._state.stop = 0
            self._start(context, close=False)
            try:
                running = self._thread
                while running is not None:
                    running.join(LOOK_SECONDS)
                    told(self.bytes_read)
                    running = running if running.is_alive() else None
            finally:
                self.close()
        if self._failure:
            raise Unloadable(self._owners[self._state.failed].name, self._failure)
