"""Ollama's API with Ollama's own client, and what other clients of it send."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, get_args

import httpx
import ollama
import pytest
from ollama._types import ChatRequest, GenerateRequest
from ollama._types import Options as ClientOptions

from qwench import __version__
from qwench.engine.client import EngineStatus
from qwench.engine.request import TokenEvent
from qwench.server.ollama.fields import FIELDS, OPTIONS, OllamaChatRequest, OllamaGenerateRequest, Options, sift_options
from qwench.server.schemas import Endpoint, Treatment, rules
from qwench.text.model import ModelText
from tests.media.files import encoded, noise
from tests.server.conftest import NAME, Start
from tests.server.scripted import answering
from tests.server.test_media import seeing
from tests.server.test_tools import ADD, BOTH, CALLS, WEATHER

HELLO: Any = [{"role": "user", "content": "Hello, what is the answer?"}]
GREEDY: dict[str, Any] = {"temperature": 0, "num_predict": 12}
CHAT, GENERATE = "/api/chat", "/api/generate"
KINDS: dict[Endpoint, Any] = {"ollama chat": OllamaChatRequest, "ollama generate": OllamaGenerateRequest}


@contextmanager
def speaking(http: httpx.Client) -> Iterator[ollama.Client]:
    """Ollama's client of the same server."""
    client = ollama.Client(host=str(http.base_url))
    yield client
    client._client.close()


@pytest.fixture
def client(http: httpx.Client) -> Iterator[ollama.Client]:
    with speaking(http) as client:
        yield client


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    return [json.loads(line) for line in answer.text.splitlines()]


@pytest.mark.parametrize(("endpoint", "params"), [("ollama chat", ChatRequest), ("ollama generate", GenerateRequest)])
def test_every_field_of_the_client_is_in_the_table(endpoint: Endpoint, params: Any) -> None:
    known = rules(endpoint, FIELDS).keys()
    assert set(params.model_fields) <= known
    assert {f"{OPTIONS}{name}" for name in ClientOptions.model_fields} <= known


@pytest.mark.parametrize("endpoint", KINDS)
def test_the_supported_fields_are_those_of_the_request_type(endpoint: Endpoint) -> None:
    table = rules(endpoint, FIELDS)
    assert endpoint in get_args(Endpoint)
    assert len(table) == sum(endpoint in rule.endpoints for rule in FIELDS)
    supported = {name for name, rule in table.items() if rule.treatment is Treatment.SUPPORTED}
    assert supported == {*KINDS[endpoint].model_fields, *(f"{OPTIONS}{name}" for name in Options.model_fields)}


def test_a_chat_is_the_answer_it_is_elsewhere(client: ollama.Client, http: httpx.Client) -> None:
    answer = client.chat(model=NAME, messages=HELLO, options=GREEDY)
    body = {"messages": HELLO, "temperature": 0, "max_tokens": 12}
    there = http.post("/v1/chat/completions", json=body).json()
    assert answer.message.content == there["choices"][0]["message"]["content"]
    assert (answer.model, answer.done, answer.done_reason) == (NAME, True, "length")
    assert answer.prompt_eval_count == there["usage"]["prompt_tokens"]
    assert answer.eval_count == 12
    assert answer.created_at is not None
    assert abs(datetime.now(UTC) - datetime.fromisoformat(answer.created_at)).total_seconds() < 60
    assert answer.total_duration is not None
    assert answer.prompt_eval_duration is not None
    assert answer.eval_duration is not None
    assert 0 < answer.prompt_eval_duration + answer.eval_duration <= answer.total_duration < 60e9
    assert answer.load_duration == 0


@pytest.mark.parametrize("think", [True, False])
def test_a_stream_adds_up_to_the_whole(client: ollama.Client, text: ModelText, think: bool) -> None:
    asked: Any = {"model": NAME, "messages": HELLO, "options": {**GREEDY, "num_predict": 40}, "think": think}
    whole = client.chat(**asked)
    pieces = list(client.chat(stream=True, **asked))
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    assert "".join(piece.message.thinking or "" for piece in pieces) == (whole.message.thinking or "")
    assert bool(whole.message.thinking) == think
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].eval_count == whole.eval_count
    assert pieces[-1].done_reason == whole.done_reason


