"""Tool calls over HTTP: the shape clients expect, streamed or not, and real calls of the embedded model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from qwench.config import EngineConfig
from qwench.engine.client import EngineClient
from qwench.engine.request import SamplingParams, TokenEvent
from qwench.errors import Overloaded
from qwench.llm import LLM
from qwench.server.service import ServerSettings
from qwench.text.model import ModelText
from tests.server.conftest import NAME, Start, running
from tests.server.scripted import ScriptedEngine, answering
from tests.server.tiny import WINDOW
from tests.text.call_corpus import xml

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ADD: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    },
}
BOTH = f"I look.\n\n{xml('get_weather', ('city', 'Oslo'))}\n{xml('add', ('a', '1'), ('b', '2'))}"
ASKED: Any = {"model": NAME, "messages": [{"role": "user", "content": "Hello"}], "tools": [WEATHER, ADD]}
CALLS = [("get_weather", {"city": "Oslo"}), ("add", {"a": 1, "b": 2})]


def told(calls: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


def joined(lines: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The message that a client makes of a stream, and all of its choices."""
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    message: dict[str, Any] = {"content": "", "tool_calls": []}
    for choice in choices:
        message["content"] += choice["delta"].get("content") or ""
        for part in choice["delta"].get("tool_calls", ()):
            if part["index"] == len(message["tool_calls"]):
                assert part["type"] == "function"
                message["tool_calls"].append({**part, "function": {**part["function"], "arguments": ""}})
            else:
                assert "id" not in part
            message["tool_calls"][part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    return message, choices


@pytest.mark.parametrize("thinking", [False, True])
def test_a_body_and_a_stream_tell_the_same_calls(scripted: Start, thinking: bool) -> None:
    _, http = scripted(answering(f"Hm.{BOTH}" if thinking else BOTH))
    asked = {**ASKED, "enable_thinking": thinking}
    choice = http.post("/v1/chat/completions", json=asked).json()["choices"][0]
    content = None if thinking else "I look."
    assert choice["message"]["content"] == content
    assert choice["message"]["reasoning_content"] == ("Hm.I look." if thinking else None)
    assert told(choice["message"]["tool_calls"]) == CALLS
    assert choice["finish_reason"] == "tool_calls"
    assert len({call["id"] for call in choice["message"]["tool_calls"]}) == 2
    assert "warnings" not in choice["finish_details"]
    message, choices = joined(http.post("/v1/chat/completions", json={**asked, "stream": True}).text.splitlines())
    assert message["content"] == (content or "")
    assert told(message["tool_calls"]) == CALLS
    assert choices[-1]["finish_reason"] == "tool_calls"
    assert all("<" not in json.dumps(each) for each in choices)


def test_without_tools_or_with_none_the_text_is_left_alone(scripted: Start) -> None:
    engine, http = scripted(answering(BOTH))
    for asked in ({**ASKED, "tools": []}, {**ASKED, "tool_choice": "none"}):
        choice = http.post("/v1/chat/completions", json=asked).json()["choices"][0]
        assert choice["message"]["content"] == BOTH
        assert "tool_calls" not in choice["message"]
        assert choice["finish_reason"] == "stop"
        assert "get_weather" not in engine.prompts[-1]


def test_one_call_at_a_time(scripted: Start) -> None:
    engine, http = scripted(answering(BOTH))
    choice = http.post("/v1/chat/completions", json={**ASKED, "parallel_tool_calls": False}).json()["choices"][0]
    assert told(choice["message"]["tool_calls"]) == CALLS[:1]
    assert choice["finish_reason"] == "tool_calls"
    assert not engine.alive, "the generation is aborted"


def test_allowed_tools_leave_the_others_out(scripted: Start) -> None:
    engine, http = scripted(answering("Hello."))
    named = {"type": "function", "function": {"name": "add"}}
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named]}}
    assert http.post("/v1/chat/completions", json={**ASKED, "tool_choice": choice}).status_code == 200
    assert '"add"' in engine.prompts[-1]
    assert "get_weather" not in engine.prompts[-1]


