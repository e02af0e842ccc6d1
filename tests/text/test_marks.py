"""Seams of prompts: found from ids, told in words, and the client's own marks."""

from __future__ import annotations

import pytest

from qwench.engine.request import Marks, Reuse
from qwench.files import open_files, read_config
from qwench.text.marks import layout, with_orders
from qwench.text.model import ChatPrompt, ModelText
from qwench.weights.locate import locate

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "Good day."},
    {"role": "user", "content": "Add 2 and 3."},
]


@pytest.fixture(scope="module")
def text() -> ModelText:
    files = open_files(locate("nano", offline=True))
    return ModelText(files, read_config(files))


def prompt(text: ModelText, *messages: object) -> ChatPrompt:
    return text.chat_prompt(messages)


def test_messages_begin_where_the_template_opens_them(text: ModelText) -> None:
    ids = prompt(text, *MESSAGES).token_ids
    found = layout(ids, text.tokenizer)
    assert found.roles == ("system", "user", "assistant", "user", "assistant")
    for start, after in zip(found.starts, (*found.starts[1:], len(ids)), strict=True):
        assert text.tokenizer.decode(ids[start:after], skip_special_tokens=False).startswith("<|im_start|>")
    assert found.marks == Marks(found.starts[1:], (found.starts[1],))


def test_raw_text_has_no_seams(text: ModelText) -> None:
    ids = text.tokenizer.encode("Once upon a time")
    found = layout(ids, text.tokenizer)
    assert found.marks == Marks()
    assert found.told(Reuse(2, 3, True)) == f"reused 2 of {len(ids)} tokens; differs at token 4"


def test_what_was_reused_is_one_sentence(text: ModelText) -> None:
    found = layout(prompt(text, *MESSAGES).token_ids, text.tokenizer)
    inside = found.starts[3] + 2
    assert found.told(Reuse(5, inside, True)) == (
        f"reused 5 of {found.size} tokens; differs at token {inside + 1} inside message 4 (user)"
    )
    assert found.told(Reuse(5, inside, False)) == f"reused 5 of {found.size} tokens"
    assert found.told(Reuse(found.size - 1, found.size, True)) == f"reused {found.size - 1} of {found.size} tokens"


def test_a_mark_of_the_client_stands_at_the_end_of_its_message(text: ModelText) -> None:
    parts = [{"type": "text", "text": "Hello!", "cache_control": {"type": "ephemeral"}}]
    marked = [MESSAGES[0], {"role": "user", "content": parts}, *MESSAGES[2:]]
    ids = prompt(text, *marked).token_ids
    plain = layout(ids, text.tokenizer)

    def render(messages: object) -> list[int]:
        return text.chat_prompt(messages, add_generation_prompt=False).token_ids

    found, warnings = with_orders(plain, ids, marked, render)
    assert found.orders == (plain.starts[2],)
    assert warnings == []
    many = [{**message, "prompt_cache_breakpoint": True} for message in (*MESSAGES, *MESSAGES[1:3])]
    found, warnings = with_orders(plain, ids, many, render)
    assert len(warnings) == 2
    assert "the last 4 count" in warnings[0]


def test_a_role_that_is_no_word_does_no_harm(text: ModelText) -> None:
    ids = text.tokenizer.encode("<|im_start|>ü\r\x00<|im_end|>" * 2)
    sentence = layout(ids, text.tokenizer).told(Reuse(1, 2, True))
    assert sentence.isascii()
