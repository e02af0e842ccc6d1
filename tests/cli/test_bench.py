"""``qwench bench``: what it counts, what it refuses, and that its last line is a document with every sample."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from qwench.cache.storage import CacheSpec
from qwench.cli import bench, main
from qwench.plan.shapes import active_parameters, conv_state_bytes, kv_bytes_per_token, recurrent_state_bytes
from qwench.progress import Progress

DENSE, SPARSE = bench.published_shape("qwen3.5:0.8b"), bench.published_shape("qwen3.5:35b-a3b")
ARGUMENTS = ["bench", "--shape", "qwen3:0.6b"]


def test_a_decoded_token_reads_the_weights_the_cache_and_the_state_twice() -> None:
    load = bench.Load(prefill=100, decode=20, batch=1)
    counted = bench.bytes_per_step(DENSE, CacheSpec.of(DENSE, torch.bfloat16), load)
    state = recurrent_state_bytes(DENSE) + conv_state_bytes(DENSE)
    expected = 2 * active_parameters(DENSE) + 110 * kv_bytes_per_token(DENSE) + 2 * state
    assert counted == pytest.approx(expected, rel=1e-4)  # the decay's parameters are fp32


def test_a_batch_touches_more_experts_but_never_all_of_them_twice() -> None:
    cache = CacheSpec.of(SPARSE, torch.bfloat16)
    one, many = (bench.bytes_per_step(SPARSE, cache, bench.Load(1, 1, batch)) for batch in (1, 64))
    assert one == pytest.approx(2 * active_parameters(SPARSE) + 2 * cache.sequence_bytes, rel=1e-3)
    assert one < many < 2 * 36e9 + 64 * 2 * cache.sequence_bytes + 1e9


def test_a_prompt_token_needs_two_operations_per_weight_and_the_head_once() -> None:
    body = active_parameters(DENSE) - DENSE.vocab_size * DENSE.hidden_size
    assert bench.flop_per_token(DENSE, prefill=10**9) > 2 * body
    assert bench.flop_per_token(DENSE, prefill=1) == pytest.approx(2 * active_parameters(DENSE), rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--quantization", "q9"], "quantization is 'q9'; did you mean q8?"),
        (["--runs", "0"], "--runs is 0; give a whole number of at least 1."),
        (["--prefill", "-3"], "--prefill is -3; give a whole number of at least 1."),
        (["--shape", "qwen3.5:0.9b"], "--shape qwen3.5:0.9b is no published shape; did you mean qwen3.5:"),
        (["--shape", "nope"], "--shape nope is no published shape; `qwench models` lists the shapes."),
        (["--shape", "@@@"], "--shape @@@ is no published shape; `qwench models` lists the shapes."),
        (["other", "--shape", "qwen3:0.6b"], "--shape qwen3:0.6b and the model other exclude each other"),
    ],
)
def test_a_wrong_flag_is_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) != 0
    told = capsys.readouterr()
    assert told.err.startswith(f"qwench: {sentence}")
    assert told.err.count("\n") == 1
    assert told.out == ""


def test_nano_is_measured_and_told_as_a_document(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[float] = []
    monkeypatch.setattr(Progress, "update", lambda _bar, done, note="": shown.append(done))
    assert main(["bench", "--prefill", "9", "--decode", "3", "--batch", "2", "--runs", "3", "--json"]) == 0
    told = capsys.readouterr()
    document: dict[str, Any] = json.loads(told.out)
    assert told.out.count("\n") == 1
    assert "prefill" in told.err
    assert document["model"] == "nano"
    for phase in ("prefill", "decode"):
        assert len(document[phase]["samples"]) == 3
        assert document[phase]["tokens_per_second"] == sorted(document[phase]["samples"])[1] > 0
        assert 0 < document[phase]["share_of_limit"] < 1
    assert document["peak_memory_bytes"] > 0
    assert document["load"] == {"prefill": 9, "decode": 3, "batch": 2}
    assert shown == sorted(shown)
    assert shown[-1] == 1.0
