"""`reasoning_strategy` over HTTP, with the real client and engine: what is told, and what a client may not do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai as sdk
import pytest
from openai import OpenAI

from qwench.config import EngineConfig
from qwench.engine.client import EngineClient
from qwench.reason.checks import Command
from qwench.reason.sandbox import Bounds
from qwench.server.prepare import prepare_chat
from qwench.server.service import ServerSettings
from qwench.text.model import ModelText
from tests.server.conftest import Start, running, wait_until
from tests.server.scripted import answering

SUM: Any = [{"role": "user", "content": "What is 47 + 38?"}]
CHECKERS = {"yes": Command(("true",), Bounds(confined=False)), "no": Command(("false",), Bounds(confined=False))}


@pytest.fixture(scope="module")
def nano() -> Iterator[OpenAI]:
    import torch

    torch.set_num_threads(1)
    engine = EngineClient(EngineConfig(model="nano"))
    text = ModelText(engine.files, engine.model)
    engine.start(text.vocabulary)
    engine.wait_ready(60)
    settings = ServerSettings(names=("nano",), checkers=CHECKERS)
    with (
        running(engine, text, settings) as address,
        OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client
    engine.close()


def ask(client: OpenAI, strategy: object, **more: Any) -> Any:
    fields = {"messages": SUM, "model": "nano", "max_tokens": 100, "seed": 3, **more}
    return client.chat.completions.create(
        **fields, extra_body={"reasoning_strategy": strategy, "enable_thinking": True}
    )


def test_a_vote_is_an_ordinary_completion_that_says_how_it_was_chosen(nano: OpenAI) -> None:
    answer = ask(nano, {"method": "vote", "samples": 8, "budget": 600})
    (choice,) = answer.choices
    told = answer.model_extra["reasoning_strategy"]
    assert choice.message.content == "85"
    assert choice.message.model_extra["reasoning_content"]
    assert choice.finish_reason == "stop"
    assert told["votes"][0]["answer"] == "85"
    assert told["tokens"]["at_most"] == 600
    assert answer.usage.completion_tokens == told["tokens"]["used"] == sum(each["tokens"] for each in told["samples"])
    assert answer.usage.prompt_tokens == told["tokens"]["prompt"] < 40
    assert answer.model_extra["timings"]["predicted_n"] == answer.usage.completion_tokens


def test_a_stream_tells_the_same(nano: OpenAI) -> None:
    whole = ask(nano, {"method": "vote", "samples": 3})
    chunks = list(ask(nano, {"method": "vote", "samples": 3}, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    told = chunks[-2].model_extra["reasoning_strategy"]
    assert told["votes"] == whole.model_extra["reasoning_strategy"]["votes"]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == told["tokens"]["used"]


@pytest.mark.parametrize(
    ("check", "passed"),
    [("arithmetic", True), ({"regex": "^85$"}, True), ({"checker": "yes"}, True), ({"checker": "no"}, False)],
)
def test_best_of_with_a_check(nano: OpenAI, check: object, passed: bool) -> None:
    told = ask(nano, {"method": "best_of", "samples": 3, "check": check}).model_extra["reasoning_strategy"]
    assert told["passed"] is passed
    assert len(told["samples"]) == (1 if passed else 3)
    assert told["samples"][0]["check"]["passed"] is passed


@pytest.mark.parametrize(
    ("strategy", "more", "param", "sentence"),
    [
        ({"method": "votes"}, {}, "reasoning_strategy.method", "is 'votes'; give one of vote, best_of, forest"),
        ({"method": "vote", "samples": 1000}, {}, "reasoning_strategy.samples", "is 1000; give a whole number"),
        ({"method": "vote", "sample": 3}, {}, "reasoning_strategy", "no field 'sample'; did you mean samples?"),
        ({"method": "best_of"}, {}, "reasoning_strategy.check", "best_of needs a check"),
        ({"method": "best_of", "check": {"command": ["true"]}}, {}, "check", "commands are not run for clients"),
        ({"method": "best_of", "check": {"checker": "maybe"}}, {}, "check", "no checker 'maybe'; there is no, yes"),
        ({"method": "vote"}, {"n": 2}, "n", "n cannot be combined with reasoning_strategy"),
        ({"method": "vote"}, {"logprobs": True}, "logprobs", "logprobs cannot be combined"),
        ({"method": "vote"}, {"temperature": 0}, "temperature", "every sample would be the same"),
        ({"method": "vote"}, {"max_tokens": 10**6}, "max_tokens", "window"),
        ("vote", {}, "reasoning_strategy", "reasoning_strategy is 'vote'"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(
    nano: OpenAI, strategy: object, more: dict[str, Any], param: str, sentence: str
) -> None:
    with pytest.raises(sdk.BadRequestError) as refusal:
        ask(nano, strategy, **more)
    assert sentence in str(refusal.value)
    assert refusal.value.param == param
    assert ask(nano, {"method": "vote", "samples": 1}).choices[0].message.content == "85"  # the server is unharmed


def test_without_the_field_nothing_is_told(nano: OpenAI, text: ModelText) -> None:
    answer = nano.chat.completions.create(messages=SUM, model="nano", max_tokens=5)
    assert answer.model_extra is not None
    assert "reasoning_strategy" not in answer.model_extra
    assert prepare_chat({"messages": SUM}, text).considering is None


def test_a_client_that_leaves_stops_its_samples(scripted: Start) -> None:
    def waiting(folder: Path) -> Any:
        engine = answering("never")(folder)
        engine.script = lambda _prompt, _sampling: [engine.go]
        return engine

    engine, http = scripted(waiting)
    body = {"messages": SUM, "max_tokens": 9, "reasoning_strategy": {"method": "vote", "samples": 5}}
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/chat/completions", json=body, timeout=1)
    wait_until(lambda: len(engine.submitted) > 1 and not engine.alive)
