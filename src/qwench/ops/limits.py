"""What this machine does at most: reads of main memory and multiplications in each type, by loops that do nothing else.

With the native library these are the bounds of its kernels (huge pages, all threads, the best instructions); without
it, and on a GPU, what torch reaches (device.py). Knows no model: whoever reports a speed sets a limit beside it.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from qwench.device import STREAM_BYTES, Measurement, measure_arithmetic, measure_bandwidth
from qwench.ops.native import instruction_sets, load_library

RUNS = 5
LOOP_SECONDS = 0.03  # long enough that waking a thread does not count, short enough that a neighbour may miss it
FIRST_ROUNDS = 20_000
TORCH_NAMES = {"bf16": "bfloat16", "fp32": "float32"}


@dataclass(frozen=True)
class Limits:
    """``reads`` of memory on huge pages; ``small_pages``: on pages of 4 KiB, where that was measured.

    ``arithmetic`` by type ("int8", "bf16", "fp32") and instruction set, such as "int8 avx512-vnni", best first.
    """

    reads: Measurement
    small_pages: Measurement | None
    arithmetic: Mapping[str, Measurement]

    def peak(self, kind: str) -> tuple[str, Measurement] | None:
        """The fastest loop of a type and its name, or None where there is none."""
        of_kind = [(name, measured) for name, measured in self.arithmetic.items() if name.split()[0] == kind]
        return max(of_kind, key=lambda pair: pair[1].best, default=None)


def join(taken: Sequence[Limits]) -> Limits:
    """Several measurements as one: all their samples, because a busy moment only ever lowers a limit."""
    first = taken[0]
    small = [each.small_pages for each in taken if each.small_pages is not None]
    arithmetic = {name: _joined([each.arithmetic[name] for each in taken]) for name in first.arithmetic}
    return Limits(_joined([each.reads for each in taken]), _joined(small) if small else None, arithmetic)


def _joined(taken: Sequence[Measurement]) -> Measurement:
    return replace(taken[0], samples=tuple(sample for each in taken for sample in each.samples))


def measure_limits(device: str, threads: int, *, small_pages: bool = False, num_bytes: int = STREAM_BYTES) -> Limits:
    """Everything above. ``small_pages`` takes a second pass over as much memory."""
    try:
        if device != "cpu":
            raise OSError("the native kernels run on the CPU")
        meter = _Meter(threads)
    except OSError:
        arithmetic = {kind: measure_arithmetic(device, name) for kind, name in TORCH_NAMES.items()}
        return Limits(measure_bandwidth(device), None, arithmetic)
    with meter:
        reads = meter.reads(num_bytes, huge=True)
        small = meter.reads(num_bytes, huge=False) if small_pages else None
        return Limits(reads, small, {name: meter.arithmetic(name) for name in meter.loops})


class _Meter:
    """A context of the native library that is used for measuring only."""

    def __init__(self, threads: int) -> None:
        self._library = load_library()
        self._threads = threads
        self._context: int | None = self._library.qw_open(threads, instruction_sets()[0].encode())
        if self._context is None:
            raise OSError(f"{threads} threads cannot be had")
        names: bytes = self._library.qw_limits()
        self.loops = names.decode().split("\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._library.qw_close(self._context)

    def reads(self, num_bytes: int, *, huge: bool) -> Measurement:
        """Bytes per second of passes over fresh memory that nothing else is in."""
        memory = mmap.mmap(-1, num_bytes)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
        held = ctypes.c_char.from_buffer(memory)
        address = ctypes.addressof(held)
        ctypes.memset(address, 1, num_bytes)
        samples = []
        for _ in range(RUNS + 1):
            start = time.perf_counter()
            self._library.qw_limit_read(self._context, self._threads, address, num_bytes)
            samples.append(num_bytes / (time.perf_counter() - start))
        del held
        memory.close()
        pages = "huge pages" if huge else "4 KiB pages"
        method = f"{num_bytes >> 20} MiB read, {pages}, {self._where()}, best of {RUNS}"
        return Measurement(tuple(samples[1:]), "bytes/s", method)

    def arithmetic(self, loop: str) -> Measurement:
        """Operations per second, a multiplication and an addition counted as two."""
        rounds, samples = FIRST_ROUNDS, []
        for _ in range(RUNS + 1):
            start = time.perf_counter()
            done: int = self._library.qw_limit_run(self._context, loop.encode(), self._threads, rounds)
            seconds = time.perf_counter() - start
            samples.append(done / seconds)
            rounds = max(FIRST_ROUNDS, int(rounds * LOOP_SECONDS / seconds))
        method = f"{loop} multiplications in registers, {self._where()}, best of {RUNS}"
        return Measurement(tuple(samples[1:]), "operations/s", method)

    def _where(self) -> str:
        return f"{self._threads} thread{'s' * (self._threads > 1)}"
