"""Ragged attention over a paged cache: every instruction set against the reference, and its laws to the bit.

Whatever a row may not see is NaN: pages of nobody, and positions that are not written yet.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch

from qwench.config import CACHE_TILE
from qwench.ops.attention import paged_attention
from qwench.ops.native import Native
from qwench.ops.rows import Rows
from tests.ops.calls import NativeCalls
from tests.ops.kept import empty, keys_of, reference_of, values_of
from tests.ops.test_native import DTYPES, bound, far, normal, sets

if sets()[0].startswith("no native"):
    pytest.skip(sets()[0], allow_module_level=True)

Kind = tuple[torch.dtype, bool]  # of what is computed with, and whether keys and values are kept in 8 bits
KINDS: tuple[Kind, ...] = tuple(itertools.product(DTYPES, (False, True)))
NAMES = ("float32", "float32-int8", "bfloat16", "bfloat16-int8")
SEGMENT = 256  # positions that the kernels weigh together: contexts around its multiples are the interesting ones


@dataclass(frozen=True)
class Case:
    """The tokens of some whole sequences and the pages they own. query [T, H, D], key and value [T, K, D]."""

    lengths: tuple[int, ...]
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    table: torch.Tensor
    page_size: int
    num_slots: int
    coded: bool

    def cache(self) -> tuple[torch.Tensor, torch.Tensor]:
        _, heads, dim = self.key.shape
        kept = torch.int8 if self.coded else self.key.dtype
        return empty(self.num_slots, heads, dim, kept), empty(self.num_slots, heads, dim, kept)

    def rows(self, spans: dict[int, range]) -> tuple[Rows, torch.Tensor]:
        """A step of these positions of these sequences, and which of the T tokens they are."""
        starts = [0, *itertools.accumulate(self.lengths)]
        tokens = torch.tensor([starts[row] + position for row, span in spans.items() for position in span])
        slots = [
            int(self.table[row, position // self.page_size]) * self.page_size + position % self.page_size
            for row, span in spans.items()
            for position in span
        ]
        lengths, contexts = tuple(map(len, spans.values())), tuple(span.stop for span in spans.values())
        table = self.table[list(spans)]
        return Rows(lengths, contexts, table, self.page_size, torch.tensor(slots), torch.zeros(0)), tokens

    def whole(self) -> tuple[Rows, torch.Tensor]:
        return self.rows({row: range(length) for row, length in enumerate(self.lengths)})


def case(
    lengths: tuple[int, ...], heads: tuple[int, int] = (4, 2), dim: int = 16, page_size: int = CACHE_TILE,
    kind: Kind = (torch.float32, False),
) -> Case:  # fmt: skip
    width = -(-max(lengths) // page_size)
    order = torch.randperm(len(lengths) * width + 3, generator=torch.Generator().manual_seed(5))
    table, tokens = order[: len(lengths) * width].view(len(lengths), width), sum(lengths)
    query, key, value = (
        normal(tokens, count, dim, seed=seed, dtype=kind[0])
        for seed, count in enumerate((heads[0], heads[1], heads[1]))
    )
    return Case(lengths, query, key, value, table, page_size, len(order) * page_size, kind[1])


def attend(
    native: Native | None, given: Case, step: tuple[Rows, torch.Tensor], cache: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    rows, tokens = step
    query, key, value = given.query[tokens], given.key[tokens], given.value[tokens]
    if native is None:
        return paged_attention(query, key, value, *cache, rows)
    return NativeCalls(native).paged_attention(query, key, value, *cache, rows)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@pytest.mark.parametrize("isa", sets())
@pytest.mark.parametrize(("heads", "dim"), [((4, 2), 8), ((6, 1), 20), ((16, 2), 33), ((8, 2), 256), ((3, 3), 128)])
@pytest.mark.parametrize(("lengths", "page_size"), [((1,), 64), ((1, 17, 3), 128), ((130, 1, 300), 64), ((600,), 192)])
def test_whole_sequences_equal_the_reference(
    isa: str, kind: Kind, heads: tuple[int, int], dim: int, lengths: tuple[int, ...], page_size: int
) -> None:
    given = case(lengths, heads, dim, page_size, kind)
    expected_cache, found_cache = given.cache(), given.cache()
    expected = attend(None, given, given.whole(), expected_cache)
    found = attend(Native(isa, 1), given, given.whole(), found_cache)
    assert far(found, expected) < bound("coded_attention" if given.coded else "attention", kind[0])
    slots = given.whole()[0].kv_slots
    for read, left, right in zip((keys_of, values_of), found_cache, expected_cache, strict=True):
        assert torch.equal(read(left, dim)[slots], reference_of(right, dim)[slots])


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@pytest.mark.parametrize("isa", sets())
@pytest.mark.parametrize("heads", [(4, 2), (16, 1)])
@pytest.mark.parametrize(
    "cuts", [(1,) * 5, (SEGMENT - 1, 1, 1, 1), (SEGMENT, 200), (3, 500, 1, 96), (40, 1, 17, 64, 9, 400, 1)]
)
def test_any_cut_gives_the_same_bits(isa: str, kind: Kind, heads: tuple[int, int], cuts: tuple[int, ...]) -> None:
    given = case((sum(cuts),), heads, kind=kind)
    whole = attend(Native(isa, 2), given, given.whole(), given.cache())
    cache, native = given.cache(), Native(isa, 1)
    bounds = [0, *itertools.accumulate(cuts)]
    parts = [attend(native, given, given.rows({0: range(*each)}), cache) for each in itertools.pairwise(bounds)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@pytest.mark.parametrize("isa", sets())
def test_neither_company_nor_threads_change_a_bit(isa: str, kind: Kind) -> None:
    """Single tokens at depths on both sides of segments, among chunks short and long."""
    lengths = (1, SEGMENT, SEGMENT + 1, 3 * SEGMENT + 5, 30, 90, 700)
    given = case(lengths, (8, 2), 32, kind=kind)
    new = (1, 1, 1, 1, 2, 90, 390)
    spans = {row: range(length - count, length) for row, (length, count) in enumerate(zip(lengths, new, strict=True))}
    before = {row: range(span.start) for row, span in spans.items() if span.start}
    caches = [given.cache() for _ in range(3)]
    for cache in caches:
        attend(Native(isa, 1), given, given.rows(before), cache)
    together = attend(Native(isa, 1), given, given.rows(spans), caches[0])
    assert torch.equal(attend(Native(isa, 3), given, given.rows(spans), caches[1]), together)
    alone = [attend(Native(isa, 1), given, given.rows({row: span}), caches[2]) for row, span in spans.items()]
    assert torch.equal(torch.cat(alone), together)


@pytest.mark.parametrize("isa", sets())
def test_tokens_that_lie_apart_and_no_tokens_at_all(isa: str) -> None:
    given, native = case((9,), (4, 2), 8), Native(isa, 1)
    rows, _ = given.whole()
    wide = torch.cat((given.query.flatten(1), given.key.flatten(1), given.value.flatten(1)), dim=1)
    query, key, value = (part.unflatten(1, (-1, 8)) for part in torch.split(wide, [32, 16, 16], dim=1))
    expected = attend(native, given, given.whole(), given.cache())
    assert torch.equal(NativeCalls(native).paged_attention(query, key, value, *given.cache(), rows), expected)
    interleaved = torch.stack((given.query, given.query), dim=3).flatten(2)[..., ::2]
    assert torch.equal(NativeCalls(native).paged_attention(interleaved, key, value, *given.cache(), rows), expected)
    none = given.rows({})
    assert attend(native, given, (none[0], none[1].long()), given.cache()).shape == (0, 4, 8)


@pytest.mark.parametrize("isa", sets())
def test_scores_far_apart_and_not_a_number(isa: str) -> None:
    """One key outweighs the others by more than fp32 can hold; a NaN stays with those who see it."""
    given, native = case((300,), (2, 1), 16), Native(isa, 1)
    given.key[40] = 60 * given.query[299, 0]
    expected = attend(None, given, given.whole(), given.cache())
    found = attend(native, given, given.whole(), given.cache())
    assert far(found, expected) < 10 * bound("attention", torch.float32)  # scores of a few hundred round by 3e-5
    given.query[7, 1] = torch.nan
    spoilt = attend(native, given, given.whole(), given.cache())
    assert spoilt[7, 1].isnan().all()
    kept = torch.ones(300, 2, dtype=torch.bool)
    kept[7, 1] = False
    assert torch.equal(spoilt[kept], found[kept])


def test_what_is_out_of_range_is_refused_before_anything_is_written() -> None:
    given, native = case((9,), (4, 2), 8), Native("scalar", 1)
    good, tokens = given.whole()
    cache = given.cache()

    def refuse(**changed: object) -> None:
        parts = {
            name: getattr(good, name) for name in ("lengths", "contexts", "page_table", "page_size", "kv_slots")
        } | changed
        rows = Rows(state_slots=torch.zeros(0), **parts)
        with pytest.raises(IndexError, match="need pages that"):
            attend(native, given, (rows, tokens), cache)
        assert all(part.isnan().all() for part in cache)

    for table in ([[-1]], [[given.num_slots // CACHE_TILE]]):
        refuse(page_table=torch.tensor(table))
    for slot in (-1, given.num_slots):
        refuse(kv_slots=torch.tensor([*good.kv_slots.tolist()[:-1], slot]))
    for context in (8, 0, CACHE_TILE + 1):
        refuse(contexts=(context,))
    with pytest.raises(ValueError, match="attention: width of a kept head is 32 in key but 7 in keys"):
        NativeCalls(native).paged_attention(given.query, given.key, given.value, cache[0][..., :7], cache[1], good)
    with pytest.raises(ValueError, match="attention: tokens is 8 in query"):
        NativeCalls(native).paged_attention(given.query[:8], given.key, given.value, *cache, good)
