"""Numbers -> codes: matrices rounded to our types with scales and mins searched for the least squared error.

For every block a few scales around the obvious one are tried; each gives codes, and codes give the best scale (and
min) in closed form. The winner is kept only where it beats plain rounding to nearest, so it never does worse. Rows
are independent: a matrix may come in pieces. Knows neither files nor which type suits a parameter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from qwench.device import usable_threads
from qwench.errors import CheckpointError
from qwench.ops.arrays import Array, DType, as_torch, torch_dtype
from qwench.ops.lazy import F, torch
from qwench.ops.loading import ELEMENTS, MatrixInFile
from qwench.ops.native import Native, instruction_sets
from qwench.ops.quantised import Codes, codes_of, scale_dtype
from qwench.ops.rounding import round_natively
from qwench.ops.store import Kind, Value
from qwench.ops.weight_types import FOUR_BIT_FLOATS, SUPER_BLOCK, WeightType
from qwench.weights.source import Part, Progress, UnusedTensor, WeightSource

AT_ONCE = 2**18  # numbers that are searched together: what the temporaries of the search take fits a cache
STEPS = (-0.6, -0.2, 0.2, 0.6, 1.0)  # added to the number of levels that the largest weight is spread over
# How many levels the lowest code lies above the lowest weight, and the highest code below the highest weight.
CUTS = ((-0.1, -0.1), (0.2, 0.2), (0.5, 0.5), (-0.1, 0.5), (0.5, -0.1))
EXPONENTS = (-1, 0, 1)  # around the one under which the largest weight of a block just fits
LARGEST_HALF = 65504.0
LEAST_INVERTED = 2.0**-126

Arrays = dict[str, "torch.Tensor"]


class QuantisingSource:
    """The weights of another source, whose parts come in float32, rounded to ``kinds`` on their way.

    What comes in codes already stays as it is.
    """

    def __init__(self, source: WeightSource, kinds: Mapping[str, Kind]) -> None:
        packed = {name: kind for name, kind in source.kinds.items() if isinstance(kind, WeightType)}
        self.kinds: Mapping[str, Kind] = {**kinds, **packed}
        self.unused: Sequence[UnusedTensor] = source.unused
        self._source = source

    def stored(self) -> Sequence[MatrixInFile]:
        """See WeightSource: numbers are rounded natively."""
        return [replace(matrix, type=self._stored_kind(matrix)) for matrix in self._source.stored()]

    def _stored_kind(self, matrix: MatrixInFile) -> WeightType | int:
        kind = self.kinds[matrix.name]
        return kind if isinstance(kind, WeightType) else ELEMENTS[str(kind)]

    def parts(self, progress: Progress | None = None, without: Container[str] = ()) -> Iterator[tuple[Part, Value]]:
        """See WeightSource. Raises CheckpointError naming a parameter that holds no finite numbers."""
        to_codes: Callable[[torch.Tensor, WeightType], Codes] | None = None
        for part, value in self._source.parts(progress, without):
            kind = self.kinds[part.name]
            if isinstance(value, Codes):
                yield part, value
                continue
            if not isinstance(kind, WeightType):
                yield part, _cast(value, kind)
                continue
            to_codes = to_codes or rounder()
            codes = to_codes(as_torch(value), kind)
            if not codes.is_finite:
                raise CheckpointError(f"{part.name} holds weights that are no finite numbers; it cannot be quantised.")
            del value
            yield part, codes


def _cast(value: Array, dtype: DType) -> Array:
    return value.astype(dtype) if isinstance(value, np.ndarray) else value.to(torch_dtype(dtype))


def rounder() -> Callable[[torch.Tensor, WeightType], Codes]:
    """``quantise``, by the native library where there is one: the same bits, much sooner."""
    try:
        native = Native(instruction_sets()[0], usable_threads())
    except OSError:
        return quantise
    return functools.partial(round_natively, native)


def quantise(weight: torch.Tensor, kind: WeightType) -> Codes:
    """``weight`` [out, width] as codes of one of our types. Scales are not finite where weights are not."""
    out, width = weight.shape
    depth = -(-width // kind.depth_multiple) * kind.depth_multiple
    rows = max(1, AT_ONCE // depth)
    pieces = []
    for first in range(0, out, rows):
        padded = F.pad(weight[first : first + rows].float(), (0, depth - width))
        pieces.append(_searched(padded, kind))
    return codes_of(kind, width, {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]})


def round_to_nearest(weight: torch.Tensor, kind: WeightType) -> Codes:
    """``weight`` as codes under the obvious scales: what the search starts from, and is measured against."""
    depth = -(-weight.shape[1] // kind.depth_multiple) * kind.depth_multiple
    padded = F.pad(weight.float(), (0, depth - weight.shape[1]))
    return codes_of(kind, weight.shape[1], _METHODS[_method(kind)](padded, kind, search=False))


def _searched(weight: torch.Tensor, kind: WeightType) -> Arrays:
    return _METHODS[_method(kind)](weight, kind, search=True)


def _method(kind: WeightType) -> str:
    return "table" if kind.table else "affine" if kind.has_min else "signed"


def _signed(weight: torch.Tensor, kind: WeightType, *, search: bool) -> Arrays:
    """One scale a block, codes on both sides of zero; the largest weight takes the side that has one code more."""
    blocks = weight.view(len(weight), -1, kind.block)
    low, high = blocks.amin(-1), blocks.amax(-1)
    largest = torch.where(high > -low, high, low)
    plain = _scales(largest / -kind.zero, kind)
    codes = _signed_codes(blocks, plain, kind)
    if not search:
        return plain | {"codes": codes.to(torch.uint8).view_as(weight)}
    best_gain = torch.full_like(largest, -1.0)
    best = _number(plain, "scales")
    for step in STEPS:
        inverse = _inverse(largest) * -(kind.zero + step)
        values = (blocks * inverse[..., None]).round_().clamp_(-kind.zero, kind.zero - 1)
        products, squares = _sum(values * blocks), _sum(values.square_())
        scale = products * _inverse(squares)
        gain = products * scale  # how much of the squared weights these codes explain
        best, best_gain = torch.where(gain > best_gain, scale, best), torch.maximum(gain, best_gain)
    found = _scales(best, kind)
    better = _signed_codes(blocks, found, kind)
    wins = _signed_error(blocks, better, found, kind) < _signed_error(blocks, codes, plain, kind)
    return _chosen(wins, found | {"codes": better}, plain | {"codes": codes}, weight)


def _signed_codes(blocks: torch.Tensor, arrays: Arrays, kind: WeightType) -> torch.Tensor:
    inverse = _inverse(_number(arrays, "scales"))
    return (blocks * inverse[..., None]).round_().add_(kind.zero).clamp_(0, 2 * kind.zero - 1)


def _signed_error(blocks: torch.Tensor, codes: torch.Tensor, arrays: Arrays, kind: WeightType) -> torch.Tensor:
    """[out, blocks], or [out, super-blocks] where nested"""
    error = _sum(((codes - kind.zero).mul_(_number(arrays, "scales")[..., None]) - blocks).square_())
    return _sum(error.view(len(error), -1, SUPER_BLOCK // kind.block)) if kind.nested else error


def _table(weight: torch.Tensor, kind: WeightType, *, search: bool) -> Arrays:
    """Four-bit floats under a power of two, as the format MXFP4 has it."""
    assert kind.table == FOUR_BIT_FLOATS
    blocks = weight.view(len(weight), -1, kind.block)
    sizes = blocks.abs()
    largest = sizes.amax(-1)
    _, exponent = torch.frexp(largest)  # the largest weight lies below two to it; the table reaches 12, its last binade
    best_error = torch.full_like(largest, torch.inf)
    values, scales = torch.zeros_like(blocks), torch.zeros_like(largest)
    for step in EXPONENTS if search else (0,):
        scale = torch.ldexp(torch.ones_like(largest), (exponent - 4 + step).clamp(-120, 120))
        scale = torch.where(torch.isfinite(largest), scale, largest)
        rounded = _four_bit(sizes * (1 / scale)[..., None])
        error = _sum((rounded * scale[..., None]).sub_(sizes).square_())
        wins = ~(error >= best_error)
        values = torch.where(wins[..., None], rounded, values)
        scales, best_error = torch.where(wins, scale, scales), torch.where(wins, error, best_error)
    codes = torch.bucketize(values, torch.tensor(FOUR_BIT_FLOATS[:8], dtype=torch.float32), out_int32=True)
    codes = torch.where(blocks < 0, codes + 8, codes).to(torch.uint8)
    return {"codes": codes.view_as(weight), "scales": scales.to(scale_dtype(kind))}


def _four_bit(sizes: torch.Tensor) -> torch.Tensor:
    """The nearest of 0 1 2 3 4 6 8 12: whole numbers below 2, and above it floats with one bit behind the point."""
    one_bit = ((sizes.view(torch.int32) + (1 << 21)) & -(1 << 22)).view(torch.float32)
    return torch.where(sizes < 2, sizes.round(), one_bit).clamp_(max=12)


def _affine(weight: torch.Tensor, kind: WeightType, *, search: bool) -> Arrays:
    """A scale and a min a block, both whole numbers times a half of their super-block."""
    blocks = weight.view(len(weight), -1, kind.block)
    low, high = blocks.amin(-1).clamp_(max=0), blocks.amax(-1)
    top = 2**kind.bits - 1
    plain = _scales((high - low) / top, kind) | _mins(-low, kind)
    codes = _affine_codes(blocks, plain, top)
    if not search:
        return plain | {"codes": codes.to(torch.uint8).view_as(weight)}
    scale, least = _best_line(blocks, low, high, top)
    # Scales are rounded first; the mins are fitted to what rounding made of them.
    scales = _scales(scale, kind)
    scale = _number(scales, "scales")
    values = _line_codes(blocks, scale, least, top)
    least = (scale * _sum(values) - _sum(blocks)) / kind.block
    found = scales | _mins(least.clamp_(min=0), kind)
    better = _affine_codes(blocks, found, top)
    wins = _super_error(blocks, better, found, kind) < _super_error(blocks, codes, plain, kind)
    return _chosen(wins, found | {"codes": better}, plain | {"codes": codes}, weight)


def _best_line(
    blocks: torch.Tensor, low: torch.Tensor, high: torch.Tensor, top: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and min of each block, not rounded: the best found over several first guesses, refined once."""
    count, total = blocks.shape[-1], _sum(blocks)
    level = (high - low) / top
    scale, least, best = level, -low, torch.full_like(low, -torch.inf)
    for cut in (*CUTS, None):
        if cut is None:
            values = _line_codes(blocks, scale, least, top)
        else:
            values = _line_codes(blocks, level * ((top - sum(cut)) / top), -low - level * cut[0], top)
        sums, products, squares = _sum(values), _sum(values * blocks), _sum(values.square_())
        spread = count * squares - sums * sums
        slope = (count * products - sums * total) * _inverse(spread)
        offset = ((slope * sums - total) / count).clamp_(min=0)
        slope = torch.where(offset > 0, slope, products * _inverse(squares))
        # The squared error but for the squared weights, which all guesses share.
        gain = 2 * slope * products - 2 * offset * total - slope.square() * squares
        gain += 2 * slope * offset * sums - count * offset.square()
        wins = gain > best
        scale, least, best = (
            torch.where(wins, slope, scale),
            torch.where(wins, offset, least),
            torch.where(wins, gain, best),
        )
    return scale, least


