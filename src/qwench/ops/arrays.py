"""Arrays and their element types: numpy's in main memory, torch's where torch computes. One name for each type.

A type is numpy's; BF16, which numpy lacks, comes from ml_dtypes. Nothing here loads torch before it is given, or asked
for, a tensor.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from qwench.ops.lazy import torch

DType = np.dtype[Any]
Host = np.ndarray[Any, DType]
Array = Any  # numpy's, or torch's where torch computes: known only to who computes

FLOAT32, FLOAT16, INT8, INT64 = map(np.dtype, ("float32", "float16", "int8", "int64"))
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {str(dtype): dtype for dtype in (FLOAT32, BFLOAT16, FLOAT16)}  # those that activations may have
LINE = 64
HUGE_BYTES = 32 << 20  # from here on an array takes whole huge pages


class Typed(Protocol):
    """An array, or what stands for one."""

    @property
    def dtype(self) -> Any: ...


def as_dtype(dtype: DType | torch.dtype) -> DType:
    """An element type of either kind of array as numpy's."""
    return dtype if isinstance(dtype, np.dtype) else np.dtype(str(dtype).removeprefix("torch."))


def dtype_of(array: Typed) -> DType:
    return as_dtype(array.dtype)


def torch_dtype(dtype: DType) -> torch.dtype:
    found = getattr(torch, str(dtype))
    assert isinstance(found, torch.dtype)
    return found


def address_of(array: Array) -> int:
    """Where the first element lies: good as long as the array lives."""
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data_ptr())


def is_dense(array: Array) -> bool:
    """Whether the elements lie one behind the other."""
    return bool(array.flags.c_contiguous if isinstance(array, np.ndarray) else array.is_contiguous())


def dense(array: Array) -> Array:
    """``array`` with its elements one behind the other; a copy only where they are not."""
    return np.ascontiguousarray(array) if isinstance(array, np.ndarray) else array.contiguous()


def to_torch(array: Array, device: str = "cpu") -> torch.Tensor:
    """A tensor of ``array``: on the CPU over the same memory."""
    if not isinstance(array, np.ndarray):
        moved: torch.Tensor = array.to(device)
        return moved
    plain = array.view(np.int16) if array.dtype == BFLOAT16 else array  # torch does not know ml_dtypes
    return torch.from_numpy(plain).view(torch_dtype(array.dtype)).to(device)


def as_torch(array: Array) -> torch.Tensor:
    """``array`` as a tensor over the same memory, where it is."""
    return to_torch(array) if isinstance(array, np.ndarray) else array


def to_host(array: Array) -> Host:
    """``array`` in main memory: itself, or over the same memory where it is there."""
    if isinstance(array, np.ndarray):
        return array
    dtype = dtype_of(array)
    plain = array.detach().cpu()
    host: Host = (plain.view(torch.int16) if dtype == BFLOAT16 else plain).numpy()
    return host.view(dtype)


def like(array: Array, values: Host) -> Array:
    """``values``, or a copy of them, as the kind of array that ``array`` is, where that is."""
    return values if isinstance(array, np.ndarray) else to_torch(values.copy(), str(array.device))


def zeros(shape: Sequence[int], dtype: DType) -> Host:
    """Zeros from the beginning of a cache line on; what is large lies on huge pages where the system grants them: a
    long context is read faster there.

    Raises MemoryError.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes < HUGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        room = np.zeros(num_bytes + LINE, np.uint8)  # numpy's own arrays begin anywhere in a line
        start = -address_of(room) % LINE
        return room[start : start + num_bytes].view(dtype).reshape(shape)
    try:
        memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{num_bytes / 2**30:.2f} GiB for the cache are not there") from error
    memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape)