def test_a_prompt_is_a_users_words(client: ollama.Client) -> None:
    answer = client.generate(model=NAME, prompt="Why?", system="Be brief.", options=GREEDY)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert answer.response == client.chat(model=NAME, messages=messages, options=GREEDY).message.content
    pieces = client.generate(model=NAME, prompt="Why?", system="Be brief.", options=GREEDY, stream=True)
    assert "".join(piece.response or "" for piece in pieces) == answer.response


def test_raw_prompts_and_gaps_go_where_completions_go(client: ollama.Client, http: httpx.Client) -> None:
    raw = client.generate(model=NAME, prompt="Once upon", raw=True, options=GREEDY)
    body = {"prompt": "Once upon", "temperature": 0, "max_tokens": 12}
    assert raw.response == http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    filled = client.generate(model=NAME, prompt="def f(", suffix="return 1", options=GREEDY)
    there = http.post("/v1/completions", json={**body, "prompt": "def f(", "suffix": "return 1"}).json()
    assert filled.response == there["choices"][0]["text"]
    unbounded = {"prompt": "Once", "raw": True, "options": {"temperature": 0, "num_predict": -1}, "stream": False}
    assert http.post(GENERATE, json=unbounded).json()["eval_count"] > 16  # OpenAI's default does not hold here


def test_tools_are_called_and_their_results_read(scripted: Start) -> None:
    engine, http = scripted(answering(BOTH))
    results: Any = [{"role": "tool", "content": "sunny", "tool_name": "get_weather"}]
    with speaking(http) as client:
        whole = client.chat(model=NAME, messages=HELLO, tools=[WEATHER, ADD])
        pieces = list(client.chat(model=NAME, messages=HELLO, tools=[WEATHER, ADD], stream=True))
        client.chat(model=NAME, messages=[*HELLO, whole.message, *results])
    streamed = [call for piece in pieces for call in piece.message.tool_calls or ()]
    for calls in (whole.message.tool_calls or (), streamed):
        assert [(call.function.name, dict(call.function.arguments)) for call in calls] == CALLS
    assert (whole.done_reason, whole.message.content) == ("stop", "I look.")
    assert "".join(piece.message.content or "" for piece in pieces) == "I look."
    assert "get_weather" in engine.prompts[-1]
    assert "<tool_response>\nsunny\n</tool_response>" in engine.prompts[-1]


def test_pictures_are_seen(scripted: Start) -> None:
    engine, http = scripted(seeing)
    picture = encoded(noise(64, 64))
    with speaking(http) as client:
        told = client.chat(model=NAME, messages=[{"role": "user", "content": "Look", "images": [picture]}])
        assert told.message.content == "I see."
        client.generate(model=NAME, prompt="Look", images=[picture])
    assert [[span.media.kind for span in spans] for spans in engine.shown] == [["image"], ["image"]]
    broken = {"messages": [{"role": "user", "content": "x", "images": ["bm90IGEgcGljdHVyZQ=="]}]}
    answer = http.post(CHAT, json=broken)
    assert answer.status_code == 400, answer.text


def test_a_blind_model_says_so(http: httpx.Client) -> None:
    picture = base64.b64encode(encoded(noise(8, 8))).decode()
    answer = http.post(CHAT, json={"messages": [{"role": "user", "content": "Look", "images": [picture]}]})
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}


@pytest.mark.parametrize(
    "form", ["json", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}]
)
def test_a_format_is_held_to(client: ollama.Client, form: Any) -> None:
    answer = client.chat(model=NAME, messages=HELLO, format=form, options={"temperature": 0, "num_predict": 200})
    if answer.done_reason == "stop":
        told = json.loads(answer.message.content or "")
        assert isinstance(told, dict)
        assert form == "json" or isinstance(told["a"], int)
    else:
        assert (answer.message.content or "").lstrip().startswith("{")


