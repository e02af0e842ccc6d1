"""Anthropic's Messages API with its own client: the shapes, the order of events, and what each block comes to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import anthropic as sdk
import httpx
import pytest
from anthropic import Anthropic
from openai import OpenAI

from qwench.engine.client import EngineStatus
from qwench.errors import RequestError
from qwench.server.keys import Key
from qwench.server.messages.conversation import read_messages
from qwench.server.messages.fields import FIELDS, CountRequest, MessagesRequest
from qwench.server.schemas import shape
from qwench.text.model import ModelText
from tests.media.files import NANO, data_uri, document, encoded, noise
from tests.server.conftest import NAME, Start
from tests.server.scripted import Seeing, answering
from tests.server.test_failures import failing
from tests.server.tiny import WINDOW
from tests.text.call_corpus import xml

HELLO: Any = [{"role": "user", "content": "Hello"}]
GREEDY: Any = {"model": NAME, "max_tokens": 12, "temperature": 0}
ASK: Any = {
    "model": NAME,
    "max_tokens": 12,
    "extra_body": {"temperature": 0},
}  # the client knows no temperature any more
WEATHER: Any = {
    "name": "get_weather",
    "description": "Get the weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = xml("get_weather", ("city", "Oslo"))
THINK: Any = {"type": "enabled", "budget_tokens": 64}
PATH = "/v1/messages"


@pytest.fixture(scope="session")
def anthropic(address: str) -> Iterator[Anthropic]:
    with Anthropic(base_url=address, api_key="none", max_retries=0) as client:
        yield client


def client_of(http: httpx.Client, key: str = "none") -> Anthropic:
    return Anthropic(base_url=str(http.base_url), api_key=key, max_retries=0)


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, whose names are their types."""
    found = []
    for block in answer.text.split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith(":")]
        if lines:
            name, data = lines
            found.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}"
    return found


def order(told: list[dict[str, Any]]) -> list[str]:
    """What kinds of events came, of one kind in a row only the first; a delta is named by its own type."""
    kinds = [event["delta"]["type"] if event["type"] == "content_block_delta" else event["type"] for event in told]
    return [kind for kind, _ in groupby(kinds)]


def chat_of(**body: Any) -> list[dict[str, Any]]:
    """The chat messages that a body comes to."""
    return read_messages(shape(MessagesRequest, {"max_tokens": 9, **body}, FIELDS)).request.messages


def test_an_answer_is_that_of_chat(anthropic: Anthropic, openai: OpenAI) -> None:
    answer = anthropic.messages.create(messages=HELLO, **ASK)
    same = openai.chat.completions.create(messages=HELLO, extra_body={"enable_thinking": False}, **GREEDY)
    (block,) = answer.content
    assert block.type == "text"
    assert block.text == same.choices[0].message.content
    assert (answer.role, answer.model, answer.stop_reason) == ("assistant", NAME, "max_tokens")
    assert same.usage is not None
    assert answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0) == same.usage.prompt_tokens
    assert answer.usage.output_tokens == 12


def test_a_stream_tells_what_a_body_does(anthropic: Anthropic) -> None:
    asked: Any = {**ASK, "messages": HELLO, "thinking": THINK}
    whole = anthropic.messages.create(**asked)
    with anthropic.messages.stream(**asked) as stream:
        told = stream.get_final_message()
    assert [block.type for block in whole.content] == ["thinking", "text"]
    assert [block.to_dict() for block in told.content] == [block.to_dict() for block in whole.content]
    assert (told.stop_reason, told.stop_sequence) == (whole.stop_reason, whole.stop_sequence)
    assert told.usage.output_tokens == whole.usage.output_tokens


