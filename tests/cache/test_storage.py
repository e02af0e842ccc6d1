"""The cache's tensors: their sizes are what the plan says, and what 8 bits save."""

from __future__ import annotations

import dataclasses
import mmap
from pathlib import Path

import pytest

from qwench.cache.storage import CacheSpec, Storage
from qwench.config import CACHE_TILE, ModelConfig
from qwench.ops import arrays
from qwench.ops.arrays import BFLOAT16, FLOAT32, DType, address_of

GOLDEN = Path(__file__).parents[1] / "golden" / "dense"


@pytest.mark.parametrize("kept", ["auto", "int8"])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_the_tensors_are_as_large_as_the_plan_says(dtype: DType, kept: str) -> None:
    spec = CacheSpec.of(ModelConfig.from_folder(GOLDEN), dtype, kept)
    found = Storage(spec, num_pages=3, page_size=CACHE_TILE, num_slots=2)
    assert sum(each.nbytes for each in (*found.keys, *found.values)) == 3 * CACHE_TILE * spec.token_bytes
    assert sum(each.nbytes for each in (*found.conv, *found.recurrent)) == 2 * spec.sequence_bytes


def test_eight_bits_are_a_code_for_each_number_and_a_scale_for_each_head() -> None:
    model = dataclasses.replace(ModelConfig.from_folder(GOLDEN), head_dim=256)
    whole, coded = (CacheSpec.of(model, BFLOAT16, kept) for kept in ("auto", "int8"))
    assert coded.token_bytes * 512 == whole.token_bytes * 260
    assert coded.sequence_bytes == whole.sequence_bytes


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no huge pages on request")
def test_what_lies_on_huge_pages_is_memory_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "HUGE_BYTES", 0)
    spec = CacheSpec.of(ModelConfig.from_folder(GOLDEN), BFLOAT16)
    found = Storage(spec, num_pages=3, page_size=CACHE_TILE, num_slots=2)
    assert not any(bool(each.any()) for each in (*found.keys, *found.values, *found.conv, *found.recurrent))
    assert all(address_of(each) % 64 == 0 for each in (*found.keys, *found.values))
    found.conv[0][1] = 3
    found.reset([1])
    assert not bool(found.conv[0].any())
