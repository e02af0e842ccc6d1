"""AWQ (gemm): four-bit whole numbers, eight neighbouring outputs in a word in an order of their own, with zero points.

weight = scale * (code - zero). Knows neither files nor parameter names.
"""

from __future__ import annotations

from collections.abc import Mapping

from qwench.ops.lazy import torch
from qwench.ops.quantised import Codes
from qwench.ops.weight_types import WeightType
from qwench.quantisation import Scheme
from qwench.weights.formats.layout import (
    REAL,
    Tensor,
    groups,
    integer_matrix,
    integer_type,
    nibbles,
    one,
    require_finite,
    words,
)

PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # the nibble, from the lowest, that holds output 0, 1, ... of a word


def layout(scheme: Scheme, out: int, width: int) -> tuple[Tensor, ...]:
    """See layout.Tensor; the codes come first."""
    count = groups(width, scheme.group)
    return (
        one(".qweight", ("I32",), width, words(out, 4)),
        one(".qzeros", ("I32",), count, words(out, 4)),
        one(".scales", REAL, count, out),
    )


def weight_type(scheme: Scheme) -> WeightType:
    """What ``decode`` gives."""
    del scheme
    return integer_type(4, symmetric=False)


def decode(tensors: Mapping[str, torch.Tensor], scheme: Scheme, out: int, width: int) -> Codes:
    """The matrix [out, width] of tensors as ``layout`` says. Raises Unreadable."""
    del width
    scales = tensors[".scales"].t()
    require_finite(".scales", scales)
    codes, zeros = (_outputs(tensors[name])[:, :out].t() for name in (".qweight", ".qzeros"))
    return integer_matrix(weight_type(scheme), codes.contiguous(), scales, zeros, scheme.group)


def _outputs(packed: torch.Tensor) -> torch.Tensor:
    """[n, words] int32 to [n, 8 * words] in the order of the outputs."""
    return nibbles(packed).view(len(packed), -1, 8)[:, :, PLACES].reshape(len(packed), -1)
