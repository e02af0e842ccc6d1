"""Recommended sampling is recognised by shape and mode; what the user asks for wins; end tokens come together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwench.config import LayerType, ModelConfig, MoeConfig, RopeConfig
from qwench.engine.request import SamplingParams, Vocabulary
from qwench.errors import CheckpointError, ConfigError, RequestError, TemplateError
from qwench.text.model import ModelText
from qwench.text.presets import SamplingPreset, presets_for
from qwench.text.thinking import read_thinking
from tests.text.tiny import TEMPLATE, write_text_files


def config(model_type: str, hidden: int, layers: int, experts: int = 0, vocab: int = 512) -> ModelConfig:
    layer: LayerType = "full_attention"
    return ModelConfig(
        model_type=model_type,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=64,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        layer_types=(layer,) * layers,
        sparse_layers=(experts > 0,) * layers,
        attention_gate=True,
        zero_centred_norms=True,
        rms_norm_eps=1e-6,
        tie_embeddings=True,
        max_positions=128,
        rope=RopeConfig(theta=1e4, rotary_dim=8, mrope_section=None, yarn=None),
        delta=None,
        moe=MoeConfig(experts, 2, 16, 16, normalise_top_k=True) if experts else None,
        vision=None,
        num_mtp_layers=0,
        eos_token_ids=(3,),
        image_token_id=None,
        video_token_id=None,
        dtype="bfloat16",
    )


@pytest.mark.parametrize(
    ("model", "thinking", "direct"),
    [
        (("qwen3_5", 1024, 24), (1.0, 0.95, 20, 1.5), (1.0, 1.0, 20, 2.0)),
        (("qwen3_5", 2560, 32), (1.0, 0.95, 20, 1.5), (0.7, 0.8, 20, 1.5)),
        (("qwen3_5_moe", 2048, 40, 256), (1.0, 0.95, 20, 1.5), (0.7, 0.8, 20, 1.5)),
        (("qwen3_5_moe", 4096, 60, 512), (0.6, 0.95, 20, 0.0), (0.7, 0.8, 20, 1.5)),
        (("qwen3", 1024, 28), (0.6, 0.95, 20, 0.0), (0.7, 0.8, 20, 0.0)),
        (("qwen3_moe", 4096, 94, 128), (0.6, 0.95, 20, 0.0), (0.7, 0.8, 20, 0.0)),
    ],
)
def test_published_models_have_their_cards_values(
    tmp_path: Path, model: tuple[Any, ...], thinking: tuple[float, ...], direct: tuple[float, ...]
) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.3}', encoding="utf-8")  # the card knows better
    presets = presets_for(tmp_path, config(*model))
    for preset, wanted in ((presets.thinking, thinking), (presets.direct, direct)):
        assert [preset.temperature, preset.top_p, preset.top_k, preset.presence_penalty] == list(wanted)
        assert [preset.min_p, preset.repetition_penalty] == [0.0, 1.0]
        assert "model card" in preset.source
    assert presets.thinking_budget == {"qwen3_51024": 2048, "qwen31024": 4096}.get(f"{model[0]}{model[1]}")
    assert presets.of(thinking=True) is presets.thinking
    assert presets.of(thinking=False) is presets.direct


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        (None, SamplingPreset("neutral (no recommendation for this model)")),
        ({"eos_token_id": 1, "top_p": None}, SamplingPreset("neutral (no recommendation for this model)")),
        ({"temperature": 0.6, "top_k": 20, "do_sample": True}, SamplingPreset("file", temperature=0.6, top_k=20)),
        ({"do_sample": False, "temperature": 0.6}, SamplingPreset("file", temperature=0.0)),
    ],
)
def test_another_shape_has_what_its_file_says(tmp_path: Path, written: Any, wanted: SamplingPreset) -> None:
    if written is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(written), encoding="utf-8")
    preset = presets_for(tmp_path, config("qwen3_5", 1000, 24)).thinking
    source = wanted.source.replace("file", "generation_config.json of the checkpoint")
    assert preset == replace(wanted, source=source)


@pytest.mark.parametrize("written", ["{", "[" * 100_000, '{"temperature": -1}', '{"top_p": "high"}'])
def test_an_unusable_file_is_named(tmp_path: Path, written: str) -> None:
    (tmp_path / "generation_config.json").write_text(written, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        presets_for(tmp_path, config("qwen3_5", 1000, 24))


def test_the_user_wins_and_temperature_zero_is_plainly_greedy() -> None:
    preset = SamplingPreset("card", 0.7, 0.8, 20, 0.0, 1.5, 1.1)
    assert preset.params({"top_p": 0.5, "max_tokens": 3}) == SamplingParams(
        temperature=0.7, top_p=0.5, top_k=20, presence_penalty=1.5, repetition_penalty=1.1, max_tokens=3
    )
    assert preset.params({"temperature": 0}) == SamplingParams(temperature=0)
    assert preset.params({"temperature": 0, "presence_penalty": 1}) == SamplingParams(temperature=0, presence_penalty=1)
    with pytest.raises(RequestError, match="temperature is -1"):
        preset.params({"temperature": -1})
    with pytest.raises(RequestError, match=r"Unknown sampling parameter .*warmth"):
        preset.params({"warmth": 1})


def test_the_texts_of_a_checkpoint_together(tmp_path: Path) -> None:
    text = ModelText(write_text_files(tmp_path), config("qwen3_5", 1024, 24))
    ends = {text.tokenizer.id_of("<|im_end|>"), text.tokenizer.id_of("<|endoftext|>")}
    assert text.stop_token_ids == {3} | ends
    assert text.vocabulary == Vocabulary(text.tokenizer.size, text.stop_token_ids)
    assert text.tokenizer.size < 512
    assert text.chat is text.template
    assert text.sampling_defaults(thinking=False) == SamplingParams(temperature=1.0, top_k=20, presence_penalty=2.0)
    assert text.sampling(True, {"temperature": 0}) == SamplingParams(temperature=0)


def test_an_end_token_that_is_padding_is_none(tmp_path: Path) -> None:
    padded = replace(config("qwen3_5", 1024, 24), eos_token_ids=(3, 500))
    text = ModelText(write_text_files(tmp_path), padded)
    assert 3 in text.vocabulary.end_ids
    assert max(text.vocabulary.end_ids) < text.tokenizer.size < 500


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has 3\d\d ids, but vocab_size in config\.json is 100"):
        ModelText(write_text_files(tmp_path), config("qwen3_5", 1024, 24, vocab=100))


def test_chat_without_a_template_says_what_to_do(tmp_path: Path) -> None:
    text = ModelText(write_text_files(tmp_path, template=None), config("qwen3_5", 1024, 24))
    with pytest.raises(TemplateError, match="has no chat template"):
        _ = text.chat


QWEN3 = """\
{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""
USER = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("template", "switch", "opened", "thinks"),
    [
        (TEMPLATE, None, True, True),
        (TEMPLATE, False, False, False),
        (QWEN3, None, False, True),  # the model opens the block itself
        (QWEN3, True, False, True),
        (QWEN3, False, False, False),
        ("<|im_start|>assistant\n", None, False, False),
        ("<|im_start|>assistant\n", False, False, False),
        ("<|im_start|>assistant\n<think>\n", True, True, True),
    ],
)
def test_a_prompt_knows_whether_the_model_will_think(
    tmp_path: Path, template: str, switch: bool | None, opened: bool, thinks: bool
) -> None:
    text = ModelText(write_text_files(tmp_path, template=template), config("qwen3_5", 1024, 24))
    prompt = text.chat_prompt(USER, thinking=read_thinking({"enable_thinking": switch}))
    assert (prompt.thinking_open, prompt.thinks) == (opened, thinks)
    assert prompt.token_ids == text.tokenizer.encode(prompt.text)


@pytest.mark.parametrize("name", ["messages", "tools", "range", "namespace", "raise_exception", "eos_token"])
def test_variables_replace_nothing_that_is_ours(tmp_path: Path, name: str) -> None:
    text = ModelText(write_text_files(tmp_path), config("qwen3_5", 1024, 24))
    with pytest.raises(RequestError, match=f"chat_template_kwargs holds {name}, which") as caught:
        text.chat_prompt(USER, variables={name: 5})
    assert caught.value.param == "chat_template_kwargs"


@pytest.mark.parametrize(
    ("template", "switch", "sentence"),
    [
        (
            "<|im_start|>assistant\n",
            True,
            "enable_thinking asks for thinking, but this model's chat template has no thinking mode; leave it out",
        ),
    ],
)
def test_a_switch_that_would_do_nothing_is_refused(tmp_path: Path, template: str, switch: bool, sentence: str) -> None:
    text = ModelText(write_text_files(tmp_path, template=template), config("qwen3_5", 1024, 24))
    with pytest.raises(RequestError, match=sentence):
        text.chat_prompt(USER, thinking=read_thinking({"enable_thinking": switch}))
