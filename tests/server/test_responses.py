"""OpenAI's Responses API with its own client: items in, items out, events in order, and what is stored for whom."""

from __future__ import annotations

import json
from functools import partial
from itertools import groupby
from typing import Any

import httpx
import openai as sdk
import pytest
from openai import OpenAI
from pydantic import BaseModel

from qwench.engine.client import EngineStatus
from qwench.errors import RequestError
from qwench.server.keys import Key
from qwench.server.responses.conversation import read_response
from qwench.server.responses.fields import FIELDS, ResponsesRequest
from qwench.server.responses.items import as_items
from qwench.server.responses.store import Kept, ResponseStore
from qwench.server.schemas import shape
from tests.media.files import NANO, data_uri, document, encoded, noise
from tests.server.conftest import NAME, Start, wait_until
from tests.server.scripted import Seeing, answering
from tests.server.test_failures import failing, pausing
from tests.text.call_corpus import xml

PATH = "/v1/responses"
GREEDY: Any = {"model": NAME, "max_output_tokens": 12, "temperature": 0}
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
PATCH: Any = {"type": "custom", "name": "apply_patch", "description": "Edits files.", "format": {"type": "text"}}
CALL = xml("get_weather", ("city", "Oslo"))
ROOM: Any = {"model": NAME, "input": "Hello"}
ROOM_FOR_MORE: Any = {"role": "user", "content": "And now?"}
saying = partial(answering, window=4096)


