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
from qwench.ops.weight_types import EXACT_PANELS, GGUF_TYPES, OWN_TYPES, PANEL, VOCABULARY, WeightType
from qwench.weights.formats import own
from qwench.weights.quantise import quantise
from tests.ops.test_loading import finish, none, written
from tests.ops.test_native import normal, sets
from tests.ops.test_quantised_linear import pack, random_codes

OUT, WIDTH = VOCABULARY + 24, 300  # outputs beyond whole panels, a depth beyond whole super-blocks
EXACT = EXACT_PANELS * PANEL  # outputs
CUT = VOCABULARY // 2
FEW = (1, 20, 2, 8)

if sets()[0].startswith("no native"):
    pytest.skip(sets()[0], allow_module_level=True)


def rows_of(codes: Codes, first: int, last: int) -> Codes:
    return codes_of(
        codes.type, codes.width, {name: each[first:last] for name, each in codes.arrays.items()}, codes.factor
    )


def exact(native: Native, codes: Codes, x: torch.Tensor) -> torch.Tensor:
    parts = (rows_of(codes, 0, CUT), rows_of(codes, CUT, OUT))
    return torch.cat([native.linear(x, pack(native, part)) for part in parts], 1)


def logits(native: Native, matrix: PackedMatrix, x: torch.Tensor, few: int, lower: float = 0.0) -> torch.Tensor:
    """Of tokens [n, width], or one [width] of which so ``few`` count, and what is less than ``lower`` below these;
    whatever was in the outputs must not matter."""
    if x.dim() == 1:
        return logits(native, matrix, x[None], few, lower)[0]
    y, counts = torch.full((len(x), matrix.out), torch.nan), torch.tensor([few, lower])
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
    few = [logits(scalar, pack(scalar, codes), x[i], count) for i, count in enumerate(FEW)]
    for isa in sets():
        native = Native(isa, 2)
        matrix = pack(native, codes)
        assert torch.equal(native.linear(x, matrix), whole), isa
        assert torch.equal(native.linear(x[3:4], matrix)[0], whole[3]), isa
        assert torch.equal(logits(native, matrix, x[:2], 1), whole[:2]), "more than one token read everything"
        for i, count in enumerate(FEW):
            assert torch.equal(logits(native, matrix, x[i], count), few[i]), isa
    alone = Native(sets()[0], 1)
    assert torch.equal(logits(alone, pack(alone, codes), x[1], FEW[1]), few[1]), "threads matter"
    for found, expected, count in zip(few, whole, FEW, strict=False):
        agree(found, expected, count)
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
    whole, matrix = exact(native, codes, x), pack(native, codes)
    for i, count in enumerate((20, 256)):
        found = logits(native, matrix, x[i], count)
        assert (found == whole[i]).sum() > 2 * EXACT
        agree(found, whole[i], count)


def test_more_than_can_be_told_apart_counts_as_all() -> None:
    native = Native(sets()[0], 2)
    codes = quantise(normal(OUT, WIDTH), OWN_TYPES["q5"])
    x = normal(1, WIDTH)
    assert torch.equal(logits(native, pack(native, codes), x, 257), exact(native, codes, x))


def agree(found: torch.Tensor, whole: torch.Tensor, count: int) -> None:
    """The largest are the same to the bit, and nothing else looks as if it were one of them."""
    largest = whole >= whole.topk(count).values[-1]
    assert torch.equal(found[largest], whole[largest])
    assert found[~largest].max() < whole[largest].min()


def test_where_all_outputs_are_negative_the_zeros_beyond_them_do_not_count() -> None:
    native = Native(sets()[0], 2)
    codes = quantise(0.2 * normal(OUT, WIDTH) - 1, OWN_TYPES["q6"])
    x = 1 + 0.2 * normal(2, WIDTH)
    whole, matrix = exact(native, codes, x), pack(native, codes)
    assert float(whole.max()) < 0
    for i, count in enumerate((20, 256)):
        agree(logits(native, matrix, x[i], count), whole[i], count)


def test_rows_of_any_size_are_looked_for_as_far_as_they_may_be_off() -> None:
    """Small rows have the largest outputs; what large ones look like says far less about them."""
    native = Native(sets()[0], 2)
    x = normal(1, WIDTH)
    along = x / x.norm()
    rows = 0.05 * normal(OUT, WIDTH)
    rows[: 2 * EXACT] += 0.5 * along
    large = 40 * rows[-EXACT:]
    rows[-EXACT:] = large - large @ along.T * along - along
    codes = quantise(rows, OWN_TYPES["q6"])
    whole, found = exact(native, codes, x)[0], logits(native, pack(native, codes), x[0], 256)
    agree(found, whole, 256)
    same = (found == whole).float()
    assert same[-EXACT:].mean() == 1
    assert same[2 * EXACT : -EXACT].mean() < 0.01


def test_what_may_be_chosen_after_others_were_lowered_is_exact() -> None:
    native = Native(sets()[0], 2)
    codes = quantise(normal(OUT, WIDTH), OWN_TYPES["q5"])
    x = normal(1, WIDTH)
    whole, matrix = exact(native, codes, x)[0], pack(native, codes)
    lower = 0.5 * float(whole.std())
    found = logits(native, matrix, x[0], 3, lower)
    counts = whole >= whole.topk(3).values[-1] - lower
    assert counts.sum() > 10
    assert torch.equal(found[counts], whole[counts])
    assert not torch.equal(found, whole)
    assert torch.equal(logits(native, matrix, x[0], 3, 1e30), whole), "everything is read where everything may be"


def test_equal_logits_and_what_is_no_number() -> None:
    native = Native(sets()[0], 2)
    matrix = pack(native, random_codes(OWN_TYPES["q5"], OUT, WIDTH))
    x = torch.zeros(3, WIDTH)
    x[1] = torch.nan
    x[2] = torch.inf
    assert not logits(native, matrix, x[0], 1).any()
    assert not logits(native, matrix, x[1], 20).isfinite().any()
    assert not logits(native, matrix, x[2], 256).isfinite().any()


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
    for tokens in (x[0], x):
        expected = logits(native, together, tokens, 20)
        assert torch.equal(logits(native, pieces, tokens, 20), expected)
        assert torch.equal(logits(native, read, tokens, 20), expected)
    assert torch.equal(native.unpack_rows(pieces, ids), native.unpack_rows(read, ids))


def test_what_is_left_unread_is_counted() -> None:
    q5, q6 = OWN_TYPES["q5"], OWN_TYPES["q6"]
    assert q5.unread_bits_of((VOCABULARY, 256)) == 2 * VOCABULARY * 256
    assert q6.unread_bits_of((VOCABULARY, 512)) == 3 * VOCABULARY * 512
    assert q5.unread_bits_of((VOCABULARY - 1, 256)) == 0
    assert OWN_TYPES["q4"].unread_bits_of((VOCABULARY, 256)) == OWN_TYPES["q8"].unread_bits_of((VOCABULARY, 256)) == 0
