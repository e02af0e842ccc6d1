"""The shipped checkpoint: complete, small, with official names, and its ids agree with its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer

import qwench
from qwench.train.template import TEMPLATE

NANO = Path(qwench.__file__).parent / "assets" / "nano"
FILES = """
config.json generation_config.json tokenizer.json tokenizer_config.json chat_template.jinja model.safetensors
preprocessor_config.json video_preprocessor_config.json MODEL_CARD.md evaluation.json
""".split()


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((NANO / "config.json").read_text(encoding="utf-8"))
    return loaded


def test_all_files_are_there_and_small() -> None:
    assert [name for name in FILES if not (NANO / name).is_file()] == []
    assert (NANO / "model.safetensors").stat().st_size <= 12_000_000


def test_it_sees_as_well_as_is_promised() -> None:
    rows = json.loads((NANO / "evaluation.json").read_text(encoding="utf-8"))["results"]
    seen = {row["skill"]: row["exact"] for row in rows if row["skill"].startswith("see: ")}
    assert seen["see: number of 1 to 4 digits"] >= 90
    assert seen["see: word of up to 6 letters"] >= 80
    assert seen["see: how many shapes, 1 to 5"] >= 85


def test_ids_agree_with_the_tokenizer(config: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_file(str(NANO / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == config["text_config"]["vocab_size"]
    assert config["image_token_id"] == tokenizer.token_to_id("<|image_pad|>")
    assert config["vision_end_token_id"] == tokenizer.token_to_id("<|vision_end|>")
    generation = json.loads((NANO / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"] == [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")]


def test_weights_have_official_names_and_types(config: dict[str, Any]) -> None:
    with safe_open(NANO / "model.safetensors", "pt") as file:
        names = set(file.keys())
        kinds = {name: file.get_slice(name).get_dtype() for name in names}
        experts = file.get_slice("model.language_model.layers.0.mlp.experts.gate_up_proj").get_shape()
        assert all(bool(torch.isfinite(file.get_tensor(name)).all()) for name in names)
    assert all(name.startswith(("model.language_model.", "model.visual.")) for name in names)
    text = config["text_config"]
    assert experts == [text["num_experts"], 2 * text["moe_intermediate_size"], text["hidden_size"]]
    assert {kind for name, kind in kinds.items() if not name.endswith(("A_log", "dt_bias"))} == {"BF16"}


def test_the_template_is_the_one_it_was_trained_with() -> None:
    assert (NANO / "chat_template.jinja").read_text(encoding="utf-8") == TEMPLATE.read_text(encoding="utf-8")
    assert "chat_template" not in json.loads((NANO / "tokenizer_config.json").read_text(encoding="utf-8"))
