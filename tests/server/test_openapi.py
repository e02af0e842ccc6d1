"""The OpenAPI document tells the truth: real answers fit its schemas, and requests made from it meet no 5xx."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from qwench.server.openapi import ANSWERS
from tests.server.test_structured import NAMED
from tests.server.test_tools import ASKED

HELLO = [{"role": "user", "content": "Hello"}]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
REQUESTS: tuple[tuple[str, str, Any], ...] = (
    ("post", CHAT, {"messages": HELLO, "max_tokens": 2, "n": 2}),
    ("post", CHAT, {"messages": HELLO, "max_tokens": 2, "logprobs": True, "top_logprobs": 2}),
    ("post", CHAT, {"messages": HELLO, "max_tokens": 4, "enable_thinking": True}),
    ("post", CHAT, {**ASKED, "tool_choice": "required", "max_tokens": 40}),
    ("post", CHAT, {"messages": HELLO, "response_format": NAMED}),
    ("post", CHAT, {"messages": HELLO, "reasoning_strategy": {"method": "vote", "samples": 2, "budget": 60}}),
    ("post", COMPLETIONS, {"prompt": ["a", "b"], "max_tokens": 2, "logprobs": 2, "echo": True}),
    ("post", COMPLETIONS, {"prompt": [1, 2], "max_tokens": 1}),
    ("post", "/tokenize", {"prompt": "x", "return_token_strs": True}),
    ("post", "/tokenize", {"messages": HELLO}),
    ("post", "/detokenize", {"tokens": [1, 2]}),
    ("post", "/apply-template", {"messages": HELLO}),
    ("get", "/v1/models", None),
    ("get", "/v1/models/{name}", None),
    ("get", "/health", None),
    ("get", "/version", None),
    ("get", "/metrics", None),
    (
        "post",
        "/v1/messages",
        {"messages": HELLO, "max_tokens": 40, "thinking": {"type": "enabled", "budget_tokens": 9}},
    ),
    ("post", "/v1/messages", {"messages": HELLO}),
    ("post", "/v1/messages/count_tokens", {"messages": HELLO}),
    ("post", "/v1/responses", {"input": "x", "max_output_tokens": 2}),
    ("post", "/v1/responses/input_tokens", {"input": "x"}),
    ("post", "/v1/responses/compact", {"model": "tiny", "input": "x", "max_output_tokens": 2}),
    ("get", "/v1/responses/{name}", None),
    ("get", "/v1/files", None),
    ("get", "/v1/batches", None),
    ("post", "/v1/batches", {}),
    ("post", "/api/chat", {"model": "tiny", "messages": HELLO, "stream": False, "options": {"num_predict": 2}}),
    ("post", "/api/generate", {"model": "tiny", "prompt": "x", "stream": False, "options": {"num_predict": 2}}),
    ("post", "/api/chat", {"model": "tiny", "messages": 5}),
    ("get", "/api/tags", None),
    ("get", "/api/ps", None),
    ("post", "/api/show", {"model": "tiny"}),
    ("get", "/api/version", None),
    ("post", CHAT, {"messages": 5}),
    ("post", COMPLETIONS, {}),
    ("post", CHAT + "/control", {"id": "x", "action": "reasoning_end"}),
    ("post", CHAT + "/control", {}),
    ("get", "/v1/models/{name}", "nothing"),
)


@pytest.fixture(scope="module")
def document(http: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = http.get("/openapi.json").json()
    return found


@pytest.mark.parametrize(("method", "path", "body"), REQUESTS, ids=[f"{number}" for number in range(len(REQUESTS))])
def test_answers_are_as_the_document_says(
    http: httpx.Client, document: dict[str, Any], method: str, path: str, body: Any
) -> None:
    from jsonschema_rs import validator_for

    name = body if isinstance(body, str) else "tiny"
    answer = http.request(method, path.replace("{name}", name), json=body if isinstance(body, dict) else None)
    responses = document["paths"][path][method]["responses"]
    told = responses["200"] if answer.status_code == 200 else responses[f"{answer.status_code // 100}XX"]
    kind = answer.headers["content-type"].partition(";")[0]
    schema = {**told["content"][kind]["schema"], "components": document["components"]}
    validator_for(schema).validate(answer.json() if kind == "application/json" else answer.text)


def test_a_stream_is_documented_as_one(http: httpx.Client, document: dict[str, Any]) -> None:
    answer = http.post(CHAT, json={"messages": HELLO, "max_tokens": 1, "stream": True})
    kind = answer.headers["content-type"].partition(";")[0]
    assert kind in document["paths"][CHAT]["post"]["responses"]["200"]["content"]


def test_every_answer_has_a_shape(document: dict[str, Any]) -> None:
    """But for the pages, and what is a probe of them."""
    pages = {path for path in document["paths"] if path not in ANSWERS}
    assert pages <= {"/", "/docs", "/openapi.json", "/favicon.ico", "/page/{path}"}, pages


def test_references_lead_somewhere(document: dict[str, Any]) -> None:
    named = {each.rpartition("/")[2] for each in _references(document)}
    assert named <= document["components"]["schemas"].keys()
    assert json.dumps(document)


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for each in value.values() for found in _references(each)]
    return [found for each in value for found in _references(each)] if isinstance(value, list) else []
