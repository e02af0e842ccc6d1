"""NVFP4: E2M1 floats, two in a byte, an E4M3 scale for 16 inputs, and one scale for the matrix.

weight = E2M1 * E4M3 * global, where ModelOpt stores the global scale ("nvfp4") and compressed-tensors its reciprocal
("nvfp4_packed"). Codes and scales are kept exactly. Knows neither files nor parameter names.
"""

from __future__ import annotations

from collections.abc import Mapping

from qwench.ops.lazy import F, torch
from qwench.ops.quantised import Codes, scale_dtype
from qwench.ops.weight_types import CHECKPOINT_TYPES, WeightType
from qwench.quantisation import Scheme
from qwench.weights.formats.layout import Tensor, Unreadable, nibbles, one, require_finite, scalar

BLOCK = 16


def layout(scheme: Scheme, out: int, width: int) -> tuple[Tensor, ...]:
    """See layout.Tensor; the codes come first."""
    codes, whole = _names(scheme)
    return (
        one(codes, ("U8",), out, -(-width // 2)),
        one(".weight_scale", ("F8_E4M3",), out, -(-width // BLOCK)),
        scalar(whole),
    )


def weight_type(scheme: Scheme) -> WeightType:
    """What ``decode`` gives."""
    del scheme
    return CHECKPOINT_TYPES["nvfp4"]


def decode(tensors: Mapping[str, torch.Tensor], scheme: Scheme, out: int, width: int) -> Codes:
    """The matrix [out, width] of tensors as ``layout`` says. Raises Unreadable."""
    name, whole = _names(scheme)
    assert len(tensors[name]) == out, "layout was checked"
    scales = tensors[".weight_scale"].float()
    require_finite(".weight_scale", scales)
    stored = tensors[whole].float().view(())
    factor = stored if whole == ".weight_scale_2" else 1 / stored
    if not bool(factor.isfinite()) or float(stored) <= 0:
        raise Unreadable(whole, f"is {float(stored):g}; it must be a positive number")
    kind = weight_type(scheme)
    depth = -(-width // kind.depth_multiple) * kind.depth_multiple
    codes = nibbles(tensors[name])[:, :width]
    # The table holds twice the values of E2M1.
    return Codes(
        kind,
        width,
        F.pad(codes, (0, depth - width)),
        F.pad(scales, (0, depth // BLOCK - scales.shape[1])).to(scale_dtype(kind)),
        factor=float(factor / 2),
    )


def _names(scheme: Scheme) -> tuple[str, str]:
    """The suffixes of codes and global scale."""
    if scheme.format == "nvfp4":
        return ".weight", ".weight_scale_2"
    return ".weight_packed", ".weight_global_scale"
