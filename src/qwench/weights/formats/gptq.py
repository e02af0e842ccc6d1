"""GPTQ: whole numbers packed along the inputs, a zero point for each group and output. weight = scale * (code - zero).

Layout "gptq" stores zero points less one, "gptq_v2" as they are. Knows neither files nor parameter names.
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
    Unreadable,
    groups,
    integer_matrix,
    integer_type,
    numbers,
    one,
    require_finite,
    require_in_order,
    words,
)


def layout(scheme: Scheme, out: int, width: int) -> tuple[Tensor, ...]:
    """See layout.Tensor; the codes come first."""
    count = groups(width, scheme.group)
    return (
        one(".qweight", ("I32",), words(width, scheme.bits), out),
        one(".qzeros", ("I32",), count, words(out, scheme.bits)),
        one(".scales", REAL, count, out),
        one(".g_idx", ("I32", "I64"), width, needed=False),
    )


def weight_type(scheme: Scheme) -> WeightType:
    """What ``decode`` gives."""
    return integer_type(scheme.bits, symmetric=scheme.symmetric)


def decode(tensors: Mapping[str, torch.Tensor], scheme: Scheme, out: int, width: int) -> Codes:
    """The matrix [out, width] of tensors as ``layout`` says. Raises Unreadable."""
    bits = scheme.bits
    scales = tensors[".scales"].t()
    require_finite(".scales", scales)
    if ".g_idx" in tensors:
        require_in_order(".g_idx", tensors[".g_idx"], width, scheme.group)
    zeros = numbers(tensors[".qzeros"], bits, out).t()
    if scheme.format == "gptq":
        zeros = (zeros + 1) & (2**bits - 1)  # 0 was packed as the largest number
    kind = weight_type(scheme)
    if scheme.symmetric and not bool((zeros == kind.zero).all()):
        raise Unreadable(".qzeros", f"holds zero points other than {kind.zero}, but config.json says sym")
    codes = numbers(tensors[".qweight"].t(), bits, width)
    return integer_matrix(kind, codes, scales, zeros, scheme.group)
