"""GGUF's blocks -> Codes: bytes as they lie in a file become codes, scales and mins, exactly. Knows no model.

Every function writes into the arrays (numpy's) of a matrix that is there already, so a large one can be filled piece by
piece. In the shapes, R are rows and N the blocks of a row; the order of codes inside a block is the format's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from qwench.ops.arrays import BFLOAT16, FLOAT16, FLOAT32, DType, Host
from qwench.ops.quantised import Codes
from qwench.ops.weight_types import GGUF_TYPES, SUPER_BLOCK

FLOATS: Mapping[str, DType] = MappingProxyType({"F32": FLOAT32, "F16": FLOAT16, "BF16": BFLOAT16})


def rows(matrix: Codes, begin: int, end: int) -> Codes:
    """Rows [begin, end) of ``matrix``, sharing its memory."""
    span = slice(begin, end)
    mins, super_scales, super_mins = (
        None if part is None else part[span] for part in (matrix.mins, matrix.super_scales, matrix.super_mins)
    )
    codes, scales = matrix.codes[span], matrix.scales[span]
    return replace(matrix, codes=codes, scales=scales, mins=mins, super_scales=super_scales, super_mins=super_mins)


def decode(raw: Host, target: Codes) -> None:
    """Fill ``target`` [R, width] from ``raw`` [R, bytes of a row], uint8."""
    kind = target.type
    out, depth = target.codes.shape
    assert depth == target.width, "GGUF stores whole blocks"
    per_block = SUPER_BLOCK if kind.nested else kind.block
    blocks = raw.reshape(out, depth // per_block, -1)
    _DECODERS[kind.name](blocks, target.codes.reshape(out, depth // per_block, per_block), target)


def round_to_q8(weights: Host, target: Codes) -> None:
    """Fill ``target`` [R, width] of type Q8_0 with ``weights``, fp32, rounded to the nearest."""
    assert target.type == GGUF_TYPES["Q8_0"]
    blocks = weights.reshape(len(weights), -1, target.type.block)
    scales = (np.abs(blocks).max(-1) / 127).astype(np.float16)
    wide = scales.astype(np.float32)
    inverse = np.divide(1, wide, out=np.zeros_like(wide), where=wide > 0)
    target.scales[:] = scales
    codes = np.rint(blocks * inverse[..., None]).clip(-127, 127) + target.type.zero
    target.codes[:] = codes.reshape(weights.shape)


def _halves(raw: Host, begin: int) -> Host:
    """[R, N] the float16 at byte ``begin`` of every block."""
    halves: Host = np.ascontiguousarray(raw[..., begin : begin + 2]).view(np.float16)
    return halves[..., 0]


def _nibbles(raw: Host, codes: Host) -> None:
    """raw [..., n] -> codes [..., 2, n]: first all low halves, then all high ones."""
    np.bitwise_and(raw, 15, out=codes[..., 0, :])
    np.right_shift(raw, 4, out=codes[..., 1, :])


def _put(target: Host, values: Host) -> None:
    """Blocks' values [R, N, ...] into [R, N * ...]."""
    target[:] = values.reshape(target.shape)


def _cut(x: Host, *shape: int) -> Host:
    """x [..., n] as [..., *shape], over the same memory where its blocks lie together."""
    return x.reshape(*x.shape[:-1], *shape)


def _q4(raw: Host, codes: Host, target: Codes) -> None:
    """Scale, perhaps a min, 16 bytes of nibbles (Q4_0, Q4_1, IQ4_NL)."""
    _put(target.scales, _halves(raw, 0))
    if target.mins is not None:  # the file's min is added
        _put(target.mins, -_halves(raw, 2))
    _nibbles(raw[..., -16:], _cut(codes, 2, 16))


def _q5(raw: Host, codes: Host, target: Codes) -> None:
    """As _q4, with four bytes that hold the fifth bits, code by code (Q5_0, Q5_1)."""
    _q4(raw, codes, target)
    places = np.arange(8, dtype=np.uint8)
    fifth = (raw[..., -20:-16, None] >> places) & 1  # [R, N, 4, 8]
    codes |= fifth.reshape(codes.shape) << 4


def _q8(raw: Host, codes: Host, target: Codes) -> None:
    """Scale, 32 signed bytes: adding 128 turns the top bit over."""
    _put(target.scales, _halves(raw, 0))
    np.bitwise_xor(raw[..., 2:], 128, out=codes)


def _mxfp4(raw: Host, codes: Host, target: Codes) -> None:
    """A power of two, 16 bytes of nibbles. The table holds twice E2M1's values, so the scale is half of 2^(e - 127)."""
    _put(target.scales, np.exp2(raw[..., 0].astype(np.float64) - 128).astype(BFLOAT16))
    _nibbles(raw[..., 1:], _cut(codes, 2, 16))


