"""Settings: every "auto" comes to a value with a reason; what cannot be is one sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qwench.config import EngineConfig, ModelConfig
from qwench.engine import resolve as resolving
from qwench.engine.client import EngineClient
from qwench.engine.start import resolve_for
from qwench.errors import UsageError
from qwench.plan.shapes import lookup

GOLDEN = Path(__file__).parents[1] / "golden" / "dense"


@pytest.fixture
def model() -> ModelConfig:
    return ModelConfig.from_folder(GOLDEN)


def test_every_choice_has_a_value_and_a_reason(model: ModelConfig) -> None:
    resolved = resolve_for(EngineConfig(device="cpu"), model)
    assert resolved.max_model_len == model.max_positions
    assert all(choice.value and choice.reason for choice in resolved.choices)


def test_keys_and_values_in_8_bits_are_told_and_leave_room_for_more(model: ModelConfig) -> None:
    config = EngineConfig(device="cpu", memory=8 * 2**20, max_model_len=4096)
    auto, coded = (resolve_for(replace(config, kv_cache_dtype=kept), model) for kept in ("auto", "int8"))
    assert "kv_cache_dtype float32 (as dtype)" in map(str, auto.choices)
    assert "kv_cache_dtype int8 (as asked)" in map(str, coded.choices)
    assert coded.num_pages > 3 * auto.num_pages


@pytest.mark.parametrize("device", ["gpu", "cpu:0", "cpu:foo", "cuda:x", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(model: ModelConfig, device: str) -> None:
    with pytest.raises(UsageError, match="device is"):
        resolve_for(EngineConfig(device=device), model)


def test_a_window_beyond_the_model_is_refused_with_both_numbers(model: ModelConfig) -> None:
    with pytest.raises(UsageError, match=rf"99999.*{model.max_positions}"):
        resolve_for(EngineConfig(device="cpu", max_model_len=99999), model)


def test_too_little_cache_memory_is_told_with_sizes(model: ModelConfig) -> None:
    with pytest.raises(UsageError, match=r"MiB of cache.*MiB is there"):
        resolve_for(EngineConfig(device="cpu", memory=1000, max_model_len=2000), model)


def test_weights_larger_than_memory_are_told_as_such(model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "available_memory", lambda: 1000)
    with pytest.raises(UsageError, match="the weights take"):
        resolve_for(EngineConfig(device="cpu", memory=10**9), model)


def test_too_large_weights_come_with_the_quantization_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = lookup("qwen3.5:27b")
    assert shape is not None
    for free, advice in (
        (40 * 2**30, "quantization q8 needs 26.64 GiB."),
        (20 * 2**30, "quantization q4 needs 15.65 GiB."),
        (5 * 2**30, "take a smaller model."),
    ):
        monkeypatch.setattr(resolving, "available_memory", lambda free=free: free)
        with pytest.raises(
            UsageError, match=r"the weights take 50\.10 GiB and \d+\.00 GiB of cpu memory is free; "
        ) as caught:
            resolve_for(EngineConfig(device="cpu", dtype="bfloat16"), shape.config)
        assert caught.value.message.endswith(advice)


def test_the_start_lines_say_what_was_quantised_how(model: ModelConfig) -> None:
    shape = lookup("qwen3.5:0.8b")
    assert shape is not None
    plain, q4 = (
        resolve_for(EngineConfig(device="cpu", dtype="bfloat16", quantization=name, memory=2**30), shape.config)
        for name in (None, "q4")
    )
    lines = [str(next(choice for choice in each.choices if choice.name == "weights")) for each in (plain, q4)]
    assert lines[0] == "weights 1.40 GiB, 16.00 bits each: bfloat16 100% (as stored)"
    assert lines[1] == "weights 474.4 MiB, 5.29 bits each: q5 55%, q4 40%, q6 5% (q4 as asked)"


def test_what_is_not_loaded_is_listed() -> None:
    client = EngineClient(EngineConfig(model=str(GOLDEN), device="cpu"))
    client.start()
    client.wait_ready(60)
    lines = client.banner()
    client.close()
    assert any("not loaded" in line and "vision" in line for line in lines), lines
