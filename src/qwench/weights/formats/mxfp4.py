"""MXFP4: E2M1 floats, two in a byte, and a power of two (E8M0) for 32 inputs. weight = E2M1 * 2 ** (byte - 127).

Quark ("mxfp4"), compressed-tensors ("mxfp4_packed") and transformers ("mxfp4_blocks") differ in names only. Everything
is kept exactly. Knows neither files nor parameter names.
"""

from __future__ import annotations

from collections.abc import Mapping

from qwench.ops.lazy import F, torch
from qwench.ops.quantised import Codes
from qwench.ops.weight_types import OWN_TYPES, WeightType
from qwench.quantisation import Scheme
from qwench.weights.formats.layout import Tensor, Unreadable, nibbles, one

BLOCK = 32
BYTES = ("U8", "F8_E8M0")
NAMES = {
    "mxfp4": (".weight", ".weight_scale"),
    "mxfp4_packed": (".weight_packed", ".weight_scale"),
    "mxfp4_blocks": ("_blocks", "_scales"),
}


def layout(scheme: Scheme, out: int, width: int) -> tuple[Tensor, ...]:
    """See layout.Tensor; the codes come first."""
    codes, scales = NAMES[scheme.format]
    count = -(-width // BLOCK)
    if scheme.format == "mxfp4_blocks":
        return one(codes, ("U8",), out, count, BLOCK // 2), one(scales, BYTES, out, count)
    return one(codes, ("U8",), out, -(-width // 2)), one(scales, BYTES, out, count)


def weight_type(scheme: Scheme) -> WeightType:
    """What ``decode`` gives."""
    del scheme
    return OWN_TYPES["mxfp4"]


def decode(tensors: Mapping[str, torch.Tensor], scheme: Scheme, out: int, width: int) -> Codes:
    """The matrix [out, width] of tensors as ``layout`` says. Raises Unreadable."""
    name, scales = NAMES[scheme.format]
    stored = tensors[scales].view(torch.uint8)
    if bool((stored == 255).any()):
        raise Unreadable(scales, "holds 255, which stands for no number")
    kind = weight_type(scheme)
    codes = nibbles(tensors[name].reshape(out, -1))[:, :width]
    return Codes(kind, width, F.pad(codes, (0, stored.shape[1] * BLOCK - width)), _powers(stored))


def _powers(exponents: torch.Tensor) -> torch.Tensor:
    """2 ** (byte - 128) in BF16, bit for bit: half of what is stored, because the table holds twice E2M1."""
    subnormal = 0x20 << exponents.to(torch.int16)
    return torch.where(exponents < 2, subnormal, (exponents.to(torch.int16) - 1) << 7).view(torch.bfloat16)
