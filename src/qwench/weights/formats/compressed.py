"""compressed-tensors: whole numbers packed into words along the inputs ("packed"), or one byte each ("int8").

Both with a scale for a group of inputs or a whole row, and maybe zero points: weight = scale * (code - zero). nvfp4,
mxfp4 and fp8 read its floats. Knows neither files nor parameter names.
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
    count, bits = groups(width, scheme.group), scheme.bits
    rows = ((REAL, (out,)),) if count == 1 else ()
    tensors = [Tensor(".weight_scale", ((REAL, (out, count)), *rows))]
    if not scheme.symmetric:
        plain = (("I8",), (out, count))
        packed = (("I32",), (words(out, bits), count))
        tensors.append(Tensor(".weight_zero_point", (packed, plain) if scheme.format == "packed" else (plain,)))
    if scheme.format == "int8":
        return one(".weight", ("I8",), out, width), *tensors
    return (
        one(".weight_packed", ("I32",), out, words(width, bits)),
        *tensors,
        one(".weight_shape", ("I64", "I32"), 2, needed=False),
        one(".weight_g_idx", ("I32", "I64"), width, needed=False),
    )


def weight_type(scheme: Scheme) -> WeightType:
    """What ``decode`` gives."""
    return integer_type(scheme.bits, symmetric=scheme.symmetric)


def decode(tensors: Mapping[str, torch.Tensor], scheme: Scheme, out: int, width: int) -> Codes:
    """The matrix [out, width] of tensors as ``layout`` says. Raises Unreadable."""
    scales = tensors[".weight_scale"].view(out, -1)
    require_finite(".weight_scale", scales)
    if ".weight_g_idx" in tensors:
        require_in_order(".weight_g_idx", tensors[".weight_g_idx"], width, scheme.group)
    shape = tensors.get(".weight_shape")
    if shape is not None and shape.tolist() != [out, width]:
        raise Unreadable(".weight_shape", f"holds {shape.tolist()}; {[out, width]} is expected from config.json")
    kind = weight_type(scheme)
    if scheme.format == "int8":
        codes = _unsigned(tensors[".weight"], kind.zero)
    else:
        codes = numbers(tensors[".weight_packed"], scheme.bits, width)
    return integer_matrix(kind, codes, scales, _zeros(tensors, scheme, out), scheme.group)


def _zeros(tensors: Mapping[str, torch.Tensor], scheme: Scheme, out: int) -> torch.Tensor | None:
    """uint8 [out, groups], counted as the codes are."""
    stored = tensors.get(".weight_zero_point")
    if stored is None or scheme.symmetric:
        return None
    if stored.dtype == torch.int8:
        return _unsigned(stored, 2 ** (scheme.bits - 1))
    return numbers(stored.t(), scheme.bits, out).t()


def _unsigned(values: torch.Tensor, middle: int) -> torch.Tensor:
    """Signed bytes, counted from the bottom of their range."""
    return (values.to(torch.int16) + middle).to(torch.uint8)
