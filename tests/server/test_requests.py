"""Raw HTTP: malformed bodies, unknown routes, keys, limits, and the small routes."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

import qwench
from qwench.server.keys import Key
from qwench.server.schemas import FIELDS
from qwench.text.chat import ChatTemplate
from qwench.text.model import ModelText
from tests.server.conftest import NAME, Start
from tests.server.scripted import answering
from tests.server.tiny import WINDOW

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]


def refused(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error object of a deterministic refusal."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"].endswith((".", "`."))
    assert "Traceback" not in error["message"]
    return error


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", r"not valid JSON at line 1, column 1"),
        (b'{"messages": [\n  {"role" "user"}]}', r"line 2, column 11"),
        (b'{"temperature": NaN}', r"NaN is not a JSON number"),
        (b'{"temperature": -Infinity}', r"-Infinity is not a JSON number"),
        (b"[1, 2]", r"not a JSON object"),
        (b'"text"', r"not a JSON object"),
        (b"\xff{}", r"not UTF-8 at byte 0"),
        (b'{"a":' + b"[" * 100_000, r"nested too deeply|not valid JSON"),
        (b'{"a":' + b"[" * 500 + b"]" * 500 + b"}", r"nested too deeply, in more than 500 levels"),
        (b'{"seed": ' + b"9" * 5000 + b"}", r"not usable JSON"),
    ],
)
@pytest.mark.parametrize("route", [CHAT, COMPLETIONS, "/tokenize"])
def test_a_body_that_is_no_json_object_is_told_where(
    http: httpx.Client, route: str, body: bytes, sentence: str
) -> None:
    assert re.search(sentence, refused(http.post(route, content=body))["message"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["Hello"]}, "messages[0]"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": ["x"]}]}]}, "messages[0].content[0].type"),
        ({"messages": [*HELLO, {"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
         "messages[1].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 1e999}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -3}, "max_tokens"),
        ({"max_tokens": 10_000}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"stop": 5}, "stop"),
        ({"stop": ["x"] * 33}, "stop"),
        ({"stop": ["x", 5]}, "stop"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"seed": "x"}, "seed"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0]"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"enable_thinking": "false"}, "enable_thinking"),
        ({"chat_template_kwargs": {"enable_thinking": "false"}}, "chat_template_kwargs.enable_thinking"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"range": 5}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "none"}, "reasoning_effort"),
        ({"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}}, "enable_thinking"),
        ({"enable_thinking": True, "reasoning_effort": "none"}, "reasoning_effort"),
        ({"thinking_budget": -1}, "thinking_budget"),
        ({"thinking_budget": 2**31}, "thinking_budget"),
        ({"thinking_budget": "many"}, "thinking_budget"),
        ({"thinking": {"type": "enabled", "budget_tokens": -5}}, "thinking.budget_tokens"),
        ({"reasoning_budget": -2}, "reasoning_budget"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"think": "much"}, "think"),
        ({"thinking": {"type": "maybe"}}, "thinking.type"),
        ({"reasoning": {"exclude": "yes"}}, "reasoning.exclude"),
        ({"thinking_budget": 64, "reasoning_budget": 65}, "thinking_budget"),
        ({"reasoning_effort": "low", "think": "high"}, "reasoning_effort"),
        ({"think": True, "thinking": {"type": "disabled"}}, "think"),
        ({"messages": [{"role": "user", "content": "half \ud800"}]}, None),
    ],
    ids=str,
)  # fmt: skip
def test_what_chat_cannot_do_is_refused_by_field(http: httpx.Client, fields: dict[str, Any], param: str | None) -> None:
    body = json.dumps({"model": NAME, "messages": HELLO, **fields}).replace("Infinity", "1e999")
    error = refused(http.post(CHAT, content=body))
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert param.split("[")[0].split(".")[0] in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [""]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": [5, 99_999]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
    ids=str,
)
def test_what_completions_cannot_do_is_refused_by_field(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    assert refused(http.post(COMPLETIONS, json={"prompt": "Hello", **fields}))["param"] == param


def test_ignored_and_unknown_fields_are_named_in_a_header(http: httpx.Client) -> None:
    fields = {"store": True, "metadata": {"a": "b"}, "verbosity": "high", "größe\n": 1, "service_tier": "auto"}
    for stream in (False, True):
        answer = http.post(CHAT, json={"messages": HELLO, "max_tokens": 1, "stream": stream, **fields})
        assert answer.status_code == 200
        warnings = answer.headers["x-qwench-warnings"]
        named = [warning.split(":")[0] for warning in warnings.split("; ")]
        assert sorted(named) == sorted(["store", "metadata", "verbosity", r"'gr\xf6\xdfe\n'"])
    many = {f"unknown_{number}": 1 for number in range(1000)}
    assert len(http.post(CHAT, json={"messages": HELLO, "max_tokens": 1, **many}).headers["x-qwench-warnings"]) <= 2000
    assert "x-qwench-warnings" not in http.post(CHAT, json={"messages": HELLO, "max_tokens": 1}).headers


def test_null_means_absent(http: httpx.Client) -> None:
    nulls = {rule.name: None for rule in FIELDS if "chat" in rule.endpoints and rule.name not in ("messages", "model")}
    answer = http.post(CHAT, json={**nulls, "messages": HELLO, "max_tokens": 1})
    assert answer.status_code == 200
    assert "x-qwench-warnings" not in answer.headers


def test_unknown_routes_and_methods_answer_in_the_same_shape(http: httpx.Client) -> None:
    assert refused(http.get("/v2/chat"), 404)["code"] == "unknown_url"
    assert "GET /v1/chat/completions is not possible" in refused(http.get(CHAT), 405)["message"]
    assert http.get(CHAT).headers["allow"] == "POST"
    assert "\\" in refused(http.post("/caf%C3%A9"), 404)["message"]  # what was asked, in ASCII


@pytest.mark.parametrize("path", ["/", "/v1/models", "/health", "/docs", "/v1/nowhere"])
def test_head_answers_as_get_does_without_the_body(http: httpx.Client, path: str) -> None:
    whole, head = http.get(path), http.head(path)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]
    assert http.head(CHAT).status_code == 405


def test_a_large_body_is_413_announced_or_not(http: httpx.Client) -> None:
    large = b'{"prompt": "' + b"a" * 200_001 + b'"}'
    assert "200000 bytes" in refused(http.post(COMPLETIONS, content=large), 413)["message"]
    pieces = (large[start : start + 50_000] for start in range(0, len(large), 50_000))
    assert refused(http.post(COMPLETIONS, content=pieces), 413)["code"] == "request_too_large"


def test_every_answer_has_a_request_id_the_callers_if_it_is_a_plain_one(http: httpx.Client) -> None:
    assert http.get("/version", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    first, second = (http.get("/nope", headers={"x-request-id": "a b" * 100}) for _ in range(2))
    assert first.headers["x-request-id"].startswith("req_")
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", "Basic c2VjcmV0", "secret", "Bearer secret2"])
def test_a_key_guards_every_route_but_health(scripted: Start, header: str | None) -> None:
    engine, http = scripted(answering("Hello"), keys=(Key.of("other"), Key.of("secret")))
    headers = {} if header is None else {"authorization": header}
    for route in ("/v1/models", "/docs", "/openapi.json", "/version", "/", "/nope"):
        assert refused(http.get(route, headers=headers), 401)["code"] == "invalid_api_key"
    answer = http.post(CHAT, json={"messages": HELLO}, headers=headers)
    assert refused(answer, 401)["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert http.get("/health", headers=headers).status_code == 200
    for good in ("Bearer secret", "bearer secret", "Bearer other"):
        assert http.post(CHAT, json={"messages": HELLO}, headers={"authorization": good}).status_code == 200
    assert http.post(CHAT, json={"messages": HELLO}, headers={"x-api-key": "other"}).status_code == 200
    first, second, other, again = engine.owners
    assert first == second != other == again
    assert "secret" not in first


def test_the_small_routes(http: httpx.Client, text: ModelText) -> None:
    assert http.get("/version").json() == {"version": qwench.__version__}
    assert http.get("/").json()["docs"] == "/docs"
    assert http.get("/health").json()["config"]["max_model_len"] == WINDOW
    docs = http.get("/docs").text
    assert all(f"<code>{rule.name}</code>" in docs for rule in FIELDS)
    assert "http://" not in docs.replace("http://localhost:8000", "")  # nothing is loaded from elsewhere
    assert "https://" not in docs
    document = http.get("/openapi.json").json()
    assert {CHAT, COMPLETIONS, "/v1/models", "/health"} <= document["paths"].keys()
    assert "messages" in document["components"]["schemas"]["ChatRequest"]["required"]


def test_tokens_there_and_back(http: httpx.Client, text: ModelText) -> None:
    told = "Hello <|im_start|> world"
    ids = text.tokenizer.encode(told)
    for field in ("prompt", "content"):
        answer = http.post("/tokenize", json={field: told, "return_token_strs": True}).json()
        assert answer["tokens"] == ids
        assert answer["count"] == len(ids)
        assert answer["max_model_len"] == WINDOW
        assert "".join(answer["token_strs"]) == told
    assert http.post("/detokenize", json={"tokens": ids}).json()["prompt"] == told
    plain = http.post("/tokenize", json={"prompt": told, "parse_special": False}).json()
    assert plain["count"] > len(ids)
    assert refused(http.post("/detokenize", json={"tokens": [10**9]}))["param"] == "tokens"
    assert refused(http.post("/tokenize", json={}))["param"] == "prompt"


def test_no_path_of_the_server_is_told(scripted: Start) -> None:
    engine, http = scripted(answering("Hello"))
    engine.text.template = ChatTemplate("{{ x.y.z }}", origin=str(engine.text.path / "chat_template.jinja"))
    broken = {"messages": HELLO}
    error = refused(http.post(CHAT, json=broken))
    assert "fails on these messages" in error["message"]
    for answer in (
        http.post(CHAT, json=broken),
        http.get("/health"),
        http.get("/v1/models"),
        http.get("/openapi.json"),
    ):
        assert str(engine.text.path.parent) not in answer.text


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/chat/completions", "send it to /v1/chat/completions, with a base URL that ends in /v1."),
        ("/models", "send it to /v1/models, with a base URL that ends in /v1."),
        (
            "/v1/v1/messages/count_tokens",
            "send it to /v1/messages/count_tokens, with a base URL that does not end in /v1.",
        ),
        ("/v1/api/chat", "send it to /api/chat, with a base URL that does not end in /v1."),
        ("/v1/embeddings", "/docs lists the routes."),
    ],
)
def test_a_base_url_that_is_not_quite_right_is_told_how_it_should_be(http: httpx.Client, path: str, told: str) -> None:
    for method in ("GET", "POST"):
        answer = http.request(method, path)
        assert answer.status_code == 404
        assert answer.json()["error"]["message"].endswith(told)


def test_a_base_url_that_is_not_quite_right_is_told_in_the_words_of_its_client(http: httpx.Client) -> None:
    headers = {"anthropic-version": "2023-06-01"}
    assert http.post("/v1/v1/messages", headers=headers).json()["error"]["type"] == "not_found_error"
    assert refused(http.post("/v1/v1/models"), 404)["code"] == "unknown_url"


def test_the_template_shows_the_prompt_that_chat_uses(http: httpx.Client) -> None:
    for switch in ({}, {"enable_thinking": True}, {"chat_template_kwargs": {"enable_thinking": True}}):
        rendered = http.post("/apply-template", json={"messages": HELLO, **switch}).json()["prompt"]
        assert rendered.endswith("<think>\n") == bool(switch)
        counted = http.post("/tokenize", json={"messages": HELLO, **switch}).json()
        used = http.post(CHAT, json={"messages": HELLO, "max_tokens": 1, **switch}).json()["usage"]["prompt_tokens"]
        assert counted["count"] == used == http.post("/tokenize", json={"prompt": rendered}).json()["count"]


@pytest.mark.parametrize("route", [CHAT, "/apply-template", "/tokenize"])
def test_a_switch_the_template_does_not_have_is_refused_everywhere(scripted: Start, route: str) -> None:
    engine, http = scripted(answering("Hello"))
    engine.text.template = ChatTemplate("<|im_start|>assistant\n")
    error = refused(http.post(route, json={"messages": HELLO, "enable_thinking": True}))
    assert error["param"] == "enable_thinking"
    assert "has no thinking mode" in error["message"]
    assert http.post(route, json={"messages": HELLO, "enable_thinking": False}).status_code == 200
