"""FP8 matrices: value = e4m3 * scale of its block, row or matrix. Knows neither files nor parameter names.

The stored factor is named "inverse" by the publishers of "fp8_block" but multiplies.
"""

from __future__ import annotations

from collections.abc import Mapping

from qwench.ops.lazy import torch
from qwench.quantisation import Scheme
from qwench.weights.formats.layout import REAL, Tensor, one, require_finite


def layout(scheme: Scheme, out: int, width: int) -> tuple[Tensor, ...]:
    """See layout.Tensor; the codes come first."""
    blocks = scale_shape((out, width), _block(scheme, out, width))
    shapes = [blocks, *([(out,)] if blocks == (out, 1) else []), *([(1,), ()] if scheme.block == (None, None) else [])]
    return one(".weight", ("F8_E4M3",), out, width), Tensor(_scale(scheme), tuple((REAL, each) for each in shapes))


def decode(tensors: Mapping[str, torch.Tensor], scheme: Scheme, out: int, width: int) -> torch.Tensor:
    """The matrix [out, width] of tensors as ``layout`` says, fp32. Raises Unreadable."""
    block = _block(scheme, out, width)
    scale = tensors[_scale(scheme)].view(scale_shape((out, width), block))
    require_finite(_scale(scheme), scale)
    weight = torch.empty(out, width)
    dequantise(tensors[".weight"], scale, block, weight)
    return weight


def _block(scheme: Scheme, out: int, width: int) -> tuple[int, int]:
    rows, columns = scheme.block
    return rows or out, columns or width


def _scale(scheme: Scheme) -> str:
    return ".weight_scale_inv" if scheme.format == "fp8_block" else ".weight_scale"


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
