"""Our own format on disk: every array of ``Codes`` as a tensor of its own beside the name of the matrix.

    NAME_codes         U8 [out, D * bits / 8]: a row is one string of bits, code i in bits i * bits and up, lowest first
    NAME_scales        [out, D / block]: F16; I8 where nested; of four-bit floats U8 e for 2 ** (e - 128)
    NAME_mins          U8 [out, D / block], where there are mins
    NAME_super_scales  F16 [out, D / 256], where nested; NAME_super_mins likewise, where there are mins

D is the depth padded to whole blocks. Knows neither files nor parameter names.
"""

from __future__ import annotations

from collections.abc import Mapping

from qwench.ops.lazy import torch
from qwench.ops.quantised import ARRAYS, Codes, codes_of, scale_dtype
from qwench.ops.weight_types import OWN_TYPES, SUPER_BLOCK, WeightType
from qwench.quantisation import Scheme
from qwench.weights.formats.layout import Tensor, Unreadable, one, require_finite

EIGHT = 8  # codes that are packed together: they fill whole bytes
POWER = 128  # what is added to the exponent of a power of two


def weight_type(scheme: Scheme) -> WeightType:
    """What ``decode`` gives."""
    return OWN_TYPES[scheme.type]


def layout(scheme: Scheme, out: int, width: int) -> tuple[Tensor, ...]:
    """See layout.Tensor; the codes come first."""
    return tuple(one(f"_{name}", (dtype,), *shape) for name, dtype, shape in arrays(weight_type(scheme), out, width))


def arrays(kind: WeightType, out: int, width: int) -> list[tuple[str, str, tuple[int, int]]]:
    """What is stored for a matrix: the array's name, its type in the file and its shape."""
    depth = -(-width // kind.depth_multiple) * kind.depth_multiple
    blocks, supers = (out, depth // kind.block), (out, depth // SUPER_BLOCK)
    scales = "U8" if kind.table else "I8" if kind.nested else "F16"
    found = [("codes", "U8", (out, depth * kind.bits // 8)), ("scales", scales, blocks)]
    if kind.has_min:
        found.append(("mins", "U8", blocks))
    if kind.nested:
        found.append(("super_scales", "F16", supers))
    if kind.has_min:
        found.append(("super_mins", "F16", supers))
    return found


def encode(codes: Codes) -> dict[str, torch.Tensor]:
    """The arrays of one of our types as they are stored."""
    stored = codes.arrays | {"codes": pack_bits(codes.codes, codes.type.bits)}
    if codes.type.table:
        stored["scales"] = (codes.scales.float().log2() + POWER).to(torch.uint8)
    return stored


def decode(tensors: Mapping[str, torch.Tensor], scheme: Scheme, out: int, width: int) -> Codes:
    """The matrix [out, width] of tensors as ``layout`` says. Raises Unreadable."""
    kind = weight_type(scheme)
    found = {name: tensors[f"_{name}"] for name in ARRAYS if f"_{name}" in tensors}
    for name in found.keys() & {"super_scales", "super_mins"} if kind.nested else () if kind.table else ("scales",):
        require_finite(f"_{name}", found[name])
    if kind.table:
        if not bool((found["scales"] > 0).all()):
            raise Unreadable("_scales", "holds 0, which is no scale")
        exponents = found["scales"].int() - POWER
        found["scales"] = torch.ldexp(torch.ones(exponents.shape), exponents).to(scale_dtype(kind))
    codes = unpack_bits(found["codes"], kind.bits)
    assert len(codes) == out, "layout was checked"
    return codes_of(kind, width, found | {"codes": codes})


def pack_bits(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes uint8 [out, D], D a multiple of 8, as bytes [out, D * bits / 8]."""
    if bits == EIGHT:
        return codes
    grouped = codes.view(len(codes), -1, EIGHT).to(torch.int64)
    words = grouped[..., 0].clone()
    for place in range(1, EIGHT):
        words |= grouped[..., place] << (bits * place)
    return words[..., None].view(torch.uint8)[..., :bits].reshape(len(codes), -1)


def unpack_bits(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of ``pack_bits``."""
    if bits == EIGHT:
        return packed
    octets = torch.zeros(len(packed), packed.shape[1] // bits, EIGHT, dtype=torch.uint8)
    octets[..., :bits] = packed.view(len(packed), -1, bits)
    words = octets.view(torch.int64)  # [out, D / 8, 1]
    codes = torch.empty_like(octets)
    for place in range(EIGHT):
        codes[..., place] = (words[..., 0] >> (bits * place)) & (2**bits - 1)
    return codes.view(len(packed), -1)
