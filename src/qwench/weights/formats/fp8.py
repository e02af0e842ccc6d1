"""Block-scaled FP8 matrices: value = e4m3 * scale of its block. Knows neither files nor parameter names.

The stored factor is named "inverse" by its publishers but multiplies.
"""

from __future__ import annotations

import torch


def scale_shape(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, int]:
    """Shape of the scales of a matrix [rows, columns]: one per block, edge blocks may be partly filled."""
    rows, columns = shape
    return -(-rows // block[0]), -(-columns // block[1])


def dequantise(weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int], out: torch.Tensor) -> None:
    """Write ``weight`` [R, C] (float8_e4m3fn) times ``scale`` [ceil(R/rows), ceil(C/columns)] into ``out`` [R, C].

    Computed in float32 and rounded once to the type of ``out``, one row of blocks at a time to need little memory.
    """
    assert tuple(scale.shape) == scale_shape(tuple(weight.shape), block), "scales must cover the matrix block by block"
    rows, columns = block
    factors = scale.to(torch.float32).repeat_interleave(columns, dim=1)[:, : weight.shape[1]]
    for index, factor in enumerate(factors):
        span = slice(index * rows, (index + 1) * rows)
        out[span].copy_(weight[span].to(torch.float32) * factor)
