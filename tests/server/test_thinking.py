"""Thinking over HTTP: what was understood and what happened is told, it can be ended by hand, no answer is empty."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwench.engine.request import SamplingParams, TokenEvent
from qwench.text.model import ModelText
from tests.server.conftest import NAME, Start, wait_until
from tests.server.scripted import ScriptedEngine, answering
from tests.server.test_laws import folded_chat, stream

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello, what is the answer?"}]
SWITCHES: tuple[dict[str, Any], ...] = (
    {"thinking_budget": 16},
    {"thinking_budget": 1},
    {"thinking_budget": 0},
    {"enable_thinking": True},
    {"enable_thinking": False},
    {"think": "low"},
    {"thinking": {"type": "enabled", "budget_tokens": 40}},
    {"reasoning": {"max_tokens": 30}},
    {"chat_template_kwargs": {"enable_thinking": True, "thinking_budget": 24}},
    {},
)


def post(http: httpx.Client, **fields: Any) -> httpx.Response:
    answer = http.post(CHAT, json={"model": NAME, "messages": HELLO, **fields})
    assert answer.status_code == 200, answer.text
    return answer


def random_fields(rng: random.Random, text: ModelText) -> dict[str, Any]:
    """A request to random weights: they want nothing in particular, so biases give them a will."""
    strange = ("<|im_end|>", "</think>", "<think>", "<tool_call>", "<|endoftext|>")
    wanted = rng.sample([*(text.tokenizer.id_of(name) for name in strange), *text.tokenizer.encode("\n")], 2)
    return {
        **rng.choice(SWITCHES),
        "max_tokens": rng.choice((2, 3, 5, 9, 24, 60, 100)),
        "n": rng.choice((1, 1, 3)),
        "temperature": rng.choice((0, 0.7, 1.5)),
        "seed": rng.randrange(1000),
        "logit_bias": {str(token): rng.choice((-100, 3, 6, 100)) for token in wanted},
    }


def check(body: dict[str, Any], told: dict[str, Any]) -> None:
    """The promises about one response."""
    for choice in told["choices"]:
        message, details = choice["message"], choice["finish_details"]
        assert message["content"].strip(), (body, choice)
        budget = told["thinking"]["budget"]
        if budget is not None:
            assert details["thinking_tokens"] <= budget + told["thinking"]["closing_allowance"]
        assert details["closed_by"] is not None or details["thinking_tokens"] == 0
    thought = sum(choice["finish_details"]["thinking_tokens"] for choice in told["choices"])
    assert told["usage"]["completion_tokens_details"]["reasoning_tokens"] == thought


def test_no_answer_of_two_tokens_or_more_is_empty_streaming_or_not(http: httpx.Client, text: ModelText) -> None:
    for seed in range(40):
        body = {"model": NAME, "messages": HELLO, **random_fields(random.Random(seed), text)}
        whole = post(http, **body).json()
        check(body, whole)
        if seed % 4 == 0:
            assert folded_chat(stream(http, CHAT, body), body["n"], logprobs=False) == whole["choices"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_answer_is_empty_in_thousands_of_requests(http: httpx.Client, text: ModelText) -> None:
    for seed in range(1000, 3000):
        body = {"model": NAME, "messages": HELLO, **random_fields(random.Random(seed), text)}
        check(body, post(http, **body).json())


def test_only_an_answer_of_one_token_may_say_nothing_and_then_says_length(http: httpx.Client) -> None:
    (choice,) = post(http, enable_thinking=True, max_tokens=1).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")


def test_what_was_understood_is_echoed_and_presets_follow_the_mode(http: httpx.Client, text: ModelText) -> None:
    answer = post(http, reasoning={"max_tokens": 24}, reasoning_effort="high", max_tokens=60)
    allowance = text.chat_prompt(HELLO).rules.sentence.index(text.tokenizer.id_of("</think>") or 0) + 1 + 8
    assert answer.json()["thinking"] == {
        "enabled": True,
        "budget": 24,
        "closing_allowance": allowance,
        "from": ["reasoning_effort", "reasoning.max_tokens"],
    }
    assert answer.headers["x-qwench-warnings"] == "reasoning_effort: gives way to reasoning.max_tokens"
    off = post(http, think=False, max_tokens=3).json()
    assert off["thinking"] == {"enabled": False, "budget": None, "closing_allowance": None, "from": ["think"]}
    assert off["choices"][0]["finish_details"] == {"thinking_tokens": 0, "closed_by": None, "answer_repeats": False}


def test_fields_that_mean_nothing_here_are_named(http: httpx.Client) -> None:
    warnings = post(http, thinking_level=3, thinking_budget=500, max_tokens=4).headers["x-qwench-warnings"]
    assert "'thinking_level': unknown field, ignored, thinking is steered by enable_thinking" in warnings
    assert "thinking_budget: max_tokens is 4, so thinking ends earlier" in warnings


def test_every_choice_has_a_budget_of_its_own(http: httpx.Client, text: ModelText) -> None:
    letter, closing = text.tokenizer.encode("a")[0], text.tokenizer.id_of("</think>")
    bias = {str(letter): 100, str(closing): -100}
    told = post(http, thinking_budget=16, max_tokens=400, n=3, temperature=0, logit_bias=bias).json()
    for choice in told["choices"]:
        assert choice["finish_details"]["closed_by"] == "budget"
        assert choice["message"]["reasoning"].startswith("a" * 24 + "\n\nConsidering the limited time")
        assert choice["message"]["content"].startswith("aaa")
        assert choice["finish_details"]["answer_repeats"]
        assert choice["finish_reason"] == "length"


def test_reasoning_may_be_left_out_and_is_still_counted(scripted: Start) -> None:
    _, http = scripted(answering("Hm.\n</think>\n\nYes."))
    body = {"enable_thinking": True, "include_reasoning": False}
    whole = post(http, **body).json()
    (choice,) = whole["choices"]
    assert (choice["message"]["content"], choice["message"]["reasoning"]) == ("Yes.", None)
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] > 2
    assert folded_chat(stream(http, CHAT, {"messages": HELLO, **body}), 1, logprobs=False) == whole["choices"]


def test_stop_strings_are_looked_for_in_the_answer_only(scripted: Start) -> None:
    _, http = scripted(answering("One.\n\nTwo.\n</think>\n\nThree.\n\nFour."))
    (choice,) = post(http, enable_thinking=True, stop=["\n\n", "Two"]).json()["choices"]
    assert (choice["message"]["reasoning"], choice["message"]["content"]) == ("One.\n\nTwo.", "Three.")


def thinking_on(folder: Path) -> ScriptedEngine:
    """Thinks until it is told to answer."""

    def script(_prompt: str, sampling: SamplingParams) -> Any:
        yield from engine.spell("Wait. ", sampling)[:-1]
        yield engine.go
        ids = engine.text.tokenizer.encode("</think>\n\nYes.")
        yield TokenEvent(tuple(ids), closed_by="control")
        yield TokenEvent(finish_reason="stop", closed_by="control")

    engine = ScriptedEngine(folder, script)
    return engine


def test_thinking_is_ended_by_hand_while_it_runs(scripted: Start) -> None:
    engine, http = scripted(thinking_on)
    chunks: list[dict[str, Any]] = []
    order: dict[str, Any] = {"action": "reasoning_end"}
    body = {"messages": HELLO, "enable_thinking": True, "stream": True, "n": 2}
    with http.stream("POST", CHAT, json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                chunks.append(json.loads(line.removeprefix("data: ")))
            if len(chunks) == 3 and not engine.go.is_set():
                order["id"] = chunks[0]["id"]
                told = http.post(f"{CHAT}/control", json=order)
                assert (told.status_code, told.json()) == (200, {**order, "success": True})
                wait_until(lambda: len(engine.told_to_answer) == 2)
                engine.go.set()
    details = [
        choice["finish_details"] for chunk in chunks for choice in chunk["choices"] if "finish_details" in choice
    ]
    assert [each["closed_by"] for each in details] == ["control"] * 2
    assert http.post(f"{CHAT}/control", json=order).status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"id": "chatcmpl-0", "action": "reasoning_end"}, 404, "id"),
        ({"action": "reasoning_end"}, 400, "id"),
        ({"id": "x"}, 400, "action"),
        ({"id": "x", "action": "stop"}, 400, "action"),
        ({"id": 5, "action": "reasoning_end"}, 400, "id"),
    ],
)
def test_a_control_that_reaches_nothing_says_so(
    http: httpx.Client, body: dict[str, Any], status: int, param: str
) -> None:
    told = http.post(f"{CHAT}/control", json=body)
    assert (told.status_code, told.json()["error"]["param"]) == (status, param)
    assert told.json()["error"]["message"].endswith(".")


def test_the_real_engine_ends_thinking_by_hand(address: str, text: ModelText) -> None:
    """Two requests at once, as a client would: one thinks for long, the other ends it."""
    letter, closing = text.tokenizer.encode("a")[0], text.tokenizer.id_of("</think>")
    bias = {str(token): -100 for token in range(text.tokenizer.size) if token != letter}
    body = {"model": "tiny", "messages": HELLO, "enable_thinking": True, "stream": True, "temperature": 2.0}
    body["logit_bias"] = bias
    assert str(closing) in bias

    async def talk() -> list[dict[str, Any]]:
        chunks: list[dict[str, Any]] = []
        async with (
            httpx.AsyncClient(base_url=address, timeout=30) as client,
            client.stream("POST", CHAT, json=body) as answer,
        ):
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    chunks.append(json.loads(line.removeprefix("data: ")))
                if len(chunks) == 2 and line:
                    order = {"id": chunks[0]["id"], "action": "reasoning_end"}
                    assert (await client.post(f"{CHAT}/control", json=order)).status_code == 200
        return chunks

    chunks = asyncio.run(talk())
    assert chunks[-1]["choices"][0]["finish_details"]["closed_by"] == "control"
    assert any(choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"])
