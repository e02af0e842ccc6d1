"""Streaming = not streaming: the chunks of a stream fold to the same choices as the one body, for any request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwench.engine.request import SamplingParams, TokenEvent
from tests.server.conftest import NAME, Start
from tests.server.scripted import ScriptedEngine, answering

HELLO = [{"role": "user", "content": "Hello, what is the answer?"}]
BASE: dict[str, Any] = {"model": NAME, "messages": HELLO, "max_tokens": 24, "seed": 11}


def stream(http: httpx.Client, route: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a stream that ends as it should."""
    answer = http.post(route, json={**body, "stream": True, "stream_options": {"include_usage": True}})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.split("\n\n") if line and not line.startswith(":")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def folded_chat(chunks: list[dict[str, Any]], count: int, *, logprobs: bool) -> list[dict[str, Any]]:
    """Choices as a client builds them from chunks."""
    choices = []
    for index in range(count):
        own = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert [choice["finish_reason"] for choice in own[:-1]] == [None] * (len(own) - 1)
        text = {
            key: "".join(choice["delta"].get(key) or "" for choice in own)
            for key in ("content", "reasoning_content", "reasoning")
        }
        entries = [entry for choice in own if choice["logprobs"] for entry in choice["logprobs"]["content"]]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text["content"],
            "refusal": None,
            "annotations": [],
            "reasoning_content": text["reasoning_content"] or None,
            "reasoning": text["reasoning"] or None,
        }
        known = {"content": entries, "refusal": None} if logprobs else None
        end = {key: own[-1][key] for key in ("finish_reason", "finish_details")}
        choices.append({"index": index, "message": message, "logprobs": known, **end})
    return choices


def folded_text(chunks: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    choices = []
    for index in range(count):
        own = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        known = [choice["logprobs"] for choice in own if choice["logprobs"]]
        columns = {key: [item for one in known for item in one[key]] for key in known[0]} if known else None
        choices.append(
            {
                "index": index,
                "text": "".join(choice["text"] for choice in own),
                "logprobs": columns,
                "finish_reason": own[-1]["finish_reason"],
            }
        )
    return choices


def used(body: dict[str, Any]) -> dict[str, Any]:
    """The usage but for what the second request reuses of the first."""
    return {name: value for name, value in body["usage"].items() if name != "prompt_tokens_details"}


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"n": 3},
        {"logprobs": True, "top_logprobs": 2, "n": 2},
        {"enable_thinking": True, "logprobs": True},
        {"stop": ["e", "1"], "logprobs": True},
        {"stop": ["e"], "include_stop_str_in_output": True},
        {"skip_special_tokens": False, "ignore_eos": True},
    ],
    ids=str,
)
def test_a_streamed_chat_is_the_whole_chat(http: httpx.Client, extra: dict[str, Any]) -> None:
    whole = http.post("/v1/chat/completions", json=BASE | extra).json()
    chunks = stream(http, "/v1/chat/completions", BASE | extra)
    assert folded_chat(chunks, extra.get("n", 1), logprobs=extra.get("logprobs", False)) == whole["choices"]
    assert used(chunks[-1]) == used(whole)
    assert [chunk["thinking"] for chunk in chunks if "thinking" in chunk] == [whole["thinking"]]
    assert [chunk.get("timings", {}).keys() for chunk in chunks if "timings" in chunk] == [whole["timings"].keys()]


@pytest.mark.parametrize(
    "extra", [{}, {"n": 2, "logprobs": 2}, {"echo": True, "logprobs": 1}, {"echo": True}, {"stop": "e"}], ids=str
)
def test_a_streamed_completion_is_the_whole_completion(http: httpx.Client, extra: dict[str, Any]) -> None:
    body = {"model": NAME, "prompt": ["Hello world", "I stop."], "seed": 4, "max_tokens": 20} | extra
    whole = http.post("/v1/completions", json=body).json()
    chunks = stream(http, "/v1/completions", body)
    assert folded_text(chunks, 2 * extra.get("n", 1)) == whole["choices"]
    assert used(chunks[-1]) == used(whole)


THOUGHT = "I think, 40 + 2.\n</think>\n\nThe answer is forty-two."


@pytest.mark.parametrize("stop", [None, "forty", "is f", "think", "never"])
def test_reasoning_content_and_logprobs_are_told_apart_alike(scripted: Start, stop: str | None) -> None:
    _, http = scripted(answering(THOUGHT))
    body = BASE | {"enable_thinking": True, "logprobs": True, "top_logprobs": 1, "stop": stop, "max_tokens": 200}
    whole = http.post("/v1/chat/completions", json=body).json()
    chunks = stream(http, "/v1/chat/completions", body)
    assert folded_chat(chunks, 1, logprobs=True) == whole["choices"]
    assert used(chunks[-1]) == used(whole)
    choice = whole["choices"][0]
    content, reasoning = choice["message"]["content"], choice["message"]["reasoning_content"]
    assert reasoning == "I think, 40 + 2."  # stop strings are about the answer
    assert content == "The answer is forty-two.".partition(stop)[0] if stop else "The answer is forty-two."
    spelled = "".join(entry["token"] for entry in choice["logprobs"]["content"])
    assert spelled.startswith(content)
    assert len(spelled) - len(content) < 8  # nothing but the rest of the token that a stop string cut
    details = whole["usage"]["completion_tokens_details"]
    assert 0 < details["reasoning_tokens"] <= whole["usage"]["completion_tokens"]


@pytest.mark.parametrize("portion", [1, 2, 3, 100])
def test_how_many_tokens_an_event_holds_makes_no_difference(scripted: Start, portion: int) -> None:
    def make(folder: Path) -> ScriptedEngine:
        def script(_prompt: str, sampling: SamplingParams) -> list[TokenEvent]:
            *spelled, last = engine.spell("Grüße, 日本語! stop here", sampling)
            ids = [token for event in spelled for token in event.token_ids]
            logprobs = [known for event in spelled for known in event.logprobs]
            cuts = range(0, len(ids), portion)
            parts = [TokenEvent(tuple(ids[a : a + portion]), tuple(logprobs[a : a + portion])) for a in cuts]
            return [*parts, last]

        engine = ScriptedEngine(folder, script)
        return engine

    _, http = scripted(make)
    body = BASE | {"logprobs": True, "stop": "stop"}
    choice = http.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert choice["message"]["content"] == "Grüße, 日本語! "
    spelled = b"".join(bytes(entry["bytes"]) for entry in choice["logprobs"]["content"])
    assert spelled.decode() == "Grüße, 日本語! st"  # part of the last token is content
    assert folded_chat(stream(http, "/v1/chat/completions", body), 1, logprobs=True) == [choice]
