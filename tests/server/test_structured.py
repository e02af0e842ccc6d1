"""Structured output over HTTP: random weights say nothing sensible, but always something that fits."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest
from openai import OpenAI

from qwench.text.grammar import AnswerGuide
from tests.server.conftest import NAME
from tests.server.test_tools import joined, told

HELLO: Any = [{"role": "user", "content": "Hello"}]
SCHEMA: Any = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "s": {"enum": ["a", "bc"]}},
    "required": ["n", "s"],
    "additionalProperties": False,
}
NAMED: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}


def fits(text: str) -> bool:
    found = json.loads(text)
    return list(found) == ["n", "s"] and 0 <= found["n"] < 100 and found["s"] in ("a", "bc")


def is_object(text: str) -> bool:
    return isinstance(json.loads(text), dict)


WISHES: list[tuple[dict[str, Any], Callable[[str], object]]] = [
    ({"response_format": NAMED}, fits),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, fits),
    ({"guided_json": SCHEMA}, fits),
    ({"guided_json": json.dumps(SCHEMA)}, fits),
    ({"structured_outputs": {"json": SCHEMA}}, fits),
    ({"guided_regex": r"[a-c]{2}/\d{1,3}x"}, re.compile(r"[a-c]{2}/\d{1,3}x").fullmatch),
    ({"structured_outputs": {"regex": "(ab|cd){1,9}e"}}, re.compile("(ab|cd){1,9}e").fullmatch),
    ({"response_format": {"type": "regex", "pattern": "[0-9]"}}, re.compile("[0-9]").fullmatch),
    ({"guided_choice": ["yes", 'n"o', "ünd"]}, ["yes", 'n"o', "ünd"].__contains__),
    ({"structured_outputs": {"choice": ["one"]}}, ["one"].__contains__),
    ({"grammar": 'start: "a" B "c"\nB: /b{3}/'}, ["abbbc"].__contains__),
    ({"guided_grammar": 'start: "x"'}, ["x"].__contains__),
]


@pytest.mark.parametrize(("wish", "fitting"), WISHES, ids=[next(iter(wish)) for wish, _ in WISHES])
@pytest.mark.parametrize("thinking", [False, True])
def test_answers_fit(
    http: httpx.Client, wish: dict[str, Any], fitting: Callable[[str], object], thinking: bool
) -> None:
    """Also behind thinking, which random weights never end by themselves."""
    more = {"enable_thinking": thinking, "thinking_budget": 8 if thinking else None}
    asked = {"model": NAME, "messages": HELLO, "n": 3, "seed": 1, "max_tokens": 250, **more, **wish}
    body = http.post("/v1/chat/completions", json=asked).json()
    choices = body["choices"]
    assert [choice["finish_reason"] for choice in choices] == ["stop"] * 3
    assert all(fitting(choice["message"]["content"]) for choice in choices)
    assert all(bool(choice["message"]["reasoning_content"]) == thinking for choice in choices)
    lines = http.post("/v1/chat/completions", json={**asked, "n": 1, "stream": True}).text.splitlines()
    assert joined(lines)[0]["content"] == choices[0]["message"]["content"]


@pytest.mark.parametrize(("wish", "fitting"), WISHES[4:], ids=[next(iter(wish)) for wish, _ in WISHES[4:]])
def test_raw_completions_fit(http: httpx.Client, wish: dict[str, Any], fitting: Callable[[str], object]) -> None:
    asked = {"model": NAME, "prompt": ["Hello", "World"], "max_tokens": 250, "temperature": 0, **wish}
    choices = http.post("/v1/completions", json=asked).json()["choices"]
    assert len(choices) == 2
    assert all(fitting(choice["text"]) for choice in choices)


def test_what_is_known_of_a_prompt_changes_nothing(http: httpx.Client) -> None:
    long = [{"role": "user", "content": "Hello world. " * 12}]
    asked = {"model": NAME, "messages": long, "response_format": NAMED, "temperature": 0}
    first, again = (http.post("/v1/chat/completions", json=asked).json() for _ in range(2))
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert again["choices"][0]["message"]["content"] == first["choices"][0]["message"]["content"]


def test_stop_strings_and_limits_still_end_it(http: httpx.Client) -> None:
    asked = {"model": NAME, "messages": HELLO, "guided_regex": "a{20}", "stop": ["aaaaaaaaa"]}
    choice = http.post("/v1/chat/completions", json=asked).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "stop")
    cut = http.post("/v1/chat/completions", json={**asked, "stop": None, "max_tokens": 2}).json()["choices"][0]
    assert cut["finish_reason"] == "length"
    assert set(cut["message"]["content"]) == {"a"}


def test_openais_client_parses_a_schema(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(model=NAME, messages=HELLO, response_format=NAMED, seed=2)
    assert fits(answer.choices[0].message.content or "")


def test_votes_and_forests_fit_too(http: httpx.Client) -> None:
    strategy = {"method": "vote", "samples": 3}
    asked = {"model": NAME, "messages": HELLO, "guided_choice": ["yes", "no"], "max_tokens": 60, "temperature": 1}
    body = http.post("/v1/chat/completions", json={**asked, "reasoning_strategy": strategy}).json()
    assert body["choices"][0]["message"]["content"] in ("yes", "no")


@pytest.mark.parametrize(
    ("wish", "named"),
    [
        ({"response_format": {"type": "xml"}}, "its type should be"),
        ({"response_format": {"type": "json_schema"}}, "json_schema.schema is missing"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}}, "give a JSON schema"),
        ({"guided_json": {"type": "object", "not": {}}}, '"not"'),
        ({"guided_json": {"uniqueItems": True, "type": "array"}}, '"uniqueItems"'),
        ({"guided_json": {"$ref": "http://127.0.0.1/x"}}, "does not fetch"),
        ({"guided_json": {"type": "string", "pattern": "(?=a)b"}}, "look-around"),
        ({"guided_json": "{"}, "not JSON"),
        ({"guided_json": {"type": "nothing"}}, "nothing"),
        ({"guided_json": False}, "held to"),
        ({"guided_json": {"oneOf": [{"type": "number"}, {"type": "integer"}]}}, "oneOf"),
        ({"guided_json": {"$ref": "#"}}, "NoExtension"),
        ({"guided_regex": "["}, "unclosed character class"),
        ({"guided_regex": ""}, "give a text"),
        ({"guided_choice": []}, "not empty"),
        ({"guided_choice": [""]}, "not empty"),
        ({"grammar": "root ::= x"}, "Lark"),
        ({"grammar": "start: missing"}, "missing"),
        ({"grammar": "start: " + "x" * 600_000}, "too large"),
        ({"structured_outputs": {}}, "give one of"),
        ({"guided_choice": ["a"], "guided_regex": "a"}, "send one"),
        ({"guided_choice": ["a"], "ignore_eos": True}, "ignore_eos"),
        ({"guided_choice": ["a"], "min_tokens": 3}, "min_tokens"),
    ],
)
def test_what_cannot_be_held_to_is_one_sentence(scripted: Any, wish: dict[str, Any], named: str) -> None:
    from tests.server.scripted import answering

    _, http = scripted(answering("Hello"), max_body_bytes=2_000_000)
    answer = http.post("/v1/chat/completions", json={"model": NAME, "messages": HELLO, **wish})
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert named in message
    assert "\n" not in message
    assert len(message) < 700


def function(name: str, **properties: Any) -> Any:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}


TOOLS = [
    function("f", a={"type": "integer", "maximum": 9, "minimum": 0}, on={"type": "boolean"}),
    function("g", s={"enum": ["x", "yz"]}),
]


@pytest.mark.parametrize("thinking", [False, True])
def test_a_call_can_be_required(http: httpx.Client, thinking: bool) -> None:
    asked = {"model": NAME, "messages": HELLO, "tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    asked |= {"enable_thinking": thinking, "thinking_budget": 4 if thinking else None, "n": 2, "seed": 3}
    for choice in http.post("/v1/chat/completions", json=asked).json()["choices"]:
        assert choice["finish_reason"] in ("tool_calls", "length")
        assert not choice["message"]["content"]
        (name, arguments) = told(choice["message"]["tool_calls"])[0]
        assert name in ("f", "g")
        assert set(arguments) <= ({"a", "on"} if name == "f" else {"s"})


def strict(tool: Any) -> Any:
    names = list(tool["function"]["parameters"]["properties"])
    parameters = {**tool["function"]["parameters"], "required": names, "additionalProperties": False}
    return {**tool, "function": {**tool["function"], "strict": True, "parameters": parameters}}


def test_one_function_can_be_named_and_held_to_its_schema(http: httpx.Client) -> None:
    for name, tool in (("f", TOOLS[0]), ("g", TOOLS[1])):
        named = {"type": "function", "function": {"name": name}}
        asked = {"model": NAME, "messages": HELLO, "tools": [strict(tool)], "tool_choice": named}
        choice = http.post("/v1/chat/completions", json=asked).json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert "warnings" not in choice["finish_details"]
        ((called, arguments),) = told(choice["message"]["tool_calls"])
        assert called == name
        if name == "f":
            assert arguments["a"] in range(10)
            assert isinstance(arguments["on"], bool)
        else:
            assert arguments["s"] in ("x", "yz")


def test_an_answer_is_a_call_or_fits_the_schema(http: httpx.Client) -> None:
    asked = {"model": NAME, "messages": HELLO, "tools": [strict(TOOLS[1])], "response_format": NAMED, "n": 4, "seed": 1}
    for choice in http.post("/v1/chat/completions", json=asked).json()["choices"]:
        assert choice["finish_reason"] in ("tool_calls", "stop")
        assert choice["message"].get("tool_calls") or fits(choice["message"]["content"])


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"tools": [], "tool_choice": "required"}, "there are no tools"),
        ({"tools": [strict(function("f", s={"type": "string", "pattern": "a"}))]}, "pattern"),
        ({"tools": [strict(function("f", s={"type": "array", "uniqueItems": True}))]}, "uniqueItems"),
        ({"tools": TOOLS, "grammar": 'start: "a"'}, "cannot be combined with tools"),
    ],
)
def test_what_calls_cannot_be_held_to(http: httpx.Client, more: dict[str, Any], named: str) -> None:
    answer = http.post("/v1/chat/completions", json={"model": NAME, "messages": HELLO, **more})
    assert answer.status_code == 400
    assert named in answer.json()["error"]["message"]


def test_a_schema_that_is_not_strict_is_held_to_by_its_types(http: httpx.Client) -> None:
    tools = [function("f", s={"type": "array", "uniqueItems": True})]
    answer = http.post("/v1/chat/completions", json={"model": NAME, "messages": HELLO, "tools": tools, "max_tokens": 3})
    assert answer.status_code == 200
    assert "only types are held to" in answer.headers["x-qwench-warnings"]


def test_one_tool_that_cannot_be_held_to_spoils_no_other(http: httpx.Client) -> None:
    tools = [function("odd", s={"type": "array", "uniqueItems": True}), strict(function("f", a={"type": "integer"}))]
    body = {"model": NAME, "messages": HELLO, "tools": tools, "max_tokens": 3}
    for _ in range(2):
        answer = http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200
        assert "only types of odd are held to" in answer.headers["x-qwench-warnings"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_grammar_that_grows_beyond_bounds_ends_the_answer_by_name(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    accept = AnswerGuide.accept

    def tired(self: AnswerGuide, token_ids: Sequence[int]) -> str | None:
        accept(self, token_ids)
        return "guided_regex could not be followed further (too many states)"

    monkeypatch.setattr(AnswerGuide, "accept", tired)
    asked = {"model": NAME, "messages": HELLO, "guided_regex": "[a-c]{30}", "stream": stream}
    answer = http.post("/v1/chat/completions", json=asked)
    if stream:
        error = json.loads(answer.text.strip().splitlines()[-1].removeprefix("data: "))["error"]
    else:
        assert answer.status_code == 400
        error = answer.json()["error"]
    assert error["code"] == "grammar_too_complex"
    assert error["message"].endswith("(too many states); ask for a simpler form.")
    monkeypatch.undo()
    assert http.post("/v1/chat/completions", json={**asked, "stream": False}).status_code == 200
