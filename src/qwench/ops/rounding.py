"""Numbers rounded to codes by the native library: the bits of weights/quantise.py, on every thread."""

from __future__ import annotations

import ctypes

from qwench.ops.arrays import address_of
from qwench.ops.lazy import torch
from qwench.ops.loading import ELEMENTS, RoundArguments, load_library, numbers_of
from qwench.ops.native import Native
from qwench.ops.quantised import Codes, allocate
from qwench.ops.weight_types import WeightType


def round_natively(native: Native, weight: torch.Tensor, kind: WeightType) -> Codes:
    """``weight`` [out, width] of any of ELEMENTS as codes of one of our types."""
    weight = weight.contiguous()
    codes = allocate(kind, *weight.shape)
    arrays = (codes.codes, codes.scales, codes.mins, codes.super_scales, codes.super_mins)
    element = ELEMENTS[str(weight.dtype).removeprefix("torch.")]
    arguments = RoundArguments(
        ctypes.addressof(numbers_of(kind)), len(weight), weight.shape[1], element, weight.data_ptr(), weight.shape[1],
        *(None if array is None else address_of(array) for array in arrays),
    )  # fmt: skip
    status = load_library().qw_round(native.context, arguments)
    assert status == 0, f"{kind.name} is not one of our own types"
    return codes.to_torch()