def test_options_reach_the_engine_under_their_own_names(scripted: Start) -> None:
    engine, http = scripted(answering("Yes."))
    options = {"temperature": 0.25, "top_k": 5, "top_p": 0.5, "min_p": 0.1, "seed": 7, "stop": ["x"], "num_predict": 9}
    penalties = {"presence_penalty": 0.5, "frequency_penalty": -0.5}
    sent = {**options, **penalties, "repeat_penalty": 1.2}
    for path, more in (
        (CHAT, {"messages": HELLO}),
        (GENERATE, {"prompt": "a"}),
        (GENERATE, {"prompt": "a", "raw": True}),
    ):
        assert http.post(path, json={**more, "options": sent, "stream": False}).status_code == 200
        sampling = engine.submitted[-1]
        given = {name: getattr(sampling, name) for name in (*options, *penalties) if name != "num_predict"}
        assert given == {name: value for name, value in sent.items() if name in given}
        assert (sampling.max_tokens, sampling.repetition_penalty) == (9, 1.2)


def test_log_probabilities_come_with_their_tokens(http: httpx.Client) -> None:
    body = {"messages": HELLO, "options": GREEDY, "logprobs": True, "top_logprobs": 2}
    whole = http.post(CHAT, json={**body, "stream": False}).json()
    streamed = [each for line in lines(http.post(CHAT, json=body)) for each in line.get("logprobs", ())]
    assert whole["logprobs"] == streamed
    assert "".join(each["token"] for each in streamed) == whole["message"]["content"]
    assert all(len(each["top_logprobs"]) == 2 for each in streamed)


WRONG: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"messages": HELLO, "options": {"temperature": 900}}, "options.temperature is 900"),
    (CHAT, {"messages": HELLO, "options": {"num_predict": 0}}, "options.num_predict is 0"),
    (CHAT, {"messages": HELLO, "options": {"repeat_penalty": 0}}, "options.repeat_penalty is 0"),
    (CHAT, {"messages": HELLO, "options": {"top_k": "five"}}, "options.top_k is 'five'"),
    (CHAT, {"messages": HELLO, "options": {"mirostat": 2}}, "options.mirostat is not supported"),
    (CHAT, {"messages": HELLO, "options": "none"}, "options is 'none'"),
    (CHAT, {"messages": HELLO, "format": "xml"}, "format is 'xml'; give json, or a JSON schema"),
    (CHAT, {"messages": HELLO, "format": {"type": "strange"}}, "format"),
    (CHAT, {"messages": HELLO, "think": "hard"}, "think is 'hard'"),
    (CHAT, {"messages": "Hello"}, "messages is 'Hello'"),
    (CHAT, {"messages": [{"role": "king", "content": "x"}]}, "messages[0] has the role 'king'"),
    (CHAT, {"messages": [{"role": "user", "content": 3}]}, "messages[0].content is a number"),
    (CHAT, {"messages": [{"role": "user", "content": "x", "images": "y"}]}, "messages[0].images is 'y'"),
    (CHAT, {"messages": [{"role": "assistant", "content": "", "tool_calls": ["x"]}]}, "messages[0].tool_calls[0]"),
    (GENERATE, {"prompt": "a", "template": "{{ .Prompt }}"}, "template is not supported"),
    (GENERATE, {"prompt": "a", "context": [1, 2]}, "context is not supported"),
    (GENERATE, {"prompt": "a", "suffix": "b", "system": "c"}, "system cannot be combined with suffix"),
    (GENERATE, {"prompt": "a", "raw": True, "think": True}, "think cannot be combined with raw"),
    ("/api/show", {}, "model is missing"),
]


@pytest.mark.parametrize(("path", "body", "sentence"), WRONG)
def test_what_is_wrong_is_told_in_ollamas_shape_and_words(
    http: httpx.Client, path: str, body: dict[str, Any], sentence: str
) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == 400, answer.text
    assert set(answer.json()) == {"error"}
    assert sentence in answer.json()["error"]


