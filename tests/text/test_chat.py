"""Templates: where they are found, what they see, what they may refuse; messages: what clients send is put in order."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from qwench.errors import ConfigError, RequestError, TemplateError
from qwench.text.chat import ChatTemplate, normalise_messages, prompt_opens_thinking
from qwench.text.tokenizer import Tokenizer
from tests.text.tiny import TEMPLATE, write_text_files

USER = [{"role": "user", "content": " Hi "}]


def found(folder: Path) -> ChatTemplate | None:
    return ChatTemplate.from_folder(folder, Tokenizer.from_folder(folder))


def test_the_file_comes_before_the_setting(tmp_path: Path) -> None:
    folder = write_text_files(tmp_path, template="file", chat_template="setting")
    template = found(folder)
    assert template is not None
    assert template.render(USER) == "file"


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        ("text {{ eos_token }}", "text <|im_end|>"),
        ([{"name": "tool_use", "template": "b"}, {"name": "default", "template": "a"}], "a"),
        ([{"name": "only", "template": "one"}], "one"),
    ],
)
def test_the_setting_is_a_text_or_a_list_of_named_ones(tmp_path: Path, setting: Any, wanted: str) -> None:
    template = found(write_text_files(tmp_path, template=None, chat_template=setting))
    assert template is not None
    assert template.render(USER) == wanted


def test_a_processors_file_is_the_last_resort(tmp_path: Path) -> None:
    folder = write_text_files(tmp_path, template=None)
    (folder / "chat_template.json").write_text('{"chat_template": "last"}', encoding="utf-8")
    template = found(folder)
    assert template is not None
    assert template.render(USER) == "last"


def test_a_special_token_may_be_an_object(tmp_path: Path) -> None:
    token = {"__type": "AddedToken", "content": "<|endoftext|>", "special": True}
    template = found(
        write_text_files(tmp_path, template="{{ pad_token }}{{ bos_token }}", pad_token=token, bos_token=None)
    )
    assert template is not None
    assert template.render(USER) == "<|endoftext|>"


def test_no_template_is_none_and_an_unclear_one_an_error(tmp_path: Path) -> None:
    assert found(write_text_files(tmp_path / "none", template=None)) is None
    named = [{"name": "a", "template": ""}, {"name": "b", "template": ""}, {"name": ["c"], "template": ""}, 5]
    with pytest.raises(TemplateError, match=r"none named 'default' \(found: a, b\)"):
        found(write_text_files(tmp_path / "unclear", template=None, chat_template=named))
    with pytest.raises(TemplateError, match=r"none named 'default' \(found: nothing\)"):
        found(write_text_files(tmp_path / "number", template=None, chat_template=5))


def test_a_damaged_side_file_is_named(tmp_path: Path) -> None:
    folder = write_text_files(tmp_path)
    for damaged in ("{", "[]", "[" * 100_000):
        (folder / "tokenizer_config.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(ConfigError, match=r"tokenizer_config\.json (is not valid JSON|holds list)"):
            found(folder)


def test_thinking_reaches_the_template_only_when_given() -> None:
    template = ChatTemplate("{{ enable_thinking is defined }}{{ enable_thinking }}")
    assert template.render(USER) == "False"
    assert template.render(USER, enable_thinking=False) == "TrueFalse"
    assert template.render(USER, enable_thinking=True) == "TrueTrue"


def test_the_template_sees_its_variables() -> None:
    template = ChatTemplate(
        "{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}{{ a }}", variables={"a": 1}
    )
    assert template.render(USER) == "TrueTrueTrue1"
    assert template.render(USER, variables={"a": 2}, add_generation_prompt=False, tools=[{}]) == "FalseTrueFalse2"
    now = datetime(2026, 2, 3, tzinfo=UTC)
    assert ChatTemplate("{{ strftime_now('%d %B %Y') }}", now=now).render(USER) == "03 February 2026"


def test_thinking_modes_are_found_by_rendering() -> None:
    template = ChatTemplate(TEMPLATE)
    assert template.can_think
    small = ChatTemplate(
        TEMPLATE.replace("enable_thinking is defined and enable_thinking is false", "not enable_thinking")
    )
    assert small.can_think
    assert not ChatTemplate("{{ messages[0].content }}").can_think
    assert not ChatTemplate("{{ raise_exception('no') }}").can_think


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("<|im_start|>user\nWhat is <think>?<|im_end|>\n<|im_start|>assistant\n", False),
        ("<|im_start|>user\n</think><|im_end|>\n<|im_start|>assistant\n<think>\nLet me", True),
        ("<|im_start|>assistant\n<think>\nx<|im_end|>\n", False),
        ("Question: <think>\n", True),
        ("<think> is a tag", False),
        ("", False),
    ],
)
def test_whether_a_prompt_leaves_thinking_open(prompt: str, opened: bool) -> None:
    assert prompt_opens_thinking(prompt) is opened


def test_failures_are_sentences() -> None:
    with pytest.raises(TemplateError, match="refuses these messages: No user query") as caught:
        ChatTemplate("{{ raise_exception('No user query found in messages.') }}").render(USER)
    assert caught.value.param == "messages"
    assert caught.value.status == 400
    with pytest.raises(TemplateError, match=r"file\.jinja fails on these messages: .*no attribute 'y'"):
        ChatTemplate("{{ x.y.z }}", origin="file.jinja").render(USER, variables={"x": {}})
    with pytest.raises(TemplateError, match=r"line 2: .*endfor"):
        ChatTemplate("a\n{% endfor %}")
    with pytest.raises(TemplateError, match="No filter named 'nope'"):
        ChatTemplate("{{ 1 | nope }}")
    with pytest.raises(TemplateError, match="at most 262144 are accepted"):
        ChatTemplate("a" * 600_000)
    with pytest.raises(TemplateError, match="Unexpected message role"):
        ChatTemplate(TEMPLATE).render([{"role": "critic", "content": ""}])


def test_system_messages_become_one_at_the_beginning() -> None:
    given = [
        {"role": "user", "content": "a"},
        {"role": "developer", "content": "first"},
        {"role": "assistant", "content": "b"},
        {"role": "system", "content": [{"type": "text", "text": "sec"}, {"type": "text", "text": "ond"}]},
    ]
    before = copy.deepcopy(given)
    clean = normalise_messages(given)
    assert given == before
    assert clean == [
        {"role": "system", "content": "first\n\nsecond"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    assert normalise_messages(clean) == clean


def test_tool_calls_get_their_arguments_as_a_mapping() -> None:
    def call(arguments: Any) -> dict[str, Any]:
        return {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}

    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [call('{"b": 1, "a": [2]}'), call(""), call({"x": 1})],
    }
    clean = normalise_messages([message])[0]
    assert clean["content"] == ""
    assert [each["function"]["arguments"] for each in clean["tool_calls"]] == [{"b": 1, "a": [2]}, {}, {"x": 1}]
    assert list(clean["tool_calls"][0]["function"]["arguments"]) == ["b", "a"]


def test_reasoning_has_one_name() -> None:
    clean = normalise_messages([{"role": "assistant", "content": "b", "reasoning": "r"}])
    assert clean == [{"role": "assistant", "content": "b", "reasoning_content": "r"}]


@pytest.mark.parametrize(
    ("messages", "sentence", "param"),
    [
        ([], "messages is empty", "messages"),
        ("Hi", "messages is a string; give a list", "messages"),
        (None, "messages is null", "messages"),
        ([1], r"messages\[0\] is a number", "messages[0]"),
        (
            [*USER, {"role": "critic", "content": ""}],
            r"messages\[1\] has the role 'critic'; known are system",
            "messages[1].role",
        ),
        ([{"content": "x"}], r"messages\[0\] has the role None", "messages[0].role"),
        ([{"role": "user"}], r"messages\[0\]\.content is missing", "messages[0].content"),
        ([{"role": "user", "content": 1}], r"messages\[0\]\.content is a number", "messages[0].content"),
        ([{"role": "user", "content": [{}]}], r"content\[0\] has no type", "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}], r"text is a number", "messages[0].content[0]"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}],
            "is something to look at, but this model reads text only",
            "messages[0].content[0]",
        ),
        ([{"role": "assistant", "tool_calls": "x"}], "tool_calls is a string", "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": [{}]}], "no function with a name", "messages[0].tool_calls[0]"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            "arguments is not JSON",
            "messages[0].tool_calls[0]",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}],
            "arguments is a list; give a JSON object",
            "messages[0].tool_calls[0]",
        ),
    ],
)
def test_a_wrong_message_is_named(messages: Any, sentence: str, param: str) -> None:
    with pytest.raises(RequestError, match=sentence) as caught:
        normalise_messages(messages)
    assert caught.value.param == param