def test_a_cut_call_is_json_and_says_so(scripted: Start) -> None:
    _, http = scripted(answering(xml("f", ("x", "1"), ("y", "[2]"))))
    asked = {**ASKED, "tools": [{"type": "function", "function": {"name": "f"}}]}
    usage = http.post("/v1/chat/completions", json=asked).json()["usage"]
    assert usage["total_tokens"] < WINDOW
    for most in range(1, usage["completion_tokens"], 2):
        choice = http.post("/v1/chat/completions", json={**asked, "max_tokens": most}).json()["choices"][0]
        assert choice["finish_reason"] == "length"
        told(choice["message"].get("tool_calls", []))


def test_a_malformed_call_is_content_with_a_warning(scripted: Start) -> None:
    text = "<tool_call>\nget_weather(Oslo)\n</tool_call>"
    _, http = scripted(again(text, text.removeprefix("<tool_call>")))
    choice = http.post("/v1/chat/completions", json=ASKED).json()["choices"][0]
    assert choice["message"]["content"] == text
    assert choice["finish_reason"] == "stop"
    assert "names no function" in choice["finish_details"]["warnings"][1]


def test_functions_from_before_tools(scripted: Start) -> None:
    engine, http = scripted(answering(BOTH))
    asked = {"model": NAME, "messages": ASKED["messages"], "functions": [WEATHER["function"]]}
    choice = http.post("/v1/chat/completions", json=asked).json()["choices"][0]
    assert choice["message"]["function_call"] == {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "function_call"
    assert "get_weather" in engine.prompts[-1]
    lines = http.post("/v1/chat/completions", json={**asked, "stream": True}).text.splitlines()
    parts = [each["delta"]["function_call"] for each in joined(lines)[1] if "function_call" in each["delta"]]
    assert parts[0]["name"] == "get_weather"
    assert "".join(part["arguments"] for part in parts) == '{"city": "Oslo"}'
    assert joined(lines)[1][-1]["finish_reason"] == "function_call"
    http.post("/v1/chat/completions", json={**asked, "function_call": "none"})
    assert "get_weather" not in engine.prompts[-1]
    refused = http.post("/v1/chat/completions", json={**asked, "tools": [WEATHER]})
    assert refused.status_code == 400
    wrong = http.post("/v1/chat/completions", json={**asked, "function_call": {"name": "g"}})
    assert "none of tools" in wrong.json()["error"]["message"]


def test_stop_strings_and_logprobs_are_about_the_content(scripted: Start) -> None:
    _, http = scripted(answering(BOTH))
    asked = {**ASKED, "logprobs": True, "stop": ["Oslo"]}
    choice = http.post("/v1/chat/completions", json=asked).json()["choices"][0]
    assert told(choice["message"]["tool_calls"]) == CALLS
    assert "".join(entry["token"] for entry in choice["logprobs"]["content"]) == "I look."


@pytest.fixture(scope="module")
def nano() -> Iterator[OpenAI]:
    client = EngineClient(EngineConfig(model="nano", device="cpu"))
    text = ModelText(client.files, client.model)
    client.start(text.vocabulary)
    client.wait_ready(60)
    with running(client, text, ServerSettings(names=("nano",))) as address:
        yield OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    client.close()


def test_the_embedded_model_calls_a_tool_and_reads_its_result(nano: OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    answer = nano.chat.completions.create(model="nano", messages=messages, tools=[WEATHER], temperature=0)
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls
    call: Any = message.tool_calls[0]
    assert (call.function.name, json.loads(call.function.arguments)) == CALLS[0]
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": -2, "sky": "rainy"}'}]
    last = nano.chat.completions.create(model="nano", messages=messages, tools=[WEATHER], temperature=0).choices[0]
    assert last.finish_reason == "stop"
    assert "-2" in (last.message.content or "")


def test_the_embedded_model_streams_its_call(nano: OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    with nano.chat.completions.stream(model="nano", messages=messages, tools=[WEATHER], temperature=0) as stream:
        final = stream.get_final_completion()
    call: Any = (final.choices[0].message.tool_calls or [])[0]
    assert (call.function.name, json.loads(call.function.arguments)) == CALLS[0]
    assert final.choices[0].finish_reason == "tool_calls"


def test_the_offline_face_tells_calls_too() -> None:
    with LLM(model="nano", device="cpu") as llm:
        messages = [{"role": "user", "content": "What is the weather in Oslo?"}]
        output = llm.chat(messages, tools=[WEATHER], use_tqdm=False)[0].outputs[0]
    assert [(call.name, json.loads(call.arguments)) for call in output.tool_calls] == CALLS[:1]
    assert output.text == ""
    assert output.finish_reason == "tool_calls"


CALL = xml("get_weather", ("city", "Oslo"))
UNREADABLE = "I look.\n<tool_call>\nsome nonsense</tool_call> and more"


def again(first: str, then: str) -> Callable[[Path], ScriptedEngine]:
    """An engine that says ``first``, and ``then`` where a call has begun."""

    def make(folder: Path) -> ScriptedEngine:
        def script(prompt: str, sampling: SamplingParams) -> list[TokenEvent]:
            return engine.spell(then if prompt.endswith("<tool_call>") else first, sampling)

        engine = ScriptedEngine(folder, script)
        return engine

    return make


def test_a_call_that_cannot_be_read_is_written_again_under_the_grammar(scripted: Start) -> None:
    engine, http = scripted(again(UNREADABLE, CALL.removeprefix("<tool_call>")))
    answer = http.post("/v1/chat/completions", json=ASKED).json()
    choice = answer["choices"][0]
    assert choice["message"]["content"] == "I look."
    assert told(choice["message"]["tool_calls"]) == CALLS[:1]
    assert choice["finish_reason"] == "tool_calls"
    assert "written again" in choice["finish_details"]["warnings"][0]
    message, choices = joined(http.post("/v1/chat/completions", json={**ASKED, "stream": True}).text.splitlines())
    assert (message["content"], told(message["tool_calls"])) == ("I look.", CALLS[:1])
    assert choices[-1]["finish_reason"] == "tool_calls"
    assert len(engine.prompts) == 4
    assert engine.prompts[1].endswith("I look.<tool_call>")
    assert engine.guides[1].mask is not None, "its first token is held to the grammar"
    assert not engine.alive
    usage = answer["usage"]
    assert usage["prompt_tokens"] == len(engine.text.tokenizer.encode(engine.prompts[0]))
    assert usage["completion_tokens"] > len(engine.text.tokenizer.encode(CALL)), "what was dropped was drawn"


def test_a_call_is_written_again_once_and_then_it_is_content(scripted: Start) -> None:
    engine, http = scripted(again(UNREADABLE, "\nnonsense again</tool_call>"))
    for more in ({}, {"stream": True}):
        engine.prompts.clear()
        answer = http.post("/v1/chat/completions", json={**ASKED, **more})
        assert len(engine.prompts) == 2
        if more:
            message, choices = joined(answer.text.splitlines())
            assert not message["tool_calls"]
            assert choices[-1]["finish_reason"] == "stop"
        else:
            choice = answer.json()["choices"][0]
            message = choice["message"]
            assert [warning.partition(";")[0] for warning in choice["finish_details"]["warnings"]] == [
                "a tool call could not be read",
                "a tool call names no function",
            ]
        assert "nonsense again" in message["content"]


def test_a_call_that_cannot_be_written_again_is_content(scripted: Start) -> None:
    """No room for it, or the engine refuses."""

    class Once(ScriptedEngine):
        def submit_choices(self, *given: Any, **more: Any) -> Any:
            if self.prompts:
                raise Overloaded("the queue is full; try again later.")
            return super().submit_choices(*given, **more)

    def once(folder: Path) -> ScriptedEngine:
        engine = Once(folder, lambda _prompt, sampling: engine.spell(UNREADABLE, sampling))
        return engine

    _, http = scripted(once)
    choice = http.post("/v1/chat/completions", json=ASKED).json()["choices"][0]
    assert choice["message"]["content"] == UNREADABLE
    assert choice["finish_reason"] == "stop"
    engine, http = scripted(again(UNREADABLE, CALL))
    begun = "I look.\n<tool_call>\n"
    cut = len(engine.text.tokenizer.encode(begun)) + 1  # the token that shows that it is no call, and no more
    choice = http.post("/v1/chat/completions", json={**ASKED, "max_tokens": cut}).json()["choices"][0]
    assert choice["message"]["content"].startswith(f"{begun}s")
    assert choice["finish_reason"] == "length"
    assert len(engine.prompts) == 1
