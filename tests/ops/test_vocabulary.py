"""Heads of a whole vocabulary: exact where every logit counts, and where only the few largest do, exact in these.

What is exact is told from matrices that hold the same rows and are too small to be vocabularies.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qwench.ops.loading import BITS, Arena, Loading, MatrixInFile, RowsInFile
from qwench.ops.native import LinearArguments, Native, PackedMatrix, weight_address
from qwench.ops.quantised import ARRAYS, Codes, codes_of, dequantise
from qwench.ops.weight_types import FEW_TOKENS, GGUF_TYPES, OWN_TYPES, VOCABULARY, WeightType
from qwench.weights.formats import own
from qwench.weights.quantise import quantise
from tests.ops.test_loading import finish, none, written
from tests.ops.test_native import normal, sets
from tests.ops.test_quantised_linear import pack, random_codes

OUT, WIDTH = VOCABULARY + 24, 300  # outputs beyond whole panels, a depth beyond whole super-blocks
EXACT = 256 * 16  # outputs of QW_EXACT_PANELS panels
CUT = VOCABULARY // 2
FEW = [1, 20, 2, 64]
assert len(FEW) == FEW_TOKENS

if sets()[0].startswith("no native"):
    pytest.skip(sets()[0], allow_module_level=True)


def rows_of(codes: Codes, first: int, last: int) -> Codes:
    return codes_of(
        codes.type, codes.width, {name: each[first:last] for name, each in codes.arrays.items()}, codes.factor
    )


def exact(native: Native, codes: Codes, x: torch.Tensor) -> torch.Tensor:
    parts = (rows_of(codes, 0, CUT), rows_of(codes, CUT, OUT))
    return torch.cat([native.linear(x, pack(native, part)) for part in parts], 1)


def logits(native: Native, matrix: PackedMatrix, x: torch.Tensor, few: list[int]) -> torch.Tensor:
    """Of tokens of which so ``few`` count, or all; whatever was in the outputs must not matter."""
    y, counts = torch.full((len(x), matrix.out), torch.nan), torch.tensor(few)
    arguments = LinearArguments(
        weight_address(matrix), len(x), 0, x.data_ptr(), None, x.stride(0), None, 0, y.data_ptr(), matrix.out,
        counts.data_ptr(),
    )  # fmt: skip
    assert native._library.qw_linear(native.context, arguments) == 0
    return y


@pytest.mark.parametrize("kind", [OWN_TYPES["q5"], OWN_TYPES["q6"], GGUF_TYPES["Q5_K"], GGUF_TYPES["Q6_K"]], ids=str)
def test_every_instruction_set_gives_the_largest_exactly_and_the_same_bits(kind: WeightType) -> None:
    codes = random_codes(kind, OUT, WIDTH)
    if kind in OWN_TYPES.values():  # of weights as they are, not of codes that are all as likely
        codes = quantise(normal(OUT, WIDTH), kind)
    x = normal(20, WIDTH)
    x[7] = 0
    scalar = Native("scalar", 2)
    whole = exact(scalar, codes, x)
    few = logits(scalar, pack(scalar, codes), x[:FEW_TOKENS], FEW)
    for isa in sets():
        native = Native(isa, 2)
        matrix = pack(native, codes)
        assert torch.equal(native.linear(x, matrix), whole), isa
        assert torch.equal(native.linear(x[3:4], matrix)[0], whole[3]), isa
        assert torch.equal(logits(native, matrix, x, [1] * 20), whole), "more than a few tokens read everything"
        assert torch.equal(logits(native, matrix, x[:FEW_TOKENS], FEW), few), isa
        assert torch.equal(logits(native, matrix, x[1:2], FEW[1:2])[0], few[1]), "company matters"
        mixed = logits(native, matrix, x[:3], [FEW[0], 0, FEW[2]])
        assert torch.equal(mixed, torch.stack([few[0], whole[1], few[2]])), isa
    for found, expected, count in zip(few, whole, FEW, strict=False):
        assert torch.equal(found.topk(count).indices, expected.topk(count).indices)
        assert torch.equal(found.topk(count).values, expected.topk(count).values)
        off = (found - expected)[found != expected]
        assert OUT // 4 < len(off) <= OUT - EXACT + 8, "of the last panel eight are no outputs"
        assert float(off.std() / expected.std()) < 0.25
        assert abs(float(off.mean())) < 0.02 * float(expected.std())
        assert float(found[found != expected].max()) < float(expected.topk(count).values[-1] - 4 * off.std())


def test_panels_beyond_the_first_are_read_where_many_are_near_the_largest() -> None:
    """Of weights that differ by less than the lower bits tell, the upper bits cannot find the largest outputs."""
    rows = normal(1, WIDTH) + 0.02 * normal(OUT, WIDTH)
    x = normal(2, WIDTH)
    native = Native(sets()[0], 2)
    codes = quantise(rows, OWN_TYPES["q6"])
    whole, found = exact(native, codes, x), logits(native, pack(native, codes), x, [20, 256])
    assert (found == whole).sum() > 4 * EXACT
    for i, count in enumerate((20, 256)):
        assert torch.equal(found[i].topk(count).indices, whole[i].topk(count).indices)
        assert torch.equal(found[i].topk(count).values, whole[i].topk(count).values)


def test_more_than_can_be_told_apart_counts_as_all() -> None:
    native = Native(sets()[0], 2)
    codes = quantise(normal(OUT, WIDTH), OWN_TYPES["q5"])
    x = normal(1, WIDTH)
    assert torch.equal(logits(native, pack(native, codes), x, [257]), exact(native, codes, x))


def test_equal_logits_and_what_is_no_number() -> None:
    native = Native(sets()[0], 2)
    matrix = pack(native, random_codes(OWN_TYPES["q5"], OUT, WIDTH))
    x = torch.zeros(3, WIDTH)
    x[1] = torch.nan
    x[2] = torch.inf
    found = logits(native, matrix, x, [1, 20, 256])
    assert not found[0].any()
    assert not found[1:].isfinite().any()


@pytest.mark.parametrize("name", ["q5", "q6"])
def test_rows_come_back_and_pieces_make_the_whole(name: str, tmp_path: Path) -> None:
    kind = OWN_TYPES[name]
    codes = random_codes(kind, OUT, WIDTH)
    native = Native(sets()[0], 2)
    together = pack(native, codes)
    ids = torch.tensor([0, OUT - 1, 17, 5, VOCABULARY, 5])
    assert torch.equal(native.unpack_rows(together, ids), dequantise(codes)[ids])
    pieces = native.reserve(kind, OUT, WIDTH, Arena(native.packed_bytes(kind, OUT, WIDTH)))
    for first, last in ((0, 64), (64, CUT), (CUT, OUT)):
        native.pack_rows(rows_of(codes, first, last), pieces, first)
    stored = own.encode(codes)
    offsets = dict(zip(stored, written(tmp_path / "w", *stored.values()), strict=True))
    size = sum(array.numel() * array.itemsize for array in stored.values())
    rows = RowsInFile(tmp_path / "w", BITS, OUT, size, tuple(offsets.get(array, 0) for array in ARRAYS))
    loading = Loading([MatrixInFile("w", 0, kind, OUT, WIDTH, (rows,))])
    finish(loading, none)
    read = PackedMatrix(loading.arena, loading.addresses["w", 0], OUT, WIDTH, kind)
    x = normal(2, WIDTH)
    expected = logits(native, together, x, [20, 0])
    assert torch.equal(logits(native, pieces, x, [20, 0]), expected)
    assert torch.equal(logits(native, read, x, [20, 0]), expected)
    assert torch.equal(native.unpack_rows(pieces, ids), native.unpack_rows(read, ids))


def test_what_is_left_unread_is_counted() -> None:
    q5, q6 = OWN_TYPES["q5"], OWN_TYPES["q6"]
    assert q5.unread_bits_of((VOCABULARY, 256)) == 2 * VOCABULARY * 256
    assert q6.unread_bits_of((VOCABULARY, 512)) == 3 * VOCABULARY * 512
    assert q5.unread_bits_of((VOCABULARY - 1, 256)) == 0
    assert OWN_TYPES["q4"].unread_bits_of((VOCABULARY, 256)) == OWN_TYPES["q8"].unread_bits_of((VOCABULARY, 256)) == 0
