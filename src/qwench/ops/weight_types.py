"""The types of quantised weights: how many bits, which blocks, what a code stands for.

No torch: a load begins before it is imported. What codes, scales and mins mean as tensors is said in ops/quantised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

SUPER_BLOCK = 256
# Of a vocabulary, as csrc/include/qwench.h defines them with QW_ before the name.
VOCABULARY, UPPER_BITS, PANEL, EXACT_PANELS = 65536, 3, 16, 256
INPUT_BLOCK = 32  # inputs that share a scale when they are rounded to 8 bits
ScaleFormat = Literal["float16", "bfloat16"]
FOUR_BIT_FLOATS = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # E2M1, twice its value
NON_LINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # GGUF's IQ4 code book


@dataclass(frozen=True)
class WeightType:
    """How a matrix is quantised along its depth.

    ``block`` codes share one scale (and one min). Without ``nested`` both are floats of ``scale_format``. With it a
    super-block of 256 has a float16 scale (and min), and a block a whole number in [-128, 127] (and one in [0, 255])
    that these are multiplied by. The value of code c is ``table[c]``, or c - ``zero`` where there is no table.
    """

    name: str
    bits: int
    block: int = 32
    zero: int = 0
    table: tuple[int, ...] | None = None
    nested: bool = False
    has_min: bool = False
    scale_format: ScaleFormat = "float16"

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

    def bits_of(self, shape: Sequence[int]) -> float:
        """Bits of a matrix [..., depth], its depth padded."""
        *rows, depth = shape
        return self.bits_per_weight * math.prod(rows) * -(-depth // self.depth_multiple) * self.depth_multiple

    def unread_bits_of(self, shape: Sequence[int]) -> float:
        """What native kernels leave unread of these for one token, of which only the few largest logits count."""
        if not self.nested or self.table or self.bits not in (5, 6) or shape[-2] < VOCABULARY:
            return 0.0
        return self.bits_of(shape) * (self.bits - UPPER_BITS) / self.bits_per_weight


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
    WeightType("mxfp4", 4, table=FOUR_BIT_FLOATS, scale_format="bfloat16"),
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
    WeightType("MXFP4", 4, table=FOUR_BIT_FLOATS, scale_format="bfloat16"),
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