def _line_codes(blocks: torch.Tensor, scale: torch.Tensor, least: torch.Tensor, top: int) -> torch.Tensor:
    return ((blocks + least[..., None]) * _inverse(scale)[..., None]).round_().clamp_(0, top)


def _affine_codes(blocks: torch.Tensor, arrays: Arrays, top: int) -> torch.Tensor:
    return _line_codes(blocks, _number(arrays, "scales"), _number(arrays, "mins"), top)


def _scales(scale: torch.Tensor, kind: WeightType) -> Arrays:
    """Scales [out, blocks] as they are stored."""
    if not kind.nested:
        return {"scales": _as_half(scale, scale_dtype(kind))}
    parts, supers = _nested(scale, kind, 127)
    return {"scales": parts.to(torch.int8), "super_scales": supers}


def _mins(least: torch.Tensor, kind: WeightType) -> Arrays:
    """Mins [out, blocks], none below zero, as they are stored."""
    parts, supers = _nested(least, kind, 255)
    return {"mins": parts.to(torch.uint8), "super_mins": supers}


def _nested(numbers: torch.Tensor, kind: WeightType, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers [out, blocks] as whole ones up to ``most``, under a half for each super-block."""
    groups = numbers.view(len(numbers), -1, SUPER_BLOCK // kind.block)
    supers = _as_half(groups.abs().amax(-1) / most, torch.float16)
    parts = (groups * _inverse(supers.float())[..., None]).round_().clamp_(-most, most)
    return parts.view_as(numbers), supers


def _number(arrays: Arrays, name: str) -> torch.Tensor:
    """Stored scales or mins [out, blocks] as numbers."""
    parts, supers = arrays[name].float(), arrays.get(f"super_{name}")
    if supers is None:
        return parts
    return parts * supers.float().repeat_interleave(parts.shape[1] // supers.shape[1], dim=1)


def _chosen(wins: torch.Tensor, found: Arrays, plain: Arrays, weight: torch.Tensor) -> Arrays:
    """Of each block, or super-block, what ``wins`` [out, .] says; codes become those of ``weight`` [out, depth]."""
    chosen = {}
    for name, array in found.items():
        each = wins.repeat_interleave(array.shape[1] // wins.shape[1], dim=1)
        chosen[name] = torch.where(each.view(each.shape + (1,) * (array.dim() - 2)), array, plain[name])
    return chosen | {"codes": chosen["codes"].to(torch.uint8).view_as(weight)}


def _super_error(blocks: torch.Tensor, codes: torch.Tensor, arrays: Arrays, kind: WeightType) -> torch.Tensor:
    """[out, super-blocks]"""
    scale, least = _number(arrays, "scales"), _number(arrays, "mins")
    error = _sum((codes * scale[..., None] - least[..., None]).sub_(blocks).square_())
    return _sum(error.view(len(error), -1, SUPER_BLOCK // kind.block))


def _sum(x: torch.Tensor) -> torch.Tensor:
    """The sum of the last axis in the order that the native rounding keeps: four chains, then those two by two."""
    places = x.unflatten(-1, (-1, 4)).unbind(-2)
    chains: torch.Tensor = functools.reduce(torch.add, places)
    return (chains[..., 0] + chains[..., 1]) + (chains[..., 2] + chains[..., 3])


def _inverse(x: torch.Tensor) -> torch.Tensor:
    """1 / x, or 0 where that would be as good as infinite."""
    return torch.where(x.abs() < LEAST_INVERTED, 0.0, 1 / x)


def _as_half(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rounded to a 16-bit float; what is too large for it becomes its largest, what is no number stays none."""
    return torch.where(torch.isfinite(x), x.clamp(-LARGEST_HALF, LARGEST_HALF) + 0.0, x).to(dtype)  # + 0: no -0


_METHODS = {"signed": _signed, "table": _table, "affine": _affine}
