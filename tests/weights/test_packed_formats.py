"""Readers of packed matrices against packers written from each format's description, and against a producer's own."""

from __future__ import annotations

import pytest
import torch

from qwench.ops.quantised import Codes, dequantise
from qwench.quantisation import Scheme
from qwench.weights.formats import awq, compressed, fp8, gptq, mxfp4, nvfp4
from qwench.weights.formats.layout import Tensor, Unreadable
from tests.weights import packers

SIZES = [(64, 256, 128), (40, 96, 32), (24, 192, 64), (16, 160, None), (8, 40, None), (8, 72, 32)]


def fits(tensors: packers.Tensors, layout: tuple[Tensor, ...]) -> None:
    """Shapes as the reader expects them."""
    for each in layout:
        if each.needed or each.suffix in tensors:
            assert tuple(tensors[each.suffix].shape) in [shape for _, shape in each.forms], each.suffix


def worst(found: Codes, values: torch.Tensor) -> float:
    return float((dequantise(found).double() - values).abs().max())


@pytest.mark.parametrize(("out", "width", "group"), SIZES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("version", [1, 2])
def test_gptq_with_the_middle_as_zero_point_is_exact(
    out: int, width: int, group: int | None, bits: int, dtype: torch.dtype, version: int
) -> None:
    matrix = packers.integers(out, width, group, bits=bits, symmetric=True, dtype=dtype)
    scheme = Scheme("gptq" if version == 1 else "gptq_v2", bits, group)
    tensors = packers.gptq(matrix, version=version)
    fits(tensors, gptq.layout(scheme, out, width))
    assert torch.equal(dequantise(gptq.decode(tensors, scheme, out, width)), matrix.values.float())
    del tensors[".g_idx"]
    assert torch.equal(dequantise(gptq.decode(tensors, scheme, out, width)), matrix.values.float())


@pytest.mark.parametrize(("out", "width", "group"), SIZES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("version", [1, 2])
def test_gptq_with_zero_points(
    out: int, width: int, group: int | None, bits: int, dtype: torch.dtype, version: int
) -> None:
    matrix = packers.integers(out, width, group, bits=bits, symmetric=False, dtype=dtype)
    scheme = Scheme("gptq" if version == 1 else "gptq_v2", bits, group, symmetric=False)
    tensors = packers.gptq(matrix, version=version)
    fits(tensors, gptq.layout(scheme, out, width))
    check_zero_points(gptq.decode(tensors, scheme, out, width), matrix)


def check_zero_points(found: Codes, matrix: packers.Integers) -> None:
    """Four bits with BF16 scales are exact; else a zero point is rounded by 1/2048 of its distance from the middle."""
    if matrix.bits == 4 and matrix.scales.dtype == torch.bfloat16:
        assert torch.equal(dequantise(found), matrix.values.float())
    step = float(matrix.scales.max())
    assert worst(found, matrix.values) <= step * 2 ** (matrix.bits - 1) / 2048


@pytest.mark.parametrize(("out", "width", "group"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_awq(out: int, width: int, group: int | None, dtype: torch.dtype) -> None:
    matrix = packers.integers(out, width, group, symmetric=False, dtype=dtype)
    scheme = Scheme("awq", 4, group, symmetric=False)
    tensors = packers.awq(matrix)
    fits(tensors, awq.layout(scheme, out, width))
    check_zero_points(awq.decode(tensors, scheme, out, width), matrix)


@pytest.mark.parametrize(("out", "width", "group"), SIZES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed(out: int, width: int, group: int | None, bits: int, dtype: torch.dtype, symmetric: bool) -> None:
    matrix = packers.integers(out, width, group, bits=bits, symmetric=symmetric, dtype=dtype)
    scheme = Scheme("packed", bits, group, symmetric=symmetric)
    tensors = packers.compressed(matrix, symmetric=symmetric)
    fits(tensors, compressed.layout(scheme, out, width))
    found = compressed.decode(tensors, scheme, out, width)
    if dtype == torch.float32:  # rounded to float16, with the range of the matrix used in full
        assert worst(found, matrix.values) <= float(matrix.values.abs().max()) / 2000
    elif symmetric:
        assert torch.equal(dequantise(found), matrix.values.float())
    else:
        check_zero_points(found, matrix)
        tensors[".weight_zero_point"] = (matrix.zeros - 2 ** (bits - 1)).to(torch.int8)  # as older versions store it
        fits(tensors, compressed.layout(scheme, out, width))
        assert torch.equal(dequantise(compressed.decode(tensors, scheme, out, width)), dequantise(found))


@pytest.mark.parametrize("symmetric", [True, False])
def test_bytes(symmetric: bool) -> None:
    matrix = packers.integers(24, 80, None, bits=8, symmetric=symmetric, dtype=torch.bfloat16)
    tensors = {".weight": (matrix.codes - 128).to(torch.int8), ".weight_scale": matrix.scales}
    if not symmetric:
        tensors[".weight_zero_point"] = (matrix.zeros - 128).to(torch.int8)
    scheme = Scheme("int8", 8, None, symmetric)
    fits(tensors, compressed.layout(scheme, 24, 80))
    found = compressed.decode(tensors, scheme, 24, 80)
    if symmetric:
        assert torch.equal(dequantise(found), matrix.values.float())
    else:
        check_zero_points(found, matrix)


@pytest.mark.parametrize("size", [1e-12, 1e-6, 3e4, 1e9])
@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_beyond_float16_keep_their_bits(size: float, symmetric: bool) -> None:
    matrix = packers.integers(16, 64, 32, symmetric=symmetric, dtype=torch.bfloat16)
    matrix = packers.Integers(matrix.codes, (matrix.scales.float() * size).bfloat16(), matrix.zeros, 32)
    scheme = Scheme("packed", 4, 32, symmetric)
    found = compressed.decode(packers.compressed(matrix, symmetric=symmetric), scheme, 16, 64)
    assert torch.equal(dequantise(found), matrix.values.float())


@pytest.mark.parametrize("out", [8, 24])
@pytest.mark.parametrize("width", [64, 48, 176])
@pytest.mark.parametrize("producer", ["nvfp4", "nvfp4_packed"])
def test_nvfp4(out: int, width: int, producer: str) -> None:
    matrix = packers.nvidia(out, width)
    pack = packers.modelopt if producer == "nvfp4" else packers.compressed_nvfp4
    scheme = Scheme(producer, 4, 16)  # type: ignore[arg-type]
    tensors = pack(matrix)
    fits(tensors, nvfp4.layout(scheme, out, width))
    found = nvfp4.decode(tensors, scheme, out, width)
    assert torch.equal(found.scales[:, : width // 16].double(), matrix.scales)  # as they are, bit for bit
    torch.testing.assert_close(dequantise(found).double(), matrix.values, rtol=3e-7, atol=0)


@pytest.mark.parametrize("producer", ["mxfp4", "mxfp4_packed", "mxfp4_blocks"])
def test_mxfp4(producer: str) -> None:
    out, width = 24, 96
    matrix = packers.microscaled(out, width)
    octets, scales = matrix.octets, packers.exponent_bytes(matrix)
    tensors = {
        "mxfp4": {".weight": octets, ".weight_scale": scales.view(torch.float8_e8m0fnu)},
        "mxfp4_packed": {".weight_packed": octets, ".weight_scale": scales},
        "mxfp4_blocks": {"_blocks": octets.view(out, 3, 16), "_scales": scales},
    }[producer]
    scheme = Scheme(producer, 4, 32)  # type: ignore[arg-type]
    fits(tensors, mxfp4.layout(scheme, out, width))
    assert torch.equal(dequantise(mxfp4.decode(tensors, scheme, out, width)).double(), matrix.values)


@pytest.mark.parametrize("block", [(None, None), (1, None), (16, 32)])
def test_fp8(block: tuple[int | None, int | None]) -> None:
    out, width = 24, 80
    weight = torch.randn(out, width).to(torch.float8_e4m3fn)
    shape = (-(-out // (block[0] or out)), -(-width // (block[1] or width)))
    scale = torch.rand(shape).bfloat16()
    expected = torch.empty(out, width)
    for row in range(out):
        for column in range(width):
            factor = scale[row // (block[0] or out), column // (block[1] or width)]
            expected[row, column] = weight[row, column].float() * factor.float()
    scheme = Scheme("fp8_scale", 8, block=block)
    forms = [scale, *([scale.view(1), scale.view(())] if block == (None, None) else [])]
    for each in forms:
        tensors = {".weight": weight, ".weight_scale": each}
        fits(tensors, fp8.layout(scheme, out, width))
        assert torch.equal(fp8.decode(tensors, scheme, out, width), expected)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({".g_idx": torch.arange(64, dtype=torch.int32).flip(0) // 32}, ".g_idx reorders the inputs (act-order"),
        ({".g_idx": torch.full((64,), 2, dtype=torch.int32)}, ".g_idx holds 2, but there are 2 groups"),
        ({".g_idx": torch.full((64,), -1, dtype=torch.int32)}, ".g_idx holds -1, but there are 2 groups"),
        ({".scales": torch.full((2, 16), float("nan")).half()}, ".scales holds a number that is not finite"),
        ({".qzeros": torch.zeros(2, 2, dtype=torch.int32)}, ".qzeros holds zero points other than 8, but config.json"),
    ],
)
def test_gptq_that_makes_no_sense(change: packers.Tensors, told: str) -> None:
    matrix = packers.integers(16, 64, 32, symmetric=True, dtype=torch.float16)
    with pytest.raises(Unreadable) as caught:
        gptq.decode(packers.gptq(matrix, version=1) | change, Scheme("gptq", 4, 32), 16, 64)
    assert str(caught.value).startswith(told)


def test_floats_that_make_no_sense() -> None:
    tensors = packers.modelopt(packers.nvidia(8, 32))
    scheme = Scheme("nvfp4", 4, 16)
    for value in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(Unreadable, match=r"weight_scale_2 is .*; it must be a positive number"):
            nvfp4.decode(tensors | {".weight_scale_2": torch.tensor(value)}, scheme, 8, 32)
    broken = torch.full((8, 2), 127, dtype=torch.uint8).view(torch.float8_e4m3fn)
    with pytest.raises(Unreadable, match="weight_scale holds a number that is not finite"):
        nvfp4.decode(tensors | {".weight_scale": broken}, scheme, 8, 32)
    with pytest.raises(Unreadable, match="_scales holds 255, which stands for no number"):
        mxfp4.decode(
            {"_blocks": torch.zeros(1, 1, 16, dtype=torch.uint8), "_scales": torch.full((1, 1), 255).byte()},
            Scheme("mxfp4_blocks", 4, 32), 1, 32,
        )  # fmt: skip
