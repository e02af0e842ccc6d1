"""Linear layers over codes: every weight type, instruction set and odd size against the torch reference.

Whole sums are exact and the order of the rest is fixed, so all instruction sets, numbers of threads and companies of
a row agree to the bit; only the reference, which sums in another order, has a tolerance.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from qwench.ops import native as binding
from qwench.ops.arrays import BFLOAT16, FLOAT32, dtype_of, torch_dtype
from qwench.ops.loading import Arena
from qwench.ops.native import LinearArguments, LinearInput, Native, PackedMatrix
from qwench.ops.quantised import Codes, dequantise, quantised_linear, scale_dtype
from qwench.ops.weight_types import CHECKPOINT_TYPES, FOUR_BIT_FLOATS, GGUF_TYPES, OWN_TYPES, SUPER_BLOCK, WeightType
from tests.ops.test_native import bound, far, normal, sets

KINDS = (
    *OWN_TYPES.values(),
    *GGUF_TYPES.values(),
    *CHECKPOINT_TYPES.values(),
    WeightType("blocks of 16 with mins", 4, block=16, has_min=True),
    WeightType("floats in blocks of 16", 4, block=16, table=FOUR_BIT_FLOATS),
    WeightType("nested bytes", 8, zero=128, nested=True),
    WeightType("nested bytes with mins", 8, block=16, nested=True, has_min=True),
)
SIZES = ((1, 1), (16, 256), (33, 100), (70, 800))  # outputs beyond whole panels, depths beyond whole blocks and chunks

if sets()[0].startswith("no native"):
    pytest.skip(sets()[0], allow_module_level=True)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> WeightType:
    found: WeightType = request.param
    return found


@pytest.fixture(scope="module")
def natives() -> dict[str, Native]:
    return {isa: Native(isa, 1) for isa in sets()}


def random_codes(kind: WeightType, out: int, width: int, seed: int = 0) -> Codes:
    """Any codes, blocks' numbers over their whole range; sized so that outputs for normal inputs are of order 1."""
    generator = torch.Generator().manual_seed(seed)
    depth = -(-width // kind.depth_multiple) * kind.depth_multiple
    blocks, supers = (out, depth // kind.block), (out, depth // SUPER_BLOCK)

    def floats(shape: tuple[int, int], size: float) -> torch.Tensor:
        drawn: torch.Tensor = torch.rand(shape, generator=generator) * size / width**0.5
        return drawn.to(scale_dtype(kind))

    values = max(map(abs, kind.table)) if kind.table else 2**kind.bits
    codes = torch.randint(0, 2**kind.bits, (out, depth), generator=generator, dtype=torch.uint8)
    if not kind.nested:
        mins = floats(blocks, 1) if kind.has_min else None
        return Codes(kind, width, codes, floats(blocks, 2 / values), mins, factor=0.75)
    scales = torch.randint(-128, 128, blocks, generator=generator).to(torch.int8)
    whole_mins = torch.randint(0, 256, blocks, generator=generator).to(torch.uint8)
    mins, super_mins = (whole_mins, floats(supers, 1 / 128)) if kind.has_min else (None, None)
    return Codes(kind, width, codes, scales, mins, floats(supers, 2 / values / 128), super_mins)


def pack(native: Native, matrix: Codes) -> PackedMatrix:
    return native.pack_codes(matrix, Arena(native.packed_bytes(matrix.type, matrix.out, matrix.width)))


@pytest.mark.parametrize(("out", "width"), SIZES)
def test_every_instruction_set_computes_the_reference_and_the_same_bits(
    kind: WeightType, natives: dict[str, Native], out: int, width: int
) -> None:
    matrix = random_codes(kind, out, width)
    x = normal(40, width)
    expected = quantised_linear(x, matrix)
    tokens = (*range(1, 18), 31, 40)
    first = natives["scalar"].linear(x, pack(natives["scalar"], matrix))
    assert far(first, expected) < bound("quantised_linear", torch.float32)
    for isa, native in natives.items():
        packed = pack(native, matrix)
        for count in tokens:
            assert torch.equal(native.linear(x[-count:], packed), first[-count:]), (isa, count)
    rounded = natives["scalar"].linear(x.bfloat16(), pack(natives["scalar"], matrix))
    assert rounded.dtype == torch.bfloat16
    assert far(rounded, quantised_linear(x.bfloat16(), matrix)) < bound("quantised_linear", torch.bfloat16)
    for isa, native in natives.items():
        assert torch.equal(native.linear(x.bfloat16(), pack(native, matrix)), rounded), isa


def test_many_tokens_and_threads_give_the_bits_of_one(natives: dict[str, Native]) -> None:
    x = normal(401, 288)
    for kind in (OWN_TYPES["q8"], OWN_TYPES["q4"], GGUF_TYPES["Q2_K"], GGUF_TYPES["Q6_K"], OWN_TYPES["mxfp4"]):
        matrix = random_codes(kind, 150, 288)
        for isa, native in natives.items():
            packed = pack(native, matrix)
            together = native.linear(x, packed)
            assert torch.equal(Native(isa, 3).linear(x, packed), together)
            for first, count in ((0, 1), (9, 25), (7, 64), (7, 65), (7, 193), (200, 16), (400, 1)):
                assert torch.equal(native.linear(x[first : first + count], packed), together[first : first + count])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_outputs_too_large_for_caches_are_the_same(natives: dict[str, Native], dtype: torch.dtype) -> None:
    """Of 1 MiB and more; the last panels have no neighbour."""
    x = normal(300, 256, dtype=dtype)
    for out in (1856, 1840, 1850):
        matrix = random_codes(OWN_TYPES["q4"], out, 256)
        for isa, native in natives.items():
            if isa in ("scalar", "avx2"):
                continue  # they write no other way
            packed = pack(native, matrix)
            together = native.linear(x, packed)
            for first, count in ((0, 150), (150, 150)):
                assert torch.equal(native.linear(x[first : first + count], packed), together[first : first + count]), (
                    isa
                )


def test_rows_come_back_as_the_reference_says(kind: WeightType, natives: dict[str, Native]) -> None:
    rows = torch.tensor([0, 69, 16, 15, 69, 40])
    for width in (256, 800, 33):
        matrix = random_codes(kind, 70, width)
        packed = pack(natives["scalar"], matrix)
        assert torch.equal(natives["scalar"].unpack_rows(packed, rows), dequantise(matrix)[rows])
        found = natives["scalar"].unpack_rows(packed, rows, BFLOAT16)
        assert torch.equal(found, dequantise(matrix)[rows].bfloat16())
        with pytest.raises(IndexError, match="not among the 70"):
            natives["scalar"].unpack_rows(packed, torch.tensor([70]))


@pytest.mark.parametrize("isa", sets())
def test_inputs_are_rounded_as_the_reference_rounds_them(isa: str) -> None:
    """A matrix that picks single inputs shows the numbers and scales: halves, zeros, extremes, tiny and huge blocks."""
    width = 128
    picking = Codes(
        WeightType("ones", 8, zero=128), width, (torch.eye(width) + 128).to(torch.uint8), torch.ones(width, 4).half()
    )
    x = normal(64, width)
    x[0], x[1], x[2] = 0, x[1] * 1e-30, x[2] * 1e30
    x[3] = (torch.arange(width) % 33 - 16) / 2
    x[4, 5] = 1000
    native = Native(isa, 1)
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(native.linear(x.to(dtype), pack(native, picking)), quantised_linear(x.to(dtype), picking))


def test_not_a_number_stays_in_its_row(natives: dict[str, Native]) -> None:
    matrix, x = random_codes(OWN_TYPES["q4"], 33, 256), normal(20, 256)
    for isa, native in natives.items():
        packed = pack(native, matrix)
        expected = native.linear(x, packed)
        for bad in (torch.nan, torch.inf):
            spoiled = x.clone()
            spoiled[7, 3] = bad
            found = native.linear(spoiled, packed)
            assert not found[7].isfinite().any(), isa
            kept = [token for token in range(20) if token != 7]
            assert torch.equal(found[kept], expected[kept])


def test_many_layers_as_one_job_get_the_bits_they_get_alone(natives: dict[str, Native]) -> None:
    """Types mixed, inputs shared, different and empty; with residuals, one of them the output itself."""
    kinds: tuple[binding.Element, ...] = (
        OWN_TYPES["q4"],
        OWN_TYPES["q8"],
        GGUF_TYPES["Q6_K"],
        FLOAT32,
        BFLOAT16,
    )
    for isa, dtype in itertools.product(natives, (torch.float32, torch.bfloat16)):
        for native in (natives[isa], Native(isa, 3)):
            matrices = [
                pack(native, random_codes(kind, 40 + index, 288))
                if isinstance(kind, WeightType)
                else native.pack(normal(40 + index, 288, dtype=torch_dtype(kind)), Arena(1 << 20))
                for index, kind in enumerate(kinds)
            ]
            x, other = normal(5, 288, dtype=dtype), normal(18, 288, seed=1, dtype=dtype)
            many = normal(160, 288, seed=3, dtype=dtype)  # enough to be converted by several threads
            layers = [LinearInput(each, matrix) for each in (x, other, x[:0], many) for matrix in matrices]
            for layer, found in zip(layers, native.linear_many(layers), strict=True):
                assert torch.equal(found, native.linear(layer.x, layer.matrix))
            for matrix in matrices:
                residual = normal(18, matrix.out + 3, seed=2, dtype=dtype)[:, 3:]
                (found,) = native.linear_many([LinearInput(other, matrix, residual)])
                assert torch.equal(found, residual + native.linear(other, matrix))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("isa", sets())
def test_rows_of_the_inputs_can_be_chosen_and_outputs_stay_within_their_bounds(isa: str, dtype: torch.dtype) -> None:
    native = Native(isa, 2)
    x, rows = normal(9, 96, dtype=dtype)[:, :64], torch.tensor([8, 0, 0, 3, 7])
    dense = [native.pack(normal(37, 64, dtype=each), Arena(1 << 20)) for each in (torch.float32, torch.bfloat16)]
    for matrix in (*dense, pack(native, random_codes(OWN_TYPES["q6"], 37, 64))):
        y = torch.full((7, 50), torch.nan, dtype=dtype)
        arguments = LinearArguments(
            binding.weight_address(matrix), 5, binding.TYPES[dtype_of(x)], x.data_ptr(), rows.data_ptr(), 96, None, 0,
            y[1:].data_ptr(), 50,
        )  # fmt: skip
        assert native._library.qw_linear(native._context, arguments) == 0
        assert torch.equal(y[1:6, :37], native.linear(x[rows], matrix))
        assert y[0].isnan().all()
        assert y[6].isnan().all()
        assert y[:, 37:].isnan().all()


def test_a_type_without_kernels_is_refused(natives: dict[str, Native]) -> None:
    for wrong in (WeightType("odd", 7), WeightType("long", 4, block=64), WeightType("table", 5, table=(0,) * 16)):
        with pytest.raises(ValueError, match=f"{wrong.name}.*cannot be packed"):
            natives["scalar"].packed_bytes(wrong, 16, 256)
    with pytest.raises(ValueError, match="float64 cannot be packed"):
        natives["scalar"].packed_bytes(np.dtype("float64"), 16, 256)
    matrix = pack(natives["scalar"], random_codes(OWN_TYPES["q8"], 4, 32))
    with pytest.raises(ValueError, match="out is 3 in residual but 4 in weight"):
        natives["scalar"].linear_many([LinearInput(normal(2, 32), matrix, normal(2, 3))])
