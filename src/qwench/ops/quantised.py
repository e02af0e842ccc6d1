"""Quantised matrices: what their codes, scales and mins mean, in plain torch. The contract every kernel is held to.

A weight is scale * (value of its code) - min, where scale and min belong to a block of the depth. It knows neither how
a file stores the codes (weights/formats) nor how the native kernels lay them out (csrc/packed.h).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

SUPER_BLOCK = 256
INPUT_BLOCK = 32  # inputs that share a scale when they are rounded to 8 bits
FOUR_BIT_FLOATS = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # E2M1, twice its value
NON_LINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # GGUF's IQ4 code book


@dataclass(frozen=True)
class WeightType:
    """How a matrix is quantised along its depth.

    ``block`` codes share one scale (and one min). Without ``nested`` both are 16-bit floats of ``scale_dtype``. With it
    a super-block of 256 has a float16 scale (and min), and a block a whole number in [-128, 127] (and one in [0, 255])
    that these are multiplied by. The value of code c is ``table[c]``, or c - ``zero`` where there is no table.
    """

    name: str
    bits: int
    block: int = 32
    zero: int = 0
    table: tuple[int, ...] | None = None
    nested: bool = False
    has_min: bool = False
    scale_dtype: torch.dtype = torch.float16

    @property
    def depth_multiple(self) -> int:
        """Depths are stored padded to a multiple of this."""
        return SUPER_BLOCK if self.nested else INPUT_BLOCK

    @property
    def bits_per_weight(self) -> float:
        """Codes, scales and mins, as kernels keep them."""
        floats = 2 if self.has_min else 1
        if not self.nested:
            return self.bits + 16 * floats / self.block
        return self.bits + 8 * floats / self.block + 16 * floats / SUPER_BLOCK


def _types(*types: WeightType) -> Mapping[str, WeightType]:
    return {each.name: each for each in types}


# Ours, by the names of the public `quantization` option.
OWN_TYPES = _types(
    WeightType("q8", 8, zero=128),
    WeightType("q6", 6, nested=True, has_min=True),
    WeightType("q5", 5, nested=True, has_min=True),
    WeightType("q4", 4, nested=True, has_min=True),
    WeightType("q3", 3, nested=True, has_min=True),
    WeightType("q2", 2, block=16, zero=2, nested=True),
    WeightType("mxfp4", 4, table=FOUR_BIT_FLOATS, scale_dtype=torch.bfloat16),
)

# The types of other formats that are computed as they are published.
GGUF_TYPES = _types(
    WeightType("Q4_0", 4, zero=8),
    WeightType("Q4_1", 4, has_min=True),
    WeightType("Q5_0", 5, zero=16),
    WeightType("Q5_1", 5, has_min=True),
    WeightType("Q8_0", 8, zero=128),
    WeightType("Q2_K", 2, block=16, nested=True, has_min=True),
    WeightType("Q3_K", 3, block=16, zero=4, nested=True),
    WeightType("Q4_K", 4, nested=True, has_min=True),
    WeightType("Q5_K", 5, nested=True, has_min=True),
    WeightType("Q6_K", 6, block=16, zero=32, nested=True),
    WeightType("IQ4_NL", 4, table=NON_LINEAR),
    WeightType("IQ4_XS", 4, table=NON_LINEAR, nested=True),
    WeightType("MXFP4", 4, table=FOUR_BIT_FLOATS, scale_dtype=torch.bfloat16),
)


# What other checkpoints in Hugging Face layout hold. Whole numbers with a zero point of their own are counted from the
# middle of their range and keep scale * (zero point - middle) as the min: exact in float16 for 4 bits and BF16 scales.
CHECKPOINT_TYPES = _types(
    WeightType("int4", 4, zero=8),
    WeightType("int8", 8, zero=128),
    WeightType("int4_zero", 4, zero=8, has_min=True),
    WeightType("int8_zero", 8, zero=128, has_min=True),
    WeightType("nvfp4", 4, block=16, table=FOUR_BIT_FLOATS),
)


@dataclass(frozen=True)
class Codes:
    """A quantised [out, width] matrix, one byte a code, before any kernel packs it. D is width padded.

    codes [out, D] uint8; scales [out, D / block] (scale_dtype, or int8 where nested); mins likewise (uint8 where
    nested), None without; super_scales and super_mins [out, D / 256] float16 where nested. Everything that is
    multiplied with a scale is multiplied with ``factor`` too. Padding holds any codes: inputs there are zero.
    """

    type: WeightType
    width: int
    codes: torch.Tensor
    scales: torch.Tensor
    mins: torch.Tensor | None = None
    super_scales: torch.Tensor | None = None
    super_mins: torch.Tensor | None = None
    factor: float = 1.0

    def __post_init__(self) -> None:
        out, depth = self.codes.shape
        kind = self.type
        blocks, supers = (out, depth // kind.block), (out, depth // SUPER_BLOCK)
        assert depth == -(-self.width // kind.depth_multiple) * kind.depth_multiple, (
            "the depth is padded to whole blocks"
        )
        assert self.codes.dtype == torch.uint8
        assert self.scales.shape == blocks
        assert self.scales.dtype == (torch.int8 if kind.nested else kind.scale_dtype)
        assert (self.mins is not None) == kind.has_min
        assert self.mins is None or self.mins.shape == blocks
        assert self.mins is None or self.mins.dtype == (torch.uint8 if kind.nested else kind.scale_dtype)
        assert (self.super_scales is not None) == kind.nested
        assert self.super_scales is None or self.super_scales.shape == supers
        assert (self.super_mins is not None) == (kind.nested and kind.has_min)
        assert self.super_mins is None or self.super_mins.shape == supers

    @property
    def out(self) -> int:
        return len(self.codes)

    @property
    def arrays(self) -> dict[str, torch.Tensor]:
        """What is stored for it, by the names of the fields."""
        named = {name: getattr(self, name) for name in ARRAYS}
        return {name: array for name, array in named.items() if array is not None}

    @property
    def is_finite(self) -> bool:
        """Whether all scales are numbers; those of damaged weights are not."""
        floats = (self.scales if self.super_scales is None else self.super_scales), self.super_mins
        return all(each is None or bool(each.isfinite().all()) for each in floats)

    def rows(self, indices: torch.Tensor) -> Codes:
        """The matrix of these rows alone."""
        return self.of({name: array[indices] for name, array in self.arrays.items()})

    def to(self, device: str) -> Codes:
        return self.of({name: array.to(device) for name, array in self.arrays.items()})

    def of(self, arrays: Mapping[str, torch.Tensor]) -> Codes:
        """A matrix like this one over other arrays."""
        return codes_of(self.type, self.width, arrays, self.factor)


ARRAYS = ("codes", "scales", "mins", "super_scales", "super_mins")


def codes_of(kind: WeightType, width: int, arrays: Mapping[str, torch.Tensor], factor: float = 1.0) -> Codes:
    """Codes over arrays by the names of its fields."""
    mins, super_scales, super_mins = (arrays.get(name) for name in ARRAYS[2:])
    return Codes(kind, width, arrays["codes"], arrays["scales"], mins, super_scales, super_mins, factor)


def concatenate(pieces: Sequence[Codes]) -> Codes:
    """One matrix of the rows of all ``pieces``, which are of one type, width and factor."""
    first = pieces[0]
    if len(pieces) == 1:
        return first
    assert all((each.type, each.width, each.factor) == (first.type, first.width, first.factor) for each in pieces)
    return first.of({name: torch.cat([each.arrays[name] for each in pieces]) for name in first.arrays})


def dequantise(matrix: Codes) -> torch.Tensor:
    """[out, width] fp32, every product rounded once: scale * value - min."""
    kind = matrix.type
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


def quantise_inputs(x: torch.Tensor, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, width] as (whole numbers in [-127, 127], int8 [T, depth]; their scales, fp32 [T, depth / 32]).

    A block's scale is its largest magnitude / 127; numbers are rounded to the nearest, ties to even.
    """
    blocks = F.pad(x.float(), (0, depth - x.shape[1])).view(len(x), -1, INPUT_BLOCK)
    scales = blocks.abs().amax(-1) / 127
    inverse = torch.where(scales > 0, 1 / scales, 0.0)
    numbers = (blocks * inverse[..., None]).round().clamp(-127, 127)
    return numbers.to(torch.int8).view(len(x), depth), scales


def quantised_linear(x: torch.Tensor, matrix: Codes) -> torch.Tensor:
    """x [T, width] times the matrix transposed, inputs rounded to 8 bits: [T, out] in x's type."""
    numbers, scales = quantise_inputs(x, matrix.codes.shape[1])
    rounded = (numbers.view(len(x), -1, INPUT_BLOCK).float() * scales[..., None]).view(len(x), -1)[:, : matrix.width]
    return F.linear(rounded, dequantise(matrix)).to(x.dtype)
