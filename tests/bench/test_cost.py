"""What a row needs at least, against the counts of the published shapes."""

from __future__ import annotations

import pytest

from qwench.bench.cost import EVERY_EXPERT, Cost, cost_of
from qwench.bench.rows import Row, make_rows, read_list
from qwench.bench.subject import published_shape
from qwench.cache.storage import CacheSpec
from qwench.config import ModelConfig
from qwench.errors import UsageError
from qwench.footprint import CacheShape
from qwench.model.parameters import declare
from qwench.ops.arrays import BFLOAT16
from qwench.plan.shapes import active_parameters
from qwench.plan.work import operations, weight_bytes

DENSE, SPARSE = published_shape("qwen3.5:0.8b"), published_shape("qwen3.5:35b-a3b")


def bf16(model: ModelConfig) -> dict[str, float]:
    return {name: 32.0 if spec.kind == "float32" else 16.0 for name, spec in declare(model).items()}


def test_a_decoded_token_reads_the_weights_the_cache_and_the_state_twice() -> None:
    cost = cost_of(Row(decode=20, depth=100), DENSE, weight_bytes(DENSE, bf16(DENSE), 1), CacheSpec.of(DENSE, BFLOAT16))
    kept = CacheShape.of(DENSE, "bfloat16")
    expected = 2 * active_parameters(DENSE) + 110 * kept.token_bytes + 2 * kept.sequence_bytes
    assert cost.tokens == 1
    assert cost.bytes == pytest.approx(expected, rel=1e-4)  # the decay's parameters are fp32


def test_fewer_bits_are_fewer_bytes() -> None:
    small = dict.fromkeys(bf16(DENSE), 4.5)
    assert weight_bytes(DENSE, small, 1) == pytest.approx(weight_bytes(DENSE, bf16(DENSE), 1) * 4.5 / 16, rel=1e-3)


def test_a_batch_touches_more_experts_but_never_all_of_them_twice() -> None:
    one, many, all_of_them = (weight_bytes(SPARSE, bf16(SPARSE), tokens) for tokens in (1, 64, EVERY_EXPERT))
    embedding = SPARSE.vocab_size * SPARSE.hidden_size
    assert one == pytest.approx(2 * active_parameters(SPARSE), rel=1e-3)
    assert one < many < all_of_them == pytest.approx(2 * (34_660_610_688 - embedding), rel=1e-3)


def test_a_prompt_token_needs_two_operations_per_weight_and_the_head_once() -> None:
    body = active_parameters(DENSE) - DENSE.vocab_size * DENSE.hidden_size
    assert operations(DENSE, 0, logits=0) == 2 * body
    assert operations(DENSE, 0, logits=1) == 2 * active_parameters(DENSE)
    assert operations(DENSE, 1000, logits=1) > 2 * active_parameters(DENSE)


def test_the_slower_of_memory_and_arithmetic_is_the_limit() -> None:
    cost = Cost(tokens=10, bytes=100.0, operations=1000.0)
    assert cost.limit(100.0, 1000.0 * 2) == (10.0, "memory")
    assert cost.limit(100.0 * 4, 1000.0) == (10.0, "arithmetic")


def test_a_batch_of_one_is_a_depth_of_nothing() -> None:
    names = [row.name for row in make_rows((8,), (0, 64), (1, 4), decode=2)]
    assert names == ["prefill 8", "decode", "decode at 64", "decode, batch 4"]
    assert [row.name for row in make_rows((), (), (1,), decode=2)] == ["decode"]


@pytest.mark.parametrize("text", ["", "1,,2", "x", "0", "-1", "1.5"])
def test_a_list_is_whole_numbers_or_none(text: str) -> None:
    assert read_list("none", "--prefill", 1) == ()
    assert read_list("3,1,3", "--prefill", 1) == (3, 1)
    with pytest.raises(UsageError, match="--prefill is"):
        read_list(text, "--prefill", 1)


def test_a_shape_can_be_cut_to_its_first_layers() -> None:
    cut = published_shape("qwen3.5:35b-a3b", layers=8)
    assert (cut.num_layers, len(cut.sparse_layers)) == (8, 8)
    assert cut.layer_types == SPARSE.layer_types[:8]
