"""The tokenizer: Qwen3.5's added tokens in order, digits alone, every text comes back."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer

from qwench.train.data.mix import sample_text
from qwench.train.encode import parts
from qwench.train.tokenizer import ADDED, PLAIN, settings, train

SIZE = 420


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(("".join(text for text, _ in parts(sample)) for sample in sample_text(1, 400)), SIZE)


def test_added_tokens_come_last_in_qwens_order(tokenizer: Tokenizer) -> None:
    assert len(ADDED) == 33
    assert tokenizer.get_vocab_size() == SIZE
    assert [tokenizer.token_to_id(token) for token in ADDED] == list(range(SIZE - 33, SIZE))


def test_special_flags_are_those_of_qwen(tokenizer: Tokenizer) -> None:
    stored = {token["content"]: token["special"] for token in json.loads(tokenizer.to_str())["added_tokens"]}
    assert {token for token, special in stored.items() if not special} == PLAIN
    described = settings(tokenizer)["added_tokens_decoder"]
    assert {entry["content"]: entry["special"] for entry in described.values()} == stored


@pytest.mark.parametrize(
    "text", ["Hello 1234!\n\n x", "grüße, 你好 🙂", "<think>\n12+34\n</think>\n\n46", "e\u0301 = \u00e9", " \t\r\n"]
)
def test_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text.replace("e\u0301", "\u00e9")


def test_digits_stand_alone(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("2026", add_special_tokens=False).tokens == ["2", "0", "2", "6"]
