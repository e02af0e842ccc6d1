"""What every reader of packed matrices has in common: the tensors a matrix is stored in, nibbles, scales in float16.

A reader is three pure functions: ``layout`` (which tensors, types and shapes, for the headers to be checked), and
``weight_type`` and ``decode`` (what comes of them). Knows neither files nor the names before a suffix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qwench.ops.lazy import F, torch
from qwench.ops.quantised import Codes
from qwench.ops.weight_types import CHECKPOINT_TYPES, INPUT_BLOCK, WeightType

REAL = ("F16", "BF16", "F32")
MAX_HALF = 65504.0


@dataclass(frozen=True)
class Tensor:
    """One stored tensor of a matrix: what follows the module's name, and its possible (types, shape)."""

    suffix: str
    forms: tuple[tuple[tuple[str, ...], tuple[int, ...]], ...]
    needed: bool = True


class Unreadable(Exception):
    """The numbers in the tensor with ``suffix`` make no sense; ``reason`` follows its name in a sentence."""

    def __init__(self, suffix: str, reason: str) -> None:
        super().__init__(f"{suffix} {reason}")
        self.suffix, self.reason = suffix, reason


def one(suffix: str, types: tuple[str, ...], *shape: int, needed: bool = True) -> Tensor:
    """A tensor with one possible shape."""
    return Tensor(suffix, ((types, shape),), needed)


def scalar(suffix: str) -> Tensor:
    """One number, as a tensor without or with one dimension."""
    return Tensor(suffix, ((REAL, ()), (REAL, (1,))))


def words(count: int, bits: int) -> int:
    """How many 32-bit words hold ``count`` numbers of ``bits``."""
    return -(-count * bits // 32)


def groups(width: int, group: int | None) -> int:
    """How many groups of inputs a row has."""
    return 1 if group is None else -(-width // group)


def nibbles(packed: torch.Tensor) -> torch.Tensor:
    """[n, k] of any whole type to [n, 2 * bytes of a row] uint8: four bits each, the low ones first."""
    octets = packed.contiguous().view(torch.uint8)
    return torch.stack((octets & 15, octets >> 4), dim=-1).view(len(packed), -1)


def numbers(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """[n, words] int32 to the first ``count`` numbers of each row, uint8 [n, count], lowest bits first."""
    whole = nibbles(packed) if bits == 4 else packed.contiguous().view(torch.uint8)
    return whole[:, :count]


def integer_type(bits: int, *, symmetric: bool) -> WeightType:
    """The type of packed whole numbers."""
    return CHECKPOINT_TYPES[f"int{bits}" if symmetric else f"int{bits}_zero"]


def integer_matrix(
    kind: WeightType, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, group: int | None
) -> Codes:
    """weight = scale * (code - zero): codes uint8 [out, width], scales [out, groups], zeros uint8 [out, groups].

    Scales are repeated for every block of 32 inputs. Zero points become mins: scale * (zero - middle) in float16, which
    rounds it by at most 1/2048 of itself: by 1/256 of a step at 4 bits (nothing if scales are BF16), by 1/16 at 8.
    """
    middle = kind.zero
    stored, factor = _half(scales.float(), headroom=middle if kind.has_min else 1)
    blocks = -(-codes.shape[1] // INPUT_BLOCK)
    mins = None
    if kind.has_min:
        assert zeros is not None
        mins = _blocks((stored.float() * (zeros.float() - middle)).half(), group, blocks)
    padded = F.pad(codes, (0, blocks * INPUT_BLOCK - codes.shape[1]))
    return Codes(kind, codes.shape[1], padded, _blocks(stored, group, blocks), mins, factor=factor)


def _blocks(values: torch.Tensor, group: int | None, blocks: int) -> torch.Tensor:
    """[out, groups] to [out, blocks] of 32 inputs each."""
    if group is None:
        return values.expand(-1, blocks).contiguous()
    return values.repeat_interleave(group // INPUT_BLOCK, dim=1)[:, :blocks].contiguous()


def _half(values: torch.Tensor, headroom: int) -> tuple[torch.Tensor, float]:
    """``values`` as float16 times a power of two: without one where that is exact, else with the most bits kept.

    ``headroom`` times a value fits float16, too.
    """
    largest = float(values.abs().max()) * headroom
    plain = values.half()
    if largest <= MAX_HALF and torch.equal(plain.float(), values):
        return plain, 1.0
    exponent = max(-120, min(120, math.floor(math.log2(MAX_HALF / largest))))
    return (values * 2.0**exponent).half(), 2.0**-exponent


def require_finite(suffix: str, values: torch.Tensor) -> None:
    """Raises Unreadable where a scale is no number."""
    if not bool(values.float().isfinite().all()):
        raise Unreadable(suffix, "holds a number that is not finite")


def require_in_order(suffix: str, indices: torch.Tensor, width: int, group: int | None) -> None:
    """Raises Unreadable where inputs do not belong to groups one after the other."""
    count = groups(width, group)
    wrong = indices[(indices < 0) | (indices >= count)]
    if len(wrong):
        raise Unreadable(suffix, f"holds {int(wrong[0])}, but there are {count} groups")
    expected = torch.arange(width) // (group or width)
    if not torch.equal(indices.long(), expected):
        raise Unreadable(
            suffix,
            "reorders the inputs (act-order, desc_act), so that neighbours do not share a scale; that is not "
            "supported, take a checkpoint made without it",
        )
