"""Two dialects, both ways: what one client said reaches the other kind of upstream, and what it answered comes back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwench.errors import RequestError
from qwench.gateway.faces import Answer, writer
from qwench.gateway.providers import AnthropicDialect, Malformed, OpenAIDialect, ToldFailure
from qwench.gateway.signals import read_signals
from qwench.gateway.tiers import DataClass, Option, Secret, Steering, Thinking, Tier
from qwench.gateway.to_anthropic import ChunkStream, message_to_completion, request_to_messages
from qwench.gateway.upstream import Event
from qwench.gateway.wanted import Wanted, read_wanted

PIXEL = "data:image/png;base64,AAAA"
TOOL = {"name": "add", "description": "Adds.", "input_schema": {"type": "object", "properties": {"a": {}}}}
CONVERSATION: dict[str, Any] = {
    "model": "m",
    "max_tokens": 100,
    "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Add, and look."}, {"type": "image", "source": {}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                {"type": "text", "text": "Adding."},
                {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "2"}]},
    ],
    "tools": [TOOL],
    "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    "stop_sequences": ["END"],
}
CONVERSATION["messages"][0]["content"][1]["source"] = {"type": "base64", "media_type": "image/png", "data": "AAAA"}


def test_a_message_request_becomes_a_chat_completion() -> None:
    chat = read_wanted("anthropic", CONVERSATION).chat
    system, user, assistant, tool = chat["messages"]
    assert system["content"][0]["cache_control"] == {"type": "ephemeral"}
    assert user["content"][1] == {"type": "image_url", "image_url": {"url": PIXEL}}
    assert (assistant["content"], assistant["reasoning_content"]) == ("Adding.", "Hm.")
    assert assistant["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1}'}
    assert tool == {"role": "tool", "tool_call_id": "t1", "content": "2"}
    assert (chat["stop"], chat["tool_choice"], chat["parallel_tool_calls"]) == (["END"], "required", False)
    assert chat["tools"][0]["function"]["parameters"] == TOOL["input_schema"]


def test_there_and_back_says_the_same() -> None:
    body, warnings = request_to_messages(read_wanted("anthropic", CONVERSATION).chat, "large")
    assert warnings == []
    assert body["system"] == "Be brief."
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][0]["content"] == CONVERSATION["messages"][0]["content"]
    assert body["messages"][1]["content"] == CONVERSATION["messages"][1]["content"][1:], "thoughts of others stay here"
    assert body["messages"][2]["content"][0]["content"] == [{"type": "text", "text": "2"}]
    assert body["tools"] == [TOOL]
    assert body["tool_choice"] == CONVERSATION["tool_choice"]
    assert (body["model"], body["max_tokens"], body["stop_sequences"]) == ("large", 100, ["END"])


def test_what_anthropic_has_no_field_for_is_said() -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}], "seed": 1, "frequency_penalty": 1.0}
    body, warnings = request_to_messages(chat, "large")
    assert body["max_tokens"] == 8192
    assert [warning.partition(":")[0] for warning in warnings] == ["seed", "frequency_penalty", "max_tokens"]


MESSAGE = {
    "id": "msg_1",
    "model": "large",
    "content": [
        {"type": "thinking", "thinking": "Hm.", "signature": "x"},
        {"type": "text", "text": "Two."},
        {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}},
    ],
    "stop_reason": "tool_use",
    "usage": {"input_tokens": 5, "cache_read_input_tokens": 3, "output_tokens": 7},
}


def test_a_message_comes_back_as_a_completion_and_as_a_message_again() -> None:
    completion = message_to_completion(MESSAGE)
    choice = completion["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["reasoning_content"] == "Hm."
    assert completion["usage"]["prompt_tokens"] == 8
    again = writer(read_wanted("anthropic", CONVERSATION)).whole(Answer({}, "openai", completion), {"cost": None})
    assert [block["type"] for block in again["content"]] == ["thinking", "text", "tool_use"]
    assert again["content"][2]["input"] == {"a": 1}
    assert {name: again[name] for name in STOPPED} == STOPPED
    assert (again["usage"]["input_tokens"], again["usage"]["cache_read_input_tokens"]) == (5, 3)


STOPPED = {"stop_reason": "tool_use", "stop_sequence": None, "stop_details": None, "container": None}
EVENTS: list[dict[str, Any]] = [
    {"type": "message_start", "message": {"id": "msg_1", "model": "large", "usage": {"input_tokens": 5}}},
    {"type": "ping"},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm."}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "x"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Two."}},
    {"type": "content_block_stop", "index": 1},
    {"type": "content_block_start", "index": 2, "content_block": {"type": "tool_use", "id": "t1", "name": "add"}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"a"'}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": ": 1}"}},
    {"type": "content_block_stop", "index": 2},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 7}},
    {"type": "message_stop"},
]


def test_events_become_chunks_and_chunks_become_the_same_events() -> None:
    reader, told = ChunkStream(), writer(read_wanted("anthropic", CONVERSATION))
    chunks = [chunk for event in EVENTS for chunk in reader.chunks(event)]
    calls = [call for chunk in chunks for choice in chunk["choices"] for call in choice["delta"].get("tool_calls", ())]
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"a": 1}
    assert calls[0]["id"] == "t1"
    assert chunks[-1]["usage"]["completion_tokens"] == 7
    lines = told.write(Event("", {}, b""), chunks, "openai") + told.end({"cost": None})
    events = [json.loads(line.removeprefix(b"data: ")) for line in lines.splitlines() if line.startswith(b"data: ")]
    empty = events.pop(10)  # a call begins with its name, and none of its arguments
    assert empty["delta"] == {"type": "input_json_delta", "partial_json": ""}
    assert [event["type"] for event in events] == [each["type"] for each in EVENTS]
    deltas = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
    assert deltas == ["thinking_delta", "signature_delta", "text_delta", "input_json_delta", "input_json_delta"]
    assert [event["index"] for event in events if event["type"] == "content_block_start"] == [0, 1, 2]
    assert events[-2]["delta"] == STOPPED


def option(kind: Any, steering: Steering, thinking: Thinking) -> Option:
    tier = Tier("t", kind, "http://127.0.0.1:1", frozenset(DataClass), "p", steering, Secret("sk"))
    return Option(tier, "m", thinking)


@pytest.mark.parametrize(
    ("steering", "thinking", "asked", "told"),
    [
        ("qwen", "off", {}, {"enable_thinking": False}),
        ("qwen", "on", {}, {"enable_thinking": True}),
        ("qwen", 512, {}, {"enable_thinking": True, "thinking_budget": 512}),
        ("qwen", "", {"think": False}, {"think": False}),  # our own server understands every spelling
        ("qwen", 512, {"thinking_budget": 64}, {"enable_thinking": True, "thinking_budget": 64}),
        ("effort", "off", {}, {"reasoning_effort": "none"}),
        ("effort", 5000, {}, {"reasoning_effort": "medium"}),
        ("effort", "", {"enable_thinking": True, "thinking_budget": 1500}, {"reasoning_effort": "low"}),
        ("effort", "", {"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"}),
        ("effort", "", {}, {}),
        ("none", "", {"enable_thinking": False}, {}),
        ("budget", "off", {}, {"thinking": {"type": "disabled"}}),
        ("budget", 2000, {}, {"thinking": {"type": "enabled", "budget_tokens": 2000}}),
        ("budget", 64, {}, {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
        ("adaptive", "on", {}, {"thinking": {"type": "adaptive"}}),
        ("adaptive", 5000, {}, {"thinking": {"type": "adaptive"}, "output_config": {"effort": "medium"}}),
        ("adaptive", "", {"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
    ],
)
def test_thinking_is_told_in_the_words_of_the_tier(
    steering: Steering, thinking: Thinking, asked: dict[str, Any], told: dict[str, Any]
) -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4000, **asked}
    wanted = Wanted("openai", chat, chat, read_signals(chat))
    anthropic = steering in ("budget", "adaptive")
    speaks = AnthropicDialect() if anthropic else OpenAIDialect()
    call, _ = speaks.call(option("anthropic" if anthropic else "openai", steering, thinking), wanted, 1.0)
    kept = {"model", "messages", "max_tokens"}
    assert {name: value for name, value in call.body.items() if name not in kept} == told


def test_room_is_made_for_thinking_and_said() -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 100, "temperature": 0.5}
    wanted = Wanted("openai", chat, chat, read_signals(chat))
    call, warnings = AnthropicDialect().call(option("anthropic", "budget", 2000), wanted, 1.0)
    assert call.body["max_tokens"] == 3024
    assert "temperature" not in call.body
    assert len(warnings) == 2


@pytest.mark.parametrize(
    "told", [{}, {"choices": None}, {"choices": []}, {"choices": [3]}, {"choices": [{"index": 0}]}]
)
def test_what_is_no_completion_is_malformed(told: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        OpenAIDialect().completion(told)


def test_an_error_inside_an_answer_is_a_failure() -> None:
    with pytest.raises(ToldFailure, match="no memory"):
        OpenAIDialect().completion({"error": {"message": "no memory"}})
    with pytest.raises(ToldFailure, match="overloaded"):
        AnthropicDialect().chunks(Event("error", {"type": "error", "error": {"message": "overloaded"}}, b""))


RESPONSE: dict[str, Any] = {
    "instructions": "Be brief.",
    "input": [
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "Add."}, {"type": "input_image", "image_url": PIXEL}],
        },
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "function_call", "name": "add", "arguments": '{"a": 1}', "call_id": "c1"},
        {"type": "function_call_output", "call_id": "c1", "output": "2"},
    ],
    "tools": [
        {"type": "function", "name": "add", "parameters": TOOL["input_schema"]},
        {"type": "custom", "name": "write"},
        {"type": "web_search"},
    ],
    "tool_choice": {"type": "function", "name": "add"},
    "max_output_tokens": 100,
    "store": True,
}


def test_items_become_a_chat_completion_that_anybody_understands() -> None:
    wanted = read_wanted("responses", RESPONSE)
    system, user, assistant, tool = wanted.chat["messages"]
    assert (system, tool["content"]) == ({"role": "system", "content": "Be brief."}, "2")
    assert user["content"] == [{"type": "text", "text": "Add."}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    assert assistant["reasoning_content"] == "Hm."
    assert assistant["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1}'}
    assert wanted.chat["tool_choice"] == {"type": "function", "function": {"name": "add"}}
    assert [tool["function"]["name"] for tool in wanted.chat["tools"]] == ["add", "write"]
    assert [warning.partition(":")[0] for warning in wanted.warnings] == ["store", "tools[2]"]
    body, _ = request_to_messages(wanted.chat, "large")
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"input": None}, "input"),
        ({"input": [{"type": "mystery"}]}, "input[0].type"),
    ],
)
def test_what_a_gateway_cannot_do_for_a_response_is_refused(change: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_wanted("responses", {**RESPONSE, **change})
    assert caught.value.param == param


def test_calls_come_back_as_the_tools_the_client_has() -> None:
    calls = [{"id": "c2", "type": "function", "function": {"name": "write", "arguments": '{"input": "abc"}'}}]
    calls.append({"id": "c3", "type": "function", "function": {"name": "add", "arguments": "no JSON"}})
    said = {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": calls}
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    choice = {"index": 0, "message": said, "finish_reason": "tool_calls"}
    completion = {"id": "x", "model": "m", "choices": [choice], "usage": usage}
    wanted = read_wanted("responses", RESPONSE)
    told = writer(wanted).whole(Answer({}, "openai", completion), {"cost": None})
    assert [item["type"] for item in told["output"]] == ["reasoning", "custom_tool_call", "function_call"]
    assert told["output"][1]["input"] == "abc"
    assert told["output"][2]["arguments"] == "{}", "what is no object is told as none"
    assert (told["status"], told["usage"]["total_tokens"], told["usage"]["qwench"]) == ("completed", 12, {"cost": None})


@pytest.mark.parametrize("prompt", ["Once", [1, 2, 3], ["Once", "Twice"], [[1, 2], [3]]])
def test_a_raw_prompt_goes_as_it_was_sent(prompt: object) -> None:
    body = {"prompt": prompt, "max_tokens": 5}
    wanted = read_wanted("completions", body)
    call, _ = OpenAIDialect().call(option("openai", "qwen", ""), wanted, 1.0)
    assert (call.path, call.body) == ("/v1/completions", {**body, "model": "m"})
    assert wanted.signals.narrow == ("prompt",)
    assert wanted.signals.prompt > 0


@pytest.mark.parametrize("prompt", [None, [], 3, [[]], [True]])
def test_what_is_no_prompt_is_refused(prompt: object) -> None:
    with pytest.raises(RequestError, match=r"^prompt must be"):
        read_wanted("completions", {"prompt": prompt})


@pytest.mark.parametrize("face", ["anthropic", "responses"])
@pytest.mark.parametrize(
    "told",
    [
        {"usage": {"prompt_tokens": "12", "completion_tokens": -1, "prompt_tokens_details": 3}},
        {"usage": {"prompt_tokens": 5, "completion_tokens": None, "completion_tokens_details": []}},
        {"usage": 7},
        {"choices": [{"index": 0, "message": "no", "finish_reason": "stop"}]},
        {"choices": [{"index": 0, "message": {"content": 3, "tool_calls": ["no", {"function": 4}]}}]},
    ],
)
def test_whatever_an_upstream_writes_becomes_an_answer(face: Any, told: dict[str, Any]) -> None:
    body = CONVERSATION if face == "anthropic" else RESPONSE
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
    completion = {"id": "x", "model": "m", "choices": [choice], **told}
    written = writer(read_wanted(face, body)).whole(Answer({}, "openai", completion), {"cost": None})
    assert written["usage"]["qwench"] == {"cost": None}
    assert all(isinstance(count, int) for name, count in written["usage"].items() if name.endswith("_tokens"))
    json.dumps(written)
