"""Anthropic's Messages API as an upstream: a chat completion is translated on its way out, the answer on its way back.

What Anthropic has no field for is left out with a warning that names it. Pure: bodies and events in and out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qwench.errors import RequestError

USUAL_LIMIT = 8192  # Anthropic wants a number; where a request has none, this one is sent and said
STOPS = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"}
COPIED = ("temperature", "top_p", "top_k", "metadata")
KNOWN = frozenset(
    (*COPIED, "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "stop", "tools")
) | {"tool_choice", "parallel_tool_calls", "n", "user"}
CHOICES = {"auto": {"type": "auto"}, "required": {"type": "any"}, "none": {"type": "none"}}


def request_to_messages(chat: Mapping[str, Any], model: str) -> tuple[dict[str, Any], list[str]]:
    """The body for ``/v1/messages``, and a warning for every field that it cannot hold."""
    warnings = [f"{name}: ignored, Anthropic has no such field" for name in chat if name not in KNOWN]
    limit = chat.get("max_completion_tokens") or chat.get("max_tokens")
    if limit is None:
        warnings.append(f"max_tokens: {USUAL_LIMIT} was sent, the tier needs a number")
    body: dict[str, Any] = {"model": model, "max_tokens": limit or USUAL_LIMIT, **_messages(chat["messages"])}
    body |= {name: chat[name] for name in COPIED if chat.get(name) is not None}
    stop = chat.get("stop")
    if stop is not None:
        body["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    if chat.get("tools"):
        body["tools"] = [_tool(tool) for tool in chat["tools"]]
        body["tool_choice"] = _choice(chat.get("tool_choice"), chat.get("parallel_tool_calls"))
    if chat.get("stream"):
        body["stream"] = True
    return body, warnings


def _messages(messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """System text apart; results of tools are blocks of a user; neighbours of one role are one message."""
    system: list[str] = []
    turns: list[dict[str, Any]] = []
    for message in messages:
        role = message.get("role")
        if role in ("system", "developer"):
            system += [block["text"] for block in _blocks(message.get("content")) if block["type"] == "text"]
            continue
        blocks = _blocks(message.get("content"))
        if role == "tool":
            blocks = [{"type": "tool_result", "tool_use_id": message.get("tool_call_id", ""), "content": blocks}]
        elif role == "assistant":
            blocks += [_use(call) for call in message.get("tool_calls") or ()]
        name = "assistant" if role == "assistant" else "user"
        if turns and turns[-1]["role"] == name:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": name, "content": blocks})
    return {"messages": turns, **({"system": "\n\n".join(system)} if system else {})}


def _blocks(content: object) -> list[dict[str, Any]]:
    parts = content if isinstance(content, list) else [content]
    return [block for part in parts if (block := _block(part)) is not None]


def _block(part: object) -> dict[str, Any] | None:
    if isinstance(part, str):
        return {"type": "text", "text": part} if part else None
    if not isinstance(part, Mapping):
        return None
    if part.get("type") == "image_url":
        given = part.get("image_url")
        return {"type": "image", "source": _source(given.get("url") if isinstance(given, Mapping) else given)}
    if part.get("type") == "file":
        return {"type": "document", "source": _source((part.get("file") or {}).get("file_data"))}
    if part.get("type") == "text":
        return (
            {key: part[key] for key in ("type", "text", "cache_control") if key in part} if part.get("text") else None
        )
    raise RequestError(f"A part of type {ascii(part.get('type'))[:40]} cannot go to this tier.", param="messages")


def _source(url: object) -> dict[str, Any]:
    head, comma, data = str(url).partition(",")
    if comma and head.startswith("data:"):
        kind = head.removeprefix("data:").partition(";")[0]
        return {"type": "base64", "media_type": kind, "data": data}
    return {"type": "url", "url": str(url)}


def _use(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    try:
        given = json.loads(function.get("arguments") or "{}")
    except ValueError:
        given = {}
    given = given if isinstance(given, dict) else {}
    return {"type": "tool_use", "id": call.get("id", ""), "name": function.get("name", ""), "input": given}


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool.get("function") or {}
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    told = {"description": function["description"]} if function.get("description") else {}
    return {"name": function.get("name", ""), "input_schema": schema, **told}


def _choice(choice: object, parallel: object) -> dict[str, Any]:
    if isinstance(choice, Mapping):
        found: dict[str, Any] = {"type": "tool", "name": (choice.get("function") or {}).get("name", "")}
    else:
        found = dict(CHOICES.get(str(choice), CHOICES["auto"]))
    return {**found, "disable_parallel_tool_use": True} if parallel is False and found["type"] != "none" else found


def message_to_completion(message: Mapping[str, Any]) -> dict[str, Any]:
    """A whole message as a chat completion. Raises ValueError where it is no message."""
    blocks = message.get("content")
    if not isinstance(blocks, list):
        raise ValueError("no content")
    text = "".join(str(block.get("text", "")) for block in blocks if block.get("type") == "text")
    thought = "".join(str(block.get("thinking", "")) for block in blocks if block.get("type") == "thinking")
    calls = [
        {
            "id": block.get("id", ""),
            "type": "function",
            "function": {"name": block.get("name", ""), "arguments": json.dumps(block.get("input", {}))},
        }
        for block in blocks
        if block.get("type") == "tool_use"
    ]
    said: dict[str, Any] = {"role": "assistant", "content": text or None, "refusal": None, "annotations": []}
    if thought:
        said |= {"reasoning_content": thought, "reasoning": thought}
    if calls:
        said["tool_calls"] = calls
    stop = STOPS.get(str(message.get("stop_reason")), "stop")
    return {
        "id": message.get("id", ""),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": message.get("model", ""),
        "choices": [{"index": 0, "message": said, "logprobs": None, "finish_reason": stop}],
        "usage": usage_to_openai(message.get("usage")),
    }


def usage_to_openai(usage: object) -> dict[str, Any]:
    """Anthropic's input leaves out what was cached, OpenAI's prompt tokens do not. Empty where nothing was told."""
    if not isinstance(usage, Mapping) or not isinstance(usage.get("input_tokens"), int):
        return {}
    cached, written = (usage.get(f"cache_{name}_input_tokens") or 0 for name in ("read", "creation"))
    prompt, output = usage["input_tokens"] + cached + written, usage.get("output_tokens") or 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
    }


class ChunkStream:
    """Events of one message as chunks of a chat completion. ``usage`` is what was told so far, in Anthropic's words."""

    def __init__(self) -> None:
        self.usage: dict[str, Any] = {}
        self._head: dict[str, Any] = {}
        self._calls = -1  # the index of the call that is being written

    def chunks(self, event: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        kind = event.get("type")
        if kind == "message_start":
            message = event.get("message") or {}
            self.usage |= message.get("usage") or {}
            self._head = {
                "id": message.get("id", ""),
                "object": "chat.completion.chunk",
                "created": int(time.time()),
                "model": message.get("model", ""),
            }
            yield self._chunk({"role": "assistant", "content": ""})
        elif kind == "content_block_start":
            yield from self._begun(event.get("content_block") or {})
        elif kind == "content_block_delta":
            yield from self._delta(event.get("delta") or {})
        elif kind == "message_delta":
            self.usage |= event.get("usage") or {}
            reason = (event.get("delta") or {}).get("stop_reason")
            yield self._chunk({}, STOPS.get(str(reason), "stop"))
            yield {**self._head, "choices": [], "usage": usage_to_openai(self.usage)}

    def _begun(self, block: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        if block.get("type") == "tool_use":
            self._calls += 1
            function = {"name": block.get("name", ""), "arguments": ""}
            call = {"index": self._calls, "id": block.get("id", ""), "type": "function", "function": function}
            yield self._chunk({"tool_calls": [call]})

    def _delta(self, delta: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        kind = delta.get("type")
        if kind == "text_delta":
            yield self._chunk({"content": delta.get("text", "")})
        elif kind == "thinking_delta":
            yield self._chunk({"reasoning_content": delta.get("thinking", ""), "reasoning": delta.get("thinking", "")})
        elif kind == "input_json_delta":
            piece = {"index": self._calls, "function": {"arguments": delta.get("partial_json", "")}}
            yield self._chunk({"tool_calls": [piece]})

    def _chunk(self, delta: Mapping[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {**self._head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}