def client_of(http: httpx.Client, key: str = "none") -> OpenAI:
    return OpenAI(base_url=f"{http.base_url}/v1", api_key=key, max_retries=0)


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, numbered and named by their types."""
    found = []
    for block in answer.text.split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith(":")]
        if lines and lines != ["data: [DONE]"]:
            name, data = lines
            found.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {found[-1]['type']}"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def order(told: list[dict[str, Any]]) -> list[str]:
    return [kind.removeprefix("response.") for kind, _ in groupby(event["type"] for event in told)]


def chat_of(items: Any, **more: Any) -> list[dict[str, Any]]:
    """The chat messages that items come to."""
    request = shape(ResponsesRequest, {"input": items, **more}, FIELDS)
    return read_response(request, (), as_items(request.input)).translation.request.messages


def test_an_answer_is_that_of_chat(openai: OpenAI) -> None:
    answer = openai.responses.create(input="Hello", **GREEDY)
    same = openai.chat.completions.create(
        model=NAME, max_tokens=12, temperature=0, messages=[{"role": "user", "content": "Hello"}]
    )
    assert answer.output_text == same.choices[0].message.content
    assert (answer.status, answer.object, answer.model) == ("incomplete", "response", NAME)
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None
    assert same.usage is not None
    assert answer.usage.input_tokens == same.usage.prompt_tokens
    assert (answer.usage.output_tokens, answer.usage.output_tokens_details.reasoning_tokens) == (12, 0)


def test_a_stream_tells_what_a_body_does(openai: OpenAI) -> None:
    asked: Any = {**GREEDY, "input": "Hello", "reasoning": {"effort": "low"}}
    whole = openai.responses.create(**asked)
    last = list(openai.responses.create(**asked, stream=True))[-1]
    assert last.type == "response.incomplete"
    assert [item.type for item in whole.output] == ["reasoning", "message"]

    def said(output: Any) -> list[str]:
        return [part.text for item in output for part in item.content]

    assert said(whole.output) == said(last.response.output)
    assert whole.usage is not None
    assert last.response.usage is not None
    assert last.response.usage.output_tokens == whole.usage.output_tokens


def test_events_come_in_order_and_every_item_is_closed(scripted: Start) -> None:
    _, http = scripted(saying(f"Hm.</think>\n\nI look.\n\n{CALL}"))
    asked = {**ROOM, "tools": [WEATHER], "reasoning": {"effort": "low"}, "stream": True}
    told = events(http.post(PATH, json=asked))
    assert order(told) == [
        "created",
        "in_progress",
        *("output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"),
        "completed",
    ]
    final = told[-1]["response"]
    assert [item["type"] for item in final["output"]] == ["reasoning", "message", "function_call"]
    done = [event["item"] for event in told if event["type"] == "response.output_item.done"]
    assert done == final["output"]
    added = [event["item"] for event in told if event["type"] == "response.output_item.added"]
    assert [item["id"] for item in added] == [item["id"] for item in done]
    assert {item["status"] for item in added} == {"in_progress"}
    arguments = "".join(event["delta"] for event in told if event["type"].endswith("arguments.delta"))
    assert json.loads(arguments) == {"city": "Oslo"}
    assert final["usage"]["output_tokens_details"]["reasoning_tokens"] > 1
    assert http.post(PATH, json=asked).text.endswith("data: [DONE]\n\n")


def test_the_clients_own_stream_reads_everything(scripted: Start) -> None:
    _, http = scripted(saying(f"Hm.</think>\n\nI look.\n\n{CALL}"))
    with client_of(http) as client:
        asked: Any = {**ROOM, "tools": [{**WEATHER, "strict": False}], "reasoning": {"effort": "low"}}
        with client.responses.stream(**asked) as stream:
            final = stream.get_final_response()
    assert final.output_text == "I look."
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]


def test_a_schema_is_held_to_and_parsed(scripted: Start) -> None:
    class City(BaseModel):
        name: str

    engine, http = scripted(saying('{"name": "Oslo"}'))
    with client_of(http) as client:
        parsed = client.responses.parse(**ROOM, text_format=City)
    assert parsed.output_parsed == City(name="Oslo")
    bad = {"type": "json_schema", "name": "x", "schema": {"type": "array", "uniqueItems": True}}
    answer = http.post(PATH, json={**ROOM, "text": {"format": bad}})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("text.format")
    assert len(engine.submitted) == 1


def test_a_conversation_goes_on_from_what_is_stored(scripted: Start) -> None:
    engine, http = scripted(saying(CALL))
    with client_of(http) as client:
        first = client.responses.create(**ROOM, instructions="Be brief.", tools=[WEATHER], reasoning={"effort": "none"})
        (call,) = first.output
        assert call.type == "function_call"
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "wet"}
        second = client.responses.create(
            model=NAME, previous_response_id=first.id, input=[result], tools=[WEATHER], instructions="Be long."
        )
        listed = client.responses.input_items.list(second.id, order="asc")
        assert [item.type for item in listed] == ["message", "function_call", "function_call_output"]
        page = client.responses.input_items.list(second.id, limit=1)
        assert [item.type for item in page] == ["function_call_output", "function_call", "message"]
        assert client.responses.retrieve(second.id).to_dict() == second.to_dict()
        client.responses.delete(second.id)
        with pytest.raises(sdk.NotFoundError, match="is kept here, or no longer: they stay in memory"):
            client.responses.retrieve(second.id)
    prompt = engine.prompts[-1]
    assert "Be brief." not in prompt
    assert "Be long." in prompt
    assert prompt.index("Hello") < prompt.index("<function=get_weather>\n<parameter=city>") < prompt.index("wet")


def test_nothing_is_kept_that_shall_not_be(scripted: Start) -> None:
    _, http = scripted(saying("Hello."))
    told = http.post(PATH, json={**ROOM, "store": False}).json()
    assert told["store"] is False
    assert http.get(f"{PATH}/{told['id']}").status_code == 404
    _, none = scripted(saying("Hello."), response_bytes=0)
    answer = none.post(PATH, json={**ROOM, "store": True})
    assert answer.headers["x-qwench-warnings"] == "store: nothing is stored here (--response-memory is 0)"
    assert answer.json()["store"] is False
    assert none.get(f"{PATH}/{answer.json()['id']}").status_code == 404


def test_what_is_stored_is_its_owners_alone(scripted: Start) -> None:
    _, http = scripted(saying("Hello."), keys=(Key.of("a"), Key.of("b")))
    mine, other = ({"authorization": f"Bearer {key}"} for key in "ab")
    name = http.post(PATH, json=ROOM, headers=mine).json()["id"]
    asked = {**ROOM, "previous_response_id": name}
    reference = {**ROOM, "input": [{"type": "item_reference", "id": f"msg_{name.removeprefix('resp_')}_0"}]}
    assert http.get(f"{PATH}/{name}", headers=other).status_code == 404
    assert http.delete(f"{PATH}/{name}", headers=other).status_code == 404
    assert http.post(f"{PATH}/{name}/cancel", headers=other).status_code == 404
    assert http.get(f"{PATH}/{name}/input_items", headers=other).status_code == 404
    assert http.post(PATH, json=asked, headers=other).status_code == 404
    assert http.post(PATH, json=reference, headers=other).status_code == 400
    assert http.post(PATH, json=asked, headers=mine).status_code == 200
    assert http.post(PATH, json=reference, headers=mine).status_code == 200


def test_work_in_the_background_is_asked_for_and_cancelled(scripted: Start) -> None:
    engine, http = scripted(pausing("One.", "Two."))
    with client_of(http) as client:
        first, second = (client.responses.create(**ROOM, background=True) for _ in range(2))
        assert first.status == "in_progress"
        assert client.responses.cancel(second.id).status == "cancelled"
        assert client.responses.cancel(second.id).status == "cancelled"
        wait_until(lambda: len(engine.alive) == 1)
        with pytest.raises(sdk.BadRequestError, match="is still being answered"):
            client.responses.create(**ROOM, previous_response_id=first.id)
        engine.go.set()
        wait_until(lambda: client.responses.retrieve(first.id).status == "completed")
        assert client.responses.retrieve(first.id).output_text == "One.Two."
        with pytest.raises(sdk.BadRequestError, match="is not being answered in the background"):
            client.responses.cancel(first.id)


def test_a_key_has_only_so_many_in_the_background(scripted: Start) -> None:
    engine, http = scripted(pausing("One.", "Two."), key_running=2)
    asked = {**ROOM, "background": True}
    assert [http.post(PATH, json=asked).status_code for _ in range(3)] == [200, 200, 429]
    engine.go.set()


def test_a_failure_in_the_background_is_told(scripted: Start) -> None:
    _, http = scripted(failing("error"))
    name = http.post(PATH, json={**ROOM, "background": True}).json()["id"]
    wait_until(lambda: http.get(f"{PATH}/{name}").json()["status"] == "failed")
    assert "failed on this request" in http.get(f"{PATH}/{name}").json()["error"]["message"]


def test_a_failure_in_a_stream_is_an_event(scripted: Start) -> None:
    _, http = scripted(failing("error", after="Once upon"))
    told = events(http.post(PATH, json={**ROOM, "stream": True}))
    assert told[-1]["type"] == "response.failed"
    assert told[-1]["response"]["error"]["code"] == "server_error"
    assert http.get(f"{PATH}/{told[-1]['response']['id']}").json()["status"] == "failed"


def test_a_custom_tool_gets_its_text(scripted: Start) -> None:
    patch = '*** Begin Patch\n*** Update File: a.py\n-x = 1\n+x = "2"\n*** End Patch'
    _, http = scripted(saying(xml("apply_patch", ("input", patch))))
    with client_of(http) as client:
        answer = client.responses.create(**ROOM, tools=[PATCH])
        (call,) = answer.output
        assert call.type == "custom_tool_call"
        assert (call.name, call.input) == ("apply_patch", patch)
        with client.responses.stream(**ROOM, tools=[PATCH]) as stream:
            kinds = [event.type.removeprefix("response.") for event in stream]
    assert kinds[2:-1] == [
        "output_item.added",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
    ]
    (message,) = chat_of([{"type": "custom_tool_call", "call_id": "c", "name": "apply_patch", "input": patch}])
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"input": patch}


def test_a_grammar_of_a_custom_tool_is_shown_and_told(scripted: Start) -> None:
    engine, http = scripted(saying("Done."))
    form = {"type": "grammar", "syntax": "lark", "definition": "start: begin_patch"}
    answer = http.post(PATH, json={**ROOM, "tools": [{**PATCH, "format": form}]})
    assert answer.headers["x-qwench-warnings"].startswith("tools[0].format: the model is shown the grammar")
    assert "start: begin_patch" in engine.prompts[-1]


def test_the_local_shell_is_a_function_and_back(scripted: Start) -> None:
    _, http = scripted(saying(xml("local_shell", ("command", '["ls", "-l"]'), ("timeout_ms", "100"))))
    (call,) = http.post(PATH, json={**ROOM, "tools": [{"type": "local_shell"}]}).json()["output"]
    assert call["type"] == "local_shell_call"
    assert call["action"] == {"type": "exec", "command": ["ls", "-l"], "env": {}, "timeout_ms": 100}
    output = {"type": "local_shell_call_output", "id": call["call_id"], "output": "total 0"}
    messages = chat_of([call, output])
    assert json.loads(messages[0]["tool_calls"][0]["function"]["arguments"])["command"] == ["ls", "-l"]
    assert messages[1]["tool_call_id"] == messages[0]["tool_calls"][0]["id"]


def test_a_namespace_is_unfolded_and_calls_find_their_way_back(scripted: Start) -> None:
    engine, http = scripted(saying(xml("crm.find", ("who", "Ada"))))
    find = {
        "type": "function",
        "name": "find",
        "parameters": {"type": "object", "properties": {"who": {"type": "string"}}},
    }
    space = {"type": "namespace", "name": "crm", "description": "Customers.", "tools": [find]}
    (call,) = http.post(PATH, json={**ROOM, "tools": [space]}).json()["output"]
    assert (call["name"], call["namespace"]) == ("find", "crm")
    (message,) = chat_of([call])
    assert message["tool_calls"][0]["function"]["name"] == "crm.find"
    assert '"crm.find"' in engine.prompts[-1]


def test_tools_that_openai_runs_are_left_out_and_told(scripted: Start) -> None:
    engine, http = scripted(saying("Hello."))
    tools = [{"type": "web_search"}, {"type": "image_generation", "output_format": "png"}]
    for choice in ("required", {"type": "web_search"}, {"type": "allowed_tools", "mode": "auto", "tools": tools[:1]}):
        answer = http.post(PATH, json={**ROOM, "tools": tools, "tool_choice": choice})
        assert answer.status_code == 200, answer.text
        assert "tools[0]: left out, 'web_search' is not run here" in answer.headers["x-qwench-warnings"]
        assert "tool_choice: " in answer.headers["x-qwench-warnings"]
    assert "web_search" not in engine.prompts[-1]


@pytest.mark.parametrize(
    ("choice", "calls"),
    [
        ("auto", 2),
        ("none", 0),
        ("required", 2),
        ({"type": "function", "name": "get_weather"}, 1),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_weather"}]}, 2),
    ],
)
def test_every_choice_of_tools(scripted: Start, choice: Any, calls: int) -> None:
    _, http = scripted(saying(f"{CALL}\n{CALL}"))
    body = http.post(PATH, json={**ROOM, "tools": [WEATHER, PATCH], "tool_choice": choice}).json()
    assert sum(item["type"] == "function_call" for item in body["output"]) == calls


def test_thoughts_come_back_with_clients_that_keep_only_what_is_sealed(scripted: Start) -> None:
    engine, http = scripted(saying("Hm.</think>\n\nI look."))
    asked = {**ROOM, "reasoning": {"effort": "low"}, "store": False, "include": ["reasoning.encrypted_content"]}
    thought, said = http.post(PATH, json=asked).json()["output"]
    kept = {name: value for name, value in thought.items() if name in ("type", "summary", "encrypted_content")}
    assert chat_of([kept, said])[0]["reasoning_content"] == "Hm."
    assert chat_of([thought, said])[0]["reasoning_content"] == "Hm."
    foreign = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAAB"}
    answer = http.post(PATH, json={**ROOM, "input": [foreign, *as_items("Hello")]})
    assert answer.headers["x-qwench-warnings"].startswith("input[0]: left out, its thoughts can be read")
    assert len(engine.prompts) == 2


def test_a_conversation_is_summed_up_and_goes_on_from_that(scripted: Start) -> None:
    engine, http = scripted(saying("The launch is on Tuesday."))
    with client_of(http) as client:
        before = client.responses.create(model=NAME, input="When do we launch?")
        more: Any = {"previous_response_id": before.id, "input": "And who knows?"}
        summed = client.responses.compact(model=NAME, **more)
        asked = engine.prompts[-1]
        output = http.post(f"{PATH}/compact", json={"model": NAME, **more}).json()["output"]
        client.responses.create(model=NAME, input=[*output, ROOM_FOR_MORE])
    assert "takes the place of this conversation" in asked
    assert "And who knows?" in asked
    assert summed.object == "response.compaction"
    assert [item.type for item in summed.output] == ["message", "message", "compaction"]
    assert summed.usage.output_tokens
    assert "What was said before, summed up:\n\nThe launch is on Tuesday." in engine.prompts[-1]
    assert "And who knows?" in engine.prompts[-1]
    foreign = http.post(
        PATH, json={**ROOM, "input": [{"type": "compaction", "encrypted_content": "gAAA"}, ROOM_FOR_MORE]}
    )
    assert foreign.headers["x-qwench-warnings"] == "input[0]: left out, nothing here reads compaction"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"model": None}, f"model is missing; send {NAME!r}."),
        ({"stream": True}, "stream is not possible here, a summary comes whole; leave it out."),
        ({"background": True}, "background is not possible here, a summary comes whole; leave it out."),
        ({"input": None}, "input is missing; send text, or a list of items."),
    ],
)
def test_what_no_summary_can_be_asked_with_is_refused(http: httpx.Client, more: dict[str, Any], told: str) -> None:
    answer = http.post(f"{PATH}/compact", json={**ROOM, **more})
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, told)


def test_what_belongs_together_is_one_answer() -> None:
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
    said = {"role": "assistant", "content": [{"type": "output_text", "text": "I look."}]}
    calls = [{"type": "function_call", "call_id": f"c{n}", "name": "f", "arguments": "{}"} for n in range(2)]
    results = [{"type": "function_call_output", "call_id": f"c{n}", "output": "wet"} for n in range(2)]
    messages = chat_of([thought, said, *calls, *results, thought, said, said], instructions="Be brief.")
    assert [message["role"] for message in messages] == [
        "system",
        "assistant",
        "tool",
        "tool",
        "assistant",
        "assistant",
    ]
    assert messages[1]["reasoning_content"] == "Hm."
    assert len(messages[1]["tool_calls"]) == 2
    assert "reasoning_content" not in messages[5]


def test_what_is_shown_is_seen(scripted: Start) -> None:
    engine, http = scripted(lambda _: Seeing(NANO, lambda _prompt, sampling: engine.spell("I see.", sampling)))
    image = {"type": "input_image", "image_url": data_uri(encoded(noise(64, 64)), "image/png"), "detail": "auto"}
    pdf = {"type": "input_file", "filename": "a.pdf", "file_data": data_uri(document(2), "application/pdf")}
    items: Any = [
        {"role": "user", "content": [image, pdf, {"type": "input_text", "text": "Compare."}]},
        {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [image]},
    ]
    with client_of(http) as client:
        assert client.responses.create(model=NAME, input=items).output_text == "I see."
        assert client.responses.input_tokens.count(model=NAME, input=items).input_tokens > 16
        assert client.responses.input_tokens.count(input="Hello").input_tokens > 3  # of the one model there is
    assert [span.media.kind for span in engine.shown[-1]] == ["image"] * 4
    items[2]["output"] = [{**image, "image_url": "data:image/png;base64,AAAA"}]
    answer = http.post(PATH, json={"input": items})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "input[2].output[0]"


def test_logprobs_are_told_where_asked_for(openai: OpenAI) -> None:
    asked: Any = {**GREEDY, "input": "Hello", "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    answer = openai.responses.create(**asked)
    part = answer.output[0].to_dict()["content"][0]
    assert len(part["logprobs"]) == 12
    assert len(part["logprobs"][0]["top_logprobs"]) == 2
    streamed = [
        event for event in openai.responses.create(**asked, stream=True) if event.type == "response.output_text.delta"
    ]
    assert [token["logprob"] for token in part["logprobs"]] == [
        each.logprob for event in streamed for each in event.logprobs
    ]


def test_codex_may_ask_with_nothing_to_see_who_is_there(openai: OpenAI) -> None:
    assert openai.responses.create(input=[], instructions="Hello.", **GREEDY).output
    assert openai.responses.create(input=[], **GREEDY).output


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"input": None}, "input is missing; send text, or a list of items."),
        ({"input": 7}, "input is 7; give text, or a list of items"),
        ({"input": [{"type": "hologram"}]}, "input[0].type is 'hologram', which is no item known here."),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role is 'robot'; known are user"),
        ({"input": [{"role": "user", "content": 3}]}, "input[0].content is 3; give a text or a list of parts."),
        ({"input": [{"role": "user", "content": [{"type": "smell"}]}]}, "input[0].content[0] is of type 'smell'"),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"}]},
            "input[0].arguments is not JSON",
        ),
        ({"input": [{"type": "item_reference", "id": "msg_x"}]}, "input[0] refers to 'msg_x', which is not kept here"),
        ({"tools": [{"type": "function"}]}, "tools[0].name is missing; "),
        ({"tools": [{"type": "web_search"}, {**WEATHER, "parameters": 3}]}, "tools[1].parameters is 3; "),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice names 'g'"),
        ({"text": {"format": {"type": "poem"}}}, "text.format is {'type': 'poem'}; "),
        ({"max_output_tokens": 0}, "max_output_tokens is 0; "),
        ({"max_output_tokens": 10_000}, "the prompt has "),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort is 'huge'; "),
        ({"conversation": "conv_1"}, "conversation is not supported: send previous_response_id"),
        ({"background": True, "stream": True}, "background cannot be combined with stream"),
        ({"background": True, "store": False}, "background cannot be combined with store"),
    ],
)
def test_wrong_values_are_refused_by_name(http: httpx.Client, more: dict[str, Any], told: str) -> None:
    answer = http.post(PATH, json={**GREEDY, "input": "Hello", **more})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"].startswith(told)
    assert "max_tokens" not in answer.text


def test_what_could_be_read_but_not_repeated_is_refused(http: httpx.Client) -> None:
    deep = f'{{"a":{"[" * 900}{"]" * 900}}}'
    for body in (f'{{"input": "Hello", "text": {deep}}}', '{"input": "Hello", "tools": [{"type": "x", "y": 1e999}]}'):
        answer = http.post(PATH, content=body)
        assert answer.status_code == 400, answer.text


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "order=up", "after=none"])
def test_a_wrong_page_is_refused_by_name(http: httpx.Client, query: str) -> None:
    name = http.post(PATH, json={**GREEDY, "input": "Hello"}).json()["id"]
    answer = http.get(f"{PATH}/{name}/input_items?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(query.partition("=")[0])
    assert http.get(f"{PATH}/{name}?stream=true").status_code == 400


def entry(name: str, size: int, earlier: Kept | None = None) -> Kept:
    return Kept("", {"id": name, "output": [{"id": f"{name}_0"}]}, [{"id": f"{name}_in"}], size, earlier)


def is_kept(store: ResponseStore, name: str) -> bool:
    try:
        return store.get(name, "").id == name
    except RequestError:
        return False


def test_the_least_lately_used_goes_first_and_never_what_others_go_on_from() -> None:
    store = ResponseStore(5000)
    first = entry("first", 1000)
    assert all(store.put(each) for each in (first, entry("second", 1000), entry("third", 1000, first)))
    store.get("second", "")
    assert store.put(entry("fourth", 1000))
    with pytest.raises(RequestError):
        store.get("third", "")
    assert store.get("first", "") is first
    assert store.put(entry("fifth", 1000))
    assert [name for name in ("first", "second", "fourth", "fifth") if is_kept(store, name)] == [
        "first",
        "fourth",
        "fifth",
    ]
    assert not store.put(entry("big", 5000))


def test_a_deleted_response_goes_with_the_last_that_goes_on_from_it() -> None:
    store = ResponseStore(1 << 20)
    first = entry("first", 10)
    second = entry("second", 10, first)
    store.put(first)
    store.put(second)
    store.delete(first)
    assert not is_kept(store, "first")
    assert [item["id"] for item in second.shown()] == ["first_in", "first_0", "second_in"]
    assert store.used > 0
    store.delete(second)
    assert store.used == 0


def test_loading_is_told(scripted: Start) -> None:
    engine, http = scripted(saying("Hello."))
    engine.become(EngineStatus("loading", 0.5))
    answer = http.post(PATH, json=ROOM)
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