def test_events_come_in_order_and_every_block_is_closed(scripted: Start) -> None:
    _, http = scripted(answering(f"Hm.</think>\n\nI look.\n\n{CALL}\n{CALL}"))
    asked = {**GREEDY, "max_tokens": 300, "messages": HELLO, "tools": [WEATHER], "thinking": THINK, "stream": True}
    told = events(http.post(PATH, json=asked))
    block = ["content_block_start", "content_block_stop"]
    assert order(told) == [
        "message_start",
        "ping",
        *(block[0], "thinking_delta", "signature_delta", block[1]),
        *(block[0], "text_delta", block[1]),
        *(block[0], "input_json_delta", block[1]),
        *(block[0], "input_json_delta", block[1]),
        "message_delta",
        "message_stop",
    ]
    starts = [event for event in told if event["type"] == "content_block_start"]
    assert [event["index"] for event in starts] == [0, 1, 2, 3]
    assert [event["content_block"]["type"] for event in starts] == ["thinking", "text", "tool_use", "tool_use"]
    assert told[-2]["delta"] == {
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "stop_details": None,
        "container": None,
    }
    assert told[-2]["usage"]["output_tokens_details"]["thinking_tokens"] > 1
    body = http.post(PATH, json={**asked, "stream": False}).json()
    assert [block["type"] for block in body["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert body["content"][2]["input"] == {"city": "Oslo"}
    signed = next(
        event["delta"]["signature"] for event in told if event.get("delta", {}).get("type") == "signature_delta"
    )
    assert body["content"][0] == {"type": "thinking", "thinking": "Hm.", "signature": signed}


def test_the_clients_own_stream_reads_calls(scripted: Start) -> None:
    _, http = scripted(answering(f"I look.\n\n{CALL}"))
    with (
        client_of(http) as client,
        client.messages.stream(model=NAME, max_tokens=300, messages=HELLO, tools=[WEATHER]) as stream,
    ):
        message = stream.get_final_message()
    assert [block.type for block in message.content] == ["text", "tool_use"]
    assert message.content[1].to_dict()["input"] == {"city": "Oslo"}
    assert message.stop_reason == "tool_use"


def test_a_call_and_its_result_are_read_again(scripted: Start) -> None:
    engine, http = scripted(answering("Rain."))
    history: Any = [
        *HELLO,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Let me see.", "signature": "any"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Oslo"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "wet"}]},
                {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no such town", "is_error": True},
                {"type": "text", "text": "Be brief."},
                {"type": "text", "text": "In one word."},
            ],
        },
    ]
    with client_of(http) as client:
        client.messages.create(model=NAME, max_tokens=20, messages=history, tools=[WEATHER], system="Help.")
    prompt = engine.prompts[-1]
    for part in (
        "\n\nHelp.<|im_end|>",
        "<|im_start|>assistant\nI look.\n\n<tool_call>\n<function=get_weather>",
        "<tool_response>\nwet\n</tool_response>",
        "<tool_response>\nError:\nno such town\n</tool_response>",
        "<|im_start|>user\nBe brief.\nIn one word.<|im_end|>",
    ):
        assert part in prompt


@pytest.mark.parametrize(
    ("choice", "calls", "offered"),
    [
        ({"type": "auto"}, 2, True),
        ({"type": "auto", "disable_parallel_tool_use": True}, 1, True),
        ({"type": "any"}, 2, True),
        ({"type": "tool", "name": "get_weather"}, 1, True),
        ({"type": "none"}, 0, False),
    ],
)
def test_every_choice_of_tools(scripted: Start, choice: dict[str, Any], calls: int, offered: bool) -> None:
    engine, http = scripted(answering(f"{CALL}\n{CALL}"))
    asked = {**GREEDY, "max_tokens": 300, "messages": HELLO, "tools": [WEATHER], "tool_choice": choice}
    body = http.post(PATH, json=asked).json()
    assert sum(block["type"] == "tool_use" for block in body["content"]) == calls
    assert ("get_weather" in engine.prompts[-1].partition("user\n")[0]) is offered


