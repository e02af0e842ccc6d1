"""Quantised matrices: what their codes, scales and mins mean, in plain torch. The contract every kernel is held to.

A weight is scale * (value of its code) - min, where scale and min belong to a block of the depth. It knows neither how
a file stores the codes (weights/formats) nor how the native kernels lay them out (csrc/packed.h).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qwench.ops.arrays import Array, as_torch, dtype_of, to_torch
from qwench.ops.lazy import F, torch
from qwench.ops.weight_types import INPUT_BLOCK, SUPER_BLOCK, WeightType


@dataclass(frozen=True)
class Codes:
    """A quantised [out, width] matrix, one byte a code, before any kernel packs it. D is width padded.

    codes [out, D] uint8; scales [out, D / block] (of scale_format, or int8 where nested); mins likewise (uint8 where
    nested), None without; super_scales and super_mins [out, D / 256] float16 where nested. Everything that is
    multiplied with a scale is multiplied with ``factor`` too. Padding holds any codes: inputs there are zero.
    """

    type: WeightType
    width: int
    codes: Array
    scales: Array
    mins: Array = None
    super_scales: Array = None
    super_mins: Array = None
    factor: float = 1.0

    def __post_init__(self) -> None:
        out, depth = self.codes.shape
        kind = self.type
        blocks, supers = (out, depth // kind.block), (out, depth // SUPER_BLOCK)
        assert depth == -(-self.width // kind.depth_multiple) * kind.depth_multiple, (
            "the depth is padded to whole blocks"
        )
        assert str(dtype_of(self.codes)) == "uint8"
        assert self.scales.shape == blocks
        assert str(dtype_of(self.scales)) == ("int8" if kind.nested else kind.scale_format)
        assert (self.mins is not None) == kind.has_min
        assert self.mins is None or self.mins.shape == blocks
        assert self.mins is None or str(dtype_of(self.mins)) == ("uint8" if kind.nested else kind.scale_format)
        assert (self.super_scales is not None) == kind.nested
        assert self.super_scales is None or self.super_scales.shape == supers
        assert (self.super_mins is not None) == (kind.nested and kind.has_min)
        assert self.super_mins is None or self.super_mins.shape == supers

    @property
    def out(self) -> int:
        return len(self.codes)

    @property
    def arrays(self) -> dict[str, Array]:
        """What is stored for it, by the names of the fields."""
        named = {name: getattr(self, name) for name in ARRAYS}
        return {name: array for name, array in named.items() if array is not None}

    @property
    def is_finite(self) -> bool:
        """Whether all scales are numbers; those of damaged weights are not."""
        floats = (self.scales if self.super_scales is None else self.super_scales), self.super_mins
        return all(each is None or bool(as_torch(each).isfinite().all()) for each in floats)

    def rows(self, indices: torch.Tensor) -> Codes:
        """The matrix of these rows alone."""
        return self.of({name: array[indices] for name, array in self.arrays.items()})

    def to_torch(self) -> Codes:
        """The same matrix over tensors, where it is."""
        return self.of({name: as_torch(array) for name, array in self.arrays.items()})

    def to(self, device: str) -> Codes:
        return self.of({name: to_torch(array, device) for name, array in self.arrays.items()})

    def of(self, arrays: Mapping[str, Array]) -> Codes:
        """A matrix like this one over other arrays."""
        return codes_of(self.type, self.width, arrays, self.factor)


ARRAYS = ("codes", "scales", "mins", "super_scales", "super_mins")


def scale_dtype(kind: WeightType) -> torch.dtype:
    """Of scales that are floats."""
    found = getattr(torch, kind.scale_format)
    assert isinstance(found, torch.dtype)
    return found


def codes_of(kind: WeightType, width: int, arrays: Mapping[str, Array], factor: float = 1.0) -> Codes:
    """Codes over arrays by the names of its fields."""
    mins, super_scales, super_mins = (arrays.get(name) for name in ARRAYS[2:])
    return Codes(kind, width, arrays["codes"], arrays["scales"], mins, super_scales, super_mins, factor)


def allocate(kind: WeightType, out: int, width: int) -> Codes:
    """A matrix [out, width] of ``kind`` to be filled, of numpy's arrays."""
    depth = -(-width // kind.depth_multiple) * kind.depth_multiple
    blocks, supers = (out, depth // kind.block), (out, depth // SUPER_BLOCK)
    scales, mins = ("int8", "uint8") if kind.nested else (kind.scale_format, kind.scale_format)
    arrays = {"codes": np.empty((out, depth), np.uint8), "scales": np.empty(blocks, scales)}
    if kind.has_min:
        arrays["mins"] = np.empty(blocks, mins)
    if kind.nested:
        arrays["super_scales"] = np.empty(supers, np.float16)
        if kind.has_min:
            arrays["super_mins"] = np.empty(supers, np.float16)
    return codes_of(kind, width, arrays)


def concatenate(pieces: Sequence[Codes]) -> Codes:
    """One matrix of the rows of all ``pieces``, which are of one type, width and factor."""
    first = pieces[0]
    if len(pieces) == 1:
        return first.to_torch()
    assert all((each.type, each.width, each.factor) == (first.type, first.width, first.factor) for each in pieces)
    return first.of({name: torch.cat([as_torch(each.arrays[name]) for each in pieces]) for name in first.arrays})


def dequantise(matrix: Codes) -> torch.Tensor:
    """[out, width] fp32, every product rounded once: scale * value - min."""
    matrix, kind = matrix.to_torch(), matrix.type
    out, depth = matrix.codes.shape
    if kind.table is not None:
        values = torch.tensor(kind.table, dtype=torch.float32, device=matrix.codes.device)[matrix.codes.long()]
    else:
        values = matrix.codes.float() - kind.zero
    scales = _whole_scales(matrix.scales, matrix.super_scales) * matrix.factor
    weights = values.view(out, -1, kind.block) * scales[..., None]
    if matrix.mins is not None:
        weights = weights - (_whole_scales(matrix.mins, matrix.super_mins) * matrix.factor)[..., None]
    return weights.reshape(out, depth)[:, : matrix.width]


def _whole_scales(parts: torch.Tensor, supers: torch.Tensor | None) -> torch.Tensor:
    """[out, blocks] fp32."""
    if supers is None:
        return parts.float()
    each = parts.shape[1] // supers.shape[1]
    return parts.float() * supers.float().repeat_interleave(each, dim=1)


def quantise_inputs(x: torch.Tensor, depth: int, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, width] as (whole numbers in [-127, 127], int8 [T, depth]; their scales, fp32 [T, depth / block]).

    A block's scale is its largest magnitude / 127; numbers are rounded to the nearest, ties to even.
    """
    blocks = F.pad(x.float(), (0, depth - x.shape[1])).view(len(x), -1, block)
    scales = blocks.abs().amax(-1) / 127
    inverse = torch.where(scales > 0, 1 / scales, 0.0)
    numbers = (blocks * inverse[..., None]).round().clamp(-127, 127)
    return numbers.to(torch.int8).view(len(x), -1), scales


def quantised_linear(x: torch.Tensor, matrix: Codes) -> torch.Tensor:
    """x [T, width] times the matrix transposed, inputs rounded to 8 bits: [T, out] in x's type.

    Where a super-block's weights are whole numbers times one scale its inputs are too: their product is a whole number,
    and kernels need floats once in 256 of depth. Elsewhere inputs have a scale for as few as weights may have.
    """
    block = SUPER_BLOCK if matrix.type.nested else INPUT_BLOCK
    numbers, scales = quantise_inputs(x, matrix.codes.shape[1], block)
    rounded = (numbers.view(len(x), -1, block).float() * scales[..., None]).view(len(x), -1)[:, : matrix.width]
    return F.linear(rounded, dequantise(matrix)).to(x.dtype)