def test_other_failures_have_ollamas_shape_too(client: ollama.Client, scripted: Start) -> None:
    with pytest.raises(ollama.ResponseError, match=f"'qwen3:4b' is not served here; send '{NAME}'") as failure:
        client.chat(model="qwen3:4b", messages=HELLO)
    assert failure.value.status_code == 404
    engine, http = scripted(answering("Yes."))
    assert set(http.post(CHAT, content=b"{").json()) == {"error"}
    assert set(http.get("/api/pull").json()) == {"error"}
    engine.become(EngineStatus("loading"))
    assert http.post(GENERATE, json={"model": NAME}).status_code == 503
    with speaking(http) as loading:
        assert loading.ps().models == []


def test_what_is_ignored_is_told(http: httpx.Client) -> None:
    options = {"num_ctx": 10**6, "num_gpu": 1, "brand_new": 1, **GREEDY}
    body = {"messages": HELLO, "keep_alive": "5m", "truncate": True, "options": options, "stream": False}
    told = http.post(CHAT, json=body).headers["x-qwench-warnings"]
    for name in (
        "keep_alive: ignored",
        "truncate: ignored",
        "options.num_gpu: ignored",
        "'options.brand_new': unknown",
    ):
        assert name in told
    assert "options.num_ctx: the window is 512 tokens" in told
    assert sift_options({"options": {"num_keep": None}, "format": None}, "ollama chat") == ({}, [])


def test_a_failure_in_a_stream_is_its_last_line(scripted: Start) -> None:
    engine, http = scripted(answering("Yes."))
    whole = engine.script
    failure = TokenEvent(finish_reason="error", error="planned")
    engine.script = lambda prompt, sampling: [*list(whole(prompt, sampling))[:1], failure]
    told = lines(http.post(CHAT, json={"messages": HELLO}))
    assert told[0]["message"]["content"]
    assert set(told[-1]) == {"error"}


def test_asking_for_nothing_loads_the_model_and_lets_it_go(http: httpx.Client) -> None:
    asked: tuple[tuple[str, dict[str, Any], str], ...] = (
        (GENERATE, {}, "response"),
        (CHAT, {"messages": []}, "message"),
    )
    for path, extra, said in asked:
        loaded = http.post(path, json={"model": NAME, **extra}).json()
        assert (loaded["done"], loaded["done_reason"]) == (True, "load")
        assert said in loaded
        assert http.post(path, json={"model": NAME, "keep_alive": 0, **extra}).json()["done_reason"] == "unload"


def test_the_served_model_is_listed_and_shown(client: ollama.Client, http: httpx.Client, text: ModelText) -> None:
    (listed,), (loaded,) = client.list().models, client.ps().models
    assert (listed.model, loaded.model) == (NAME, NAME)
    assert listed.digest == loaded.digest
    assert len(listed.digest or "") == 64
    assert listed.size is not None
    assert listed.size > 10_000
    assert listed.details is not None
    assert (listed.details.format, listed.details.family) == ("safetensors", "qwen3_5_text")
    assert http.get("/api/ps").json()["models"][0]["context_length"] == 512
    shown = client.show(f"{NAME}:latest")
    assert shown.template == text.chat.source
    assert shown.modelinfo is not None
    assert shown.modelinfo["qwen3_5_text.context_length"] == 512
    assert shown.modelinfo["general.parameter_count"] > 10_000
    assert shown.capabilities is not None
    assert {"completion", "tools", "thinking", "insert"} <= set(shown.capabilities)
    assert "vision" not in shown.capabilities
    assert client.chat(model=f"{NAME}:latest", messages=HELLO, options=GREEDY).model == NAME
    told = http.get("/api/version").json()
    assert told["qwench"] == __version__
    assert [int(part) for part in told["version"].split(".")] >= [0, 6, 4]  # what editors ask for