def test_tools_that_anthropic_runs_are_left_out_and_told(scripted: Start) -> None:
    engine, http = scripted(answering("I cannot search."))
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}
    forced = {"type": "tool", "name": "web_search"}
    answer = http.post(PATH, json={**GREEDY, "messages": HELLO, "tools": [search], "tool_choice": forced})
    assert answer.status_code == 200
    told = answer.headers["x-qwench-warnings"]
    assert "tools[0]: left out, 'web_search_20250305' is not run here" in told
    assert "tool_choice: no effect" in told
    assert "web_search" not in engine.prompts[-1]


def test_the_reason_to_stop(scripted: Start) -> None:
    _, http = scripted(answering("One. Two. Three."))
    asked = {**GREEDY, "messages": HELLO, "max_tokens": 100}
    assert http.post(PATH, json=asked).json()["stop_reason"] == "end_turn"
    stopped = http.post(PATH, json={**asked, "stop_sequences": ["Three", "Two"]}).json()
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "Two")
    assert stopped["content"] == [{"type": "text", "text": "One. ", "citations": None}]
    assert http.post(PATH, json={**asked, "max_tokens": 2}).json()["stop_reason"] == "max_tokens"


def test_more_than_the_window_holds_ends_with_the_window(scripted: Start) -> None:
    engine, http = scripted(failing("length", after="Once upon"))
    for most, reason in ((WINDOW, "model_context_window_exceeded"), (WINDOW // 2, "max_tokens")):
        asked = {**GREEDY, "messages": HELLO, "max_tokens": most}
        assert http.post(PATH, json=asked).json()["stop_reason"] == reason
    assert [sampling.max_tokens for sampling in engine.submitted] == [None, WINDOW // 2]


def test_marks_are_kept_and_accounted_for(anthropic: Anthropic) -> None:
    system: Any = [
        {"type": "text", "text": "x-anthropic-billing-header: cch=123;"},
        {"type": "text", "text": "Be brief, always. " * 12, "cache_control": {"type": "ephemeral", "ttl": "1h"}},
    ]
    asked: Any = {**ASK, "system": system, "messages": [{"role": "user", "content": "A marked beginning."}]}
    count = anthropic.messages.count_tokens(model=NAME, system=system, messages=asked["messages"]).input_tokens
    usages = [anthropic.messages.create(**asked).usage for _ in range(2)]
    for usage in usages:
        assert usage.cache_read_input_tokens is not None
        assert usage.cache_creation_input_tokens is not None
        assert usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens == count
    assert usages[0].cache_creation_input_tokens > count / 2
    assert usages[1].cache_creation_input_tokens == 0
    assert usages[1].cache_read_input_tokens >= usages[0].cache_creation_input_tokens
    with anthropic.messages.stream(**asked) as stream:
        first = next(event for event in stream if event.type == "message_start")
    assert first.message.usage.cache_read_input_tokens == usages[1].cache_read_input_tokens


def test_a_mark_for_everything_stands_on_the_last_message() -> None:
    mark = {"type": "ephemeral"}
    assert chat_of(messages=HELLO, cache_control=mark)[-1]["cache_control"] == mark


def test_thinking_is_off_unless_asked_for(anthropic: Anthropic) -> None:
    def kinds(**more: Any) -> list[str]:
        return [block.type for block in anthropic.messages.create(messages=HELLO, **ASK, **more).content]

    assert kinds() == kinds(thinking={"type": "disabled"}) == ["text"]
    assert kinds(thinking=THINK) == kinds(output_config={"effort": "low"}) == ["thinking", "text"]
    assert kinds(thinking={**THINK, "display": "omitted"}) == ["text"]


def test_an_answer_of_a_schema(scripted: Start) -> None:
    engine, http = scripted(answering('{"city": "Oslo"}'))
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    form = {"type": "json_schema", "schema": schema}
    for more in ({"output_config": {"format": form}}, {"output_format": form}):
        assert http.post(PATH, json={**GREEDY, "messages": HELLO, **more}).status_code == 200
    bad = {"type": "json_schema", "schema": {"type": "array", "uniqueItems": True}}
    answer = http.post(PATH, json={**GREEDY, "messages": HELLO, "output_config": {"format": bad}})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("output_config.format")
    assert len(engine.submitted) == 2


def test_what_is_shown_is_seen(scripted: Start) -> None:
    engine, http = scripted(lambda _: Seeing(NANO, lambda _prompt, sampling: engine.spell("I see.", sampling)))
    picture = data_uri(encoded(noise(64, 64)), "image/png").partition("base64,")[2]
    paper = data_uri(document(2), "application/pdf").partition("base64,")[2]
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": picture}}
    pdf = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": paper}}
    history: Any = [
        {"role": "user", "content": [image, {"type": "text", "text": "Compare."}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "look", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [image, pdf]}]},
    ]
    look: Any = {**WEATHER, "name": "look"}
    with client_of(http) as client:
        client.messages.create(model=NAME, max_tokens=9, messages=history, tools=[look])
        count = client.messages.count_tokens(model=NAME, messages=history).input_tokens
    assert [span.media.kind for span in engine.shown[-1]] == ["image"] * 4
    assert count > sum(span.media.tokens for span in engine.shown[-1])
    history[2]["content"][0]["content"][1]["source"]["data"] = "AAAA"
    answer = http.post(PATH, json={**GREEDY, "messages": history})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("messages[2].content[0].content[1] ")


def test_documents_of_text_and_results_of_searches_are_text() -> None:
    text = {"type": "text", "media_type": "text/plain", "data": "It rains."}
    inner = {"type": "content", "content": [{"type": "text", "text": "And snows."}]}
    found = {
        "type": "search_result",
        "title": "Oslo",
        "source": "a.example",
        "content": [{"type": "text", "text": "Wet."}],
    }
    blocks = [
        {"type": "document", "source": text, "title": "Weather", "context": "of today"},
        {"type": "document", "source": inner},
        found,
    ]
    (message,) = chat_of(messages=[{"role": "user", "content": blocks}])
    said = "".join(part["text"] for part in message["content"])
    assert said == "Weather\nof today\nIt rains.\nAnd snows.\nOslo\na.example\nWet."


def test_what_only_anthropic_could_do_is_left_out_of_answers() -> None:
    blocks = [
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
        {"type": "redacted_thinking", "data": "secret"},
        {"type": "text", "text": "It rains."},
    ]
    asked = {"messages": [*HELLO, {"role": "assistant", "content": blocks}, *HELLO]}
    found = read_messages(shape(CountRequest, asked, FIELDS))
    assert found.request.messages[1] == {"role": "assistant", "content": [blocks[3]]}
    assert [warning.partition(":")[0] for warning in found.warnings] == [
        "messages[1].content[0]",
        "messages[1].content[1]",
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (7, "messages[0].content is 7; give a text or a list of blocks."),
        (["Hello"], "messages[0].content[0] is 'Hello'; give a block."),
        ([{"type": "text"}], "messages[0].content[0].text is None; give a text."),
        ([{"type": "hologram"}], "messages[0].content[0] is of type 'hologram', which cannot stand there."),
        ([{"type": "image"}], "messages[0].content[0].source is missing; give base64 data or a url."),
        (
            [{"type": "image", "source": {"type": "file", "file_id": "f"}}],
            "messages[0].content[0] names a file, but none are kept here; send its data.",
        ),
        (
            [{"type": "tool_result", "content": [{"type": "tool_use"}]}],
            "messages[0].content[0].content[0] is of type 'tool_use', which cannot stand there.",
        ),
    ],
)
def test_a_wrong_block_is_named(content: Any, told: str) -> None:
    with pytest.raises(RequestError) as failure:
        chat_of(messages=[{"role": "user", "content": content}])
    assert failure.value.message == told


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"max_tokens": None}, "max_tokens is missing; send the most tokens of the answer"),
        ({"max_tokens": 0}, "max_tokens is 0; "),
        ({"messages": []}, "messages is empty; "),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role is 'tool'; known are user, assistant"),
        (
            {"messages": [*HELLO, {"role": "assistant", "content": "I"}]},
            "messages[1] is the assistant's: an answer cannot",
        ),
        ({"stop_sequences": ["x"] * 40}, "stop_sequences holds 40 strings; "),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name is missing; "),
        ({"tools": [{"type": "bash_20250124"}, {"name": "a b", "input_schema": {}}]}, "tools[1].name is 'a b'; "),
        ({"tools": [{"name": "f", "input_schema": "x"}]}, "tools[0].input_schema is 'x'; "),
        ({"tools": [WEATHER], "tool_choice": {"type": "some"}}, "tool_choice.type is 'some'; known are auto, any"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice names 'g', which is none of"),
        ({"thinking": {"type": "enabled", "budget_tokens": -5}}, "thinking.budget_tokens is -5; "),
        ({"system": [{"type": "image"}]}, "system[0] is of type 'image', which cannot stand there."),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages[0].content[0] is something",
        ),
    ],
)
def test_wrong_values_are_refused_by_name(http: httpx.Client, more: dict[str, Any], told: str) -> None:
    answer = http.post(PATH, json={**GREEDY, "messages": HELLO, **more})
    assert answer.status_code == 400, answer.text
    body = answer.json()
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["message"].startswith(told)
    assert body["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]


def test_failures_have_anthropics_shape(anthropic: Anthropic, http: httpx.Client, scripted: Start) -> None:
    long: Any = [{"role": "user", "content": "word " * 1000}]
    with pytest.raises(sdk.BadRequestError, match=rf"prompt is too long: \d+ tokens > {WINDOW} maximum"):
        anthropic.messages.create(messages=long, **ASK)
    with pytest.raises(sdk.NotFoundError, match=r"'qwen3\.5:4b' is not served here") as failure:
        anthropic.messages.create(**{**ASK, "model": "qwen3.5:4b"}, messages=HELLO)
    assert failure.value.type == "not_found_error"
    assert http.get(PATH).json()["error"]["type"] == "invalid_request_error"
    assert http.post(f"{PATH}/nothing").json()["error"]["type"] == "not_found_error"
    engine, locked = scripted(answering("Hello"), keys=(Key.of("k"),))
    with client_of(locked, "wrong") as client, pytest.raises(sdk.AuthenticationError):
        client.messages.create(messages=HELLO, **ASK)
    with client_of(locked, "k") as client:
        assert client.messages.create(messages=HELLO, **ASK).content
    engine.become(EngineStatus("loading", 0.5))
    with client_of(locked, "k") as client, pytest.raises(sdk.InternalServerError) as failure_of:
        client.messages.create(messages=HELLO, **ASK)
    assert failure_of.value.status_code == 529
    assert failure_of.value.response.headers["retry-after"]


def test_a_failure_in_a_stream_is_an_event(scripted: Start) -> None:
    _, http = scripted(failing("error", after="Once upon"))
    with client_of(http) as client, pytest.raises(sdk.APIStatusError, match="failed on this request"):
        list(client.messages.create(messages=HELLO, stream=True, **ASK))
    told = events(http.post(PATH, json={**GREEDY, "messages": HELLO, "stream": True}))
    assert order(told)[-1] == "error"
    assert told[-1]["error"]["type"] == "api_error"


def test_counting_takes_what_asking_takes(anthropic: Anthropic, text: ModelText) -> None:
    asked: Any = {"model": NAME, "messages": HELLO, "tools": [WEATHER], "thinking": THINK, "system": "Be brief."}
    count = anthropic.messages.count_tokens(**asked).input_tokens
    usage = anthropic.messages.create(max_tokens=1, **asked).usage
    assert count == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    open_end: Any = [*HELLO, {"role": "assistant", "content": "I"}]
    assert anthropic.messages.count_tokens(model=NAME, messages=open_end).input_tokens > 3
