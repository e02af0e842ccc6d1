"""Matrices packed the way each format's description says, number by number: the oracle of the readers.

Slow on purpose, and written without the readers in mind: every function takes what a format is about (codes, scales,
zero points) and gives the tensors a checkpoint would hold, by what follows the module's name.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

Tensors = dict[str, torch.Tensor]
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output that nibble 0, 1, ... of a word holds


@dataclass(frozen=True)
class Integers:
    """A matrix [out, width] of whole numbers: scale * (code - zero), scales and zeros [out, groups]."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    group: int | None
    bits: int = 4

    @property
    def values(self) -> torch.Tensor:
        """What it means, in fp64."""
        out, width = self.codes.shape
        found = torch.empty(out, width, dtype=torch.float64)
        for column in range(width):
            group = column // (self.group or width)
            difference = self.codes[:, column].double() - self.zeros[:, group].double()
            found[:, column] = self.scales[:, group].double() * difference
        return found


def integers(
    out: int, width: int, group: int | None, *, bits: int = 4, symmetric: bool, dtype: torch.dtype, seed: int = 0
) -> Integers:
    """Random ones."""
    draw = torch.Generator().manual_seed(seed)
    count = 1 if group is None else -(-width // group)
    codes = torch.randint(0, 2**bits, (out, width), generator=draw)
    zeros = torch.randint(1, 2**bits, (out, count), generator=draw)
    if symmetric:
        zeros = torch.full((out, count), 2 ** (bits - 1))
    scales = (torch.rand(out, count, generator=draw) * 0.02 + 0.001).to(dtype)
    return Integers(codes, scales, zeros, group, bits)


def words(rows: torch.Tensor, bits: int) -> torch.Tensor:
    """[n, k] whole numbers to [n, ceil(k * bits / 32)] int32, the first in the lowest bits of a word."""
    packed = np.zeros((rows.shape[0], -(-rows.shape[1] * bits // 32)), dtype=np.uint64)
    for index in range(rows.shape[1]):
        word, shift = divmod(index * bits, 32)
        packed[:, word] |= rows[:, index].numpy().astype(np.uint64) << np.uint64(shift)
    return torch.from_numpy(packed.astype(np.uint32).view(np.int32))


def gptq(matrix: Integers, *, version: int) -> Tensors:
    less = 1 if version == 1 else 0
    width = matrix.codes.shape[1]
    return {
        ".qweight": words(matrix.codes, matrix.bits).t().contiguous(),
        ".qzeros": words((matrix.zeros - less).t(), matrix.bits),
        ".scales": matrix.scales.t().contiguous(),
        ".g_idx": torch.tensor([column // (matrix.group or width) for column in range(width)], dtype=torch.int32),
    }


def awq(matrix: Integers) -> Tensors:
    def outputs(rows: torch.Tensor) -> torch.Tensor:
        order = [start + place for start in range(0, rows.shape[1], 8) for place in AWQ_ORDER]
        return words(rows[:, order], 4)

    return {
        ".qweight": outputs(matrix.codes.t()),
        ".qzeros": outputs(matrix.zeros.t()),
        ".scales": matrix.scales.t().contiguous(),
    }


def compressed(matrix: Integers, *, symmetric: bool) -> Tensors:
    tensors = {
        ".weight_packed": words(matrix.codes, matrix.bits),
        ".weight_scale": matrix.scales,
        ".weight_shape": torch.tensor(matrix.codes.shape),
    }
    if not symmetric:
        tensors[".weight_zero_point"] = words(matrix.zeros.t(), matrix.bits).t().contiguous()
    return tensors


@dataclass(frozen=True)
class Floats:
    """A matrix [out, width] of E2M1 codes with scales [out, width / block] and one scale for all."""

    codes: torch.Tensor
    scales: torch.Tensor
    whole: float

    @property
    def values(self) -> torch.Tensor:
        """What it means, in fp64."""
        each = torch.tensor(E2M1, dtype=torch.float64)[self.codes]
        block = self.codes.shape[1] // self.scales.shape[1]
        return each * self.scales.double().repeat_interleave(block, dim=1) * self.whole

    @property
    def octets(self) -> torch.Tensor:
        """Two codes in a byte, the first in the low half."""
        return (self.codes[:, 0::2] | self.codes[:, 1::2] << 4).to(torch.uint8)


def nvidia(out: int, width: int, *, seed: int = 0) -> Floats:
    """Random NVFP4: scales are E4M3 numbers."""
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (out, width), generator=draw)
    scales = (torch.rand(out, width // 16, generator=draw) * 440 + 0.01).to(torch.float8_e4m3fn).double()
    return Floats(codes, scales, whole=float(torch.tensor(0.00031)))


def microscaled(out: int, width: int, *, seed: int = 0) -> Floats:
    """Random MXFP4: scales are powers of two, the smallest and the largest among them."""
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (out, width), generator=draw)
    exponents = torch.randint(-12, 3, (out, width // 32), generator=draw)
    exponents[0, 0] = -127
    return Floats(codes, 2.0 ** exponents.double(), whole=1.0)


def exponent_bytes(matrix: Floats) -> torch.Tensor:
    return (matrix.scales.log2() + 127).round().to(torch.uint8)


def modelopt(matrix: Floats) -> Tensors:
    scales = matrix.scales.to(torch.float8_e4m3fn)
    return {".weight": matrix.octets, ".weight_scale": scales, ".weight_scale_2": torch.tensor(matrix.whole)}


def compressed_nvfp4(matrix: Floats) -> Tensors:
    scales, whole = matrix.scales.to(torch.float8_e4m3fn), torch.tensor([1 / matrix.whole])
    return {".weight_packed": matrix.octets, ".weight_scale": scales, ".weight_global_scale": whole}