def _pairs(raw: Host, codes: Host) -> None:
    """raw [R, N, 64] -> codes [R, N, 2, 4, 32]: each half of 32 bytes holds four runs of 32 codes, two bits each."""
    halves = _cut(raw, 2, 32)
    for run in range(4):
        np.bitwise_and(halves >> 2 * run, 3, out=codes[..., run, :])


def _q2_k(raw: Host, codes: Host, target: Codes) -> None:
    """16 bytes of scale (low) and min (high), 64 of codes, super-scale, super-min."""
    _put(target.scales, (raw[..., :16] & 15).view(np.int8))
    _put(target.mins, raw[..., :16] >> 4)
    _pairs(raw[..., 16:80], _cut(codes, 2, 4, 32))
    _put(target.super_scales, _halves(raw, 80))
    _put(target.super_mins, _halves(raw, 82))


def _q3_k(raw: Host, codes: Host, target: Codes) -> None:
    """32 bytes of third bits, 64 of the lower two, 12 of scales (6 bits, 32 stands for 0), super-scale."""
    runs = _cut(codes, 2, 4, 32)
    _pairs(raw[..., 32:96], runs)
    for bit in range(8):
        runs[..., bit // 4, bit % 4, :] |= ((raw[..., :32] >> bit) & 1) << 2
    packed = raw[..., 96:108]
    low = np.concatenate((packed[..., :8] & 15, packed[..., :8] >> 4), axis=-1)
    high = np.concatenate([(packed[..., 8:] >> shift) & 3 for shift in (0, 2, 4, 6)], axis=-1)
    _put(target.scales, (low | high << 4).astype(np.int8) - 32)
    _put(target.super_scales, _halves(raw, 108))


def _k_scales(raw: Host, target: Codes) -> None:
    """Super-scale, super-min and 12 bytes of eight scales and eight mins, six bits each (Q4_K, Q5_K)."""
    _put(target.super_scales, _halves(raw, 0))
    _put(target.super_mins, _halves(raw, 2))
    first, second, third = raw[..., 4:8], raw[..., 8:12], raw[..., 12:16]
    scales = np.concatenate((first & 63, (third & 15) | (first >> 6) << 4), axis=-1)
    _put(target.scales, scales.view(np.int8))
    _put(target.mins, np.concatenate((second & 63, third >> 4 | (second >> 6) << 4), axis=-1))


def _q4_k(raw: Host, codes: Host, target: Codes) -> None:
    _k_scales(raw, target)
    _nibbles(_cut(raw[..., 16:144], 4, 32), _cut(codes, 4, 2, 32))


def _q5_k(raw: Host, codes: Host, target: Codes) -> None:
    """As Q4_K, with 32 bytes of fifth bits: bit b of byte i is that of code 32 b + i."""
    _k_scales(raw, target)
    _nibbles(_cut(raw[..., 48:176], 4, 32), _cut(codes, 4, 2, 32))
    runs = _cut(codes, 8, 32)
    for bit in range(8):
        runs[..., bit, :] |= ((raw[..., 16:48] >> bit) & 1) << 4


def _q6_k(raw: Host, codes: Host, target: Codes) -> None:
    """128 bytes of lower halves, 64 of the upper two bits, 16 scales, super-scale."""
    low, high = _cut(raw[..., :128], 2, 2, 32), _cut(raw[..., 128:192], 2, 32)
    runs = _cut(codes, 2, 4, 32)
    np.bitwise_and(low, 15, out=runs[..., :2, :])
    np.right_shift(low, 4, out=runs[..., 2:, :])
    for run in range(4):
        runs[..., run, :] |= ((high >> 2 * run) & 3) << 4
    _put(target.scales, np.ascontiguousarray(raw[..., 192:208]).view(np.int8))
    _put(target.super_scales, _halves(raw, 208))


def _iq4_xs(raw: Host, codes: Host, target: Codes) -> None:
    """Super-scale, eight scales (6 bits, 32 stands for 0) in 2 bytes of upper and 4 of lower bits, 128 of nibbles."""
    _put(target.super_scales, _halves(raw, 0))
    places = np.array((0, 2, 4, 6), np.uint8)
    high = ((raw[..., 2:4, None] >> places) & 3).reshape(*raw.shape[:-1], 8)
    low = np.stack((raw[..., 4:8] & 15, raw[..., 4:8] >> 4), axis=-1).reshape(high.shape)
    _put(target.scales, (low | high << 4).astype(np.int8) - 32)
    _nibbles(_cut(raw[..., 8:], 8, 16), _cut(codes, 8, 2, 16))


_Decoder = Callable[[Host, Host, Codes], None]
_DECODERS: Mapping[str, _Decoder] = MappingProxyType(
    {
        "Q4_0": _q4, "Q4_1": _q4, "IQ4_NL": _q4, "Q5_0": _q5, "Q5_1": _q5, "Q8_0": _q8, "MXFP4": _mxfp4,
        "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_XS": _iq4_xs,
    }
)  # fmt: skip
