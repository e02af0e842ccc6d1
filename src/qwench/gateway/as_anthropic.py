"""Anthropic's Messages API as a face: what a client sends becomes a chat completion, the answer becomes a message.

Pure: bodies and chunks in, bodies and events out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from qwench.errors import RequestError

STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
COPIED = ("model", "stream", "temperature", "top_p", "top_k", "max_tokens", "thinking", "output_config", "service_tier")
CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def request_to_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """Raises RequestError naming the field that is wrong."""
    if not isinstance(body.get("messages"), list):
        raise RequestError("messages must be a list of objects with role and content.", param="messages")
    messages: list[dict[str, Any]] = []
    if body.get("system"):
        messages.append({"role": "system", "content": _content(body["system"], "system")})
    for place, message in enumerate(body["messages"]):
        if not isinstance(message, Mapping):
            raise RequestError(f"messages[{place}] must be an object with role and content.", param="messages")
        messages += _message(message, f"messages[{place}].content")
    chat: dict[str, Any] = {name: body[name] for name in COPIED if body.get(name) is not None}
    chat["messages"] = messages
    if body.get("stop_sequences"):
        chat["stop"] = body["stop_sequences"]
    if body.get("tools"):
        chat["tools"] = [_tool(tool, place) for place, tool in enumerate(body["tools"])]
    choice = body.get("tool_choice")
    if isinstance(choice, Mapping):
        named = {"type": "function", "function": {"name": choice.get("name", "")}}
        chat["tool_choice"] = CHOICES.get(str(choice.get("type")), named)
        if choice.get("disable_parallel_tool_use"):
            chat["parallel_tool_calls"] = False
    return chat


def _message(message: Mapping[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """One turn: what tools found first, then what was said."""
    content = message.get("content")
    blocks = content if isinstance(content, list) else []
    for block in blocks:
        if isinstance(block, Mapping) and block.get("type") == "tool_result":
            found = _content(block.get("content") or "", where)
            yield {"role": "tool", "tool_call_id": block.get("tool_use_id", ""), "content": found}
    rest = [block for block in blocks if not (isinstance(block, Mapping) and block.get("type") in APART)]
    said: dict[str, Any] = {"role": message.get("role"), "content": content if not blocks else _content(rest, where)}
    thoughts = [block for block in blocks if isinstance(block, Mapping) and block.get("type") == "thinking"]
    if thoughts:
        said["reasoning_content"] = "".join(str(block.get("thinking", "")) for block in thoughts)
    calls = [_call(block) for block in blocks if isinstance(block, Mapping) and block.get("type") == "tool_use"]
    if calls:
        said["tool_calls"] = calls
    if said["content"] or calls or not blocks:
        yield said


APART = frozenset({"tool_result", "tool_use", "thinking", "redacted_thinking"})


def _content(given: object, where: str) -> str | list[dict[str, Any]]:
    """Blocks as parts; of text alone, as one text."""
    if isinstance(given, str):
        return given
    if not isinstance(given, list) or not all(isinstance(block, Mapping) for block in given):
        raise RequestError(f"{where} must be a text or a list of blocks.", param=where)
    parts = [_part(block, where) for block in given]
    if all(part["type"] == "text" and "cache_control" not in part for part in parts):
        return "\n".join(str(part["text"]) for part in parts)
    return parts


def _part(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind, source = block.get("type"), block.get("source")
    if kind == "text":
        return {key: block[key] for key in ("type", "text", "cache_control") if key in block}
    if kind in ("image", "document") and isinstance(source, Mapping):
        url = source.get("url") or f"data:{source.get('media_type', '')};base64,{source.get('data', '')}"
        if kind == "image":
            return {"type": "image_url", "image_url": {"url": url}}
        return {"type": "file", "file": {"file_data": url}}
    raise RequestError(f"{where} holds a block of type {ascii(kind)[:40]}, which is not read here.", param=where)


def _call(block: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": block.get("name", ""), "arguments": json.dumps(block.get("input", {}))}
    return {"id": block.get("id", ""), "type": "function", "function": function}


def _tool(tool: object, place: int) -> dict[str, Any]:
    if not isinstance(tool, Mapping) or not isinstance(tool.get("input_schema"), Mapping):
        raise RequestError(f"tools[{place}] must have a name and an input_schema.", param=f"tools[{place}]")
    told = {"description": tool["description"]} if tool.get("description") else {}
    function = {"name": tool.get("name", ""), "parameters": tool["input_schema"], **told}
    return {"type": "function", "function": function}


def usage_to_anthropic(usage: object) -> dict[str, Any]:
    """``prompt_tokens`` without what was cached, as Anthropic counts; what is ours stays beside it."""
    told = usage if isinstance(usage, Mapping) else {}
    details = told.get("prompt_tokens_details") or {}
    cached, written = details.get("cached_tokens") or 0, details.get("cache_write_tokens") or 0
    prompt = told.get("prompt_tokens") or 0
    extra = {"qwench": told["qwench"]} if "qwench" in told else {}
    return {
        "input_tokens": max(prompt - cached - written, 0),
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": written,
        "output_tokens": told.get("completion_tokens") or 0,
        **extra,
    }


def completion_to_message(completion: Mapping[str, Any]) -> dict[str, Any]:
    choice = completion["choices"][0]
    said = choice.get("message") or {}
    blocks: list[dict[str, Any]] = []
    thought = said.get("reasoning_content") or said.get("reasoning")
    if thought:
        blocks.append({"type": "thinking", "thinking": thought, "signature": SIGNATURE})
    if said.get("content"):
        blocks.append({"type": "text", "text": said["content"]})
    for call in said.get("tool_calls") or ():
        function = call.get("function") or {}
        blocks.append(
            {"type": "tool_use", "id": call.get("id", ""), "name": function.get("name", ""), "input": _input(function)}
        )
    return {
        "id": completion.get("id", ""),
        "type": "message",
        "role": "assistant",
        "model": completion.get("model", ""),
        "content": blocks,
        "stop_reason": STOPS.get(str(choice.get("finish_reason")), "end_turn"),
        "stop_sequence": None,
        "usage": usage_to_anthropic(completion.get("usage")),
    }


SIGNATURE = "qwench"  # clients send it back with the thinking, and nobody checks it


def _input(function: Mapping[str, Any]) -> dict[str, Any]:
    try:
        given = json.loads(function.get("arguments") or "{}")
    except ValueError:
        return {}
    return given if isinstance(given, dict) else {}


class EventStream:
    """Chunks of one chat completion as events of a message: one block open at a time."""

    def __init__(self) -> None:
        self._index = -1
        self._open = ""
        self._stop = "end_turn"
        self._begun = False
        self._usage: object = None

    def events(self, chunk: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        if not self._begun:
            self._begun = True
            head = {"id": chunk.get("id", ""), "type": "message", "role": "assistant", "model": chunk.get("model", "")}
            empty: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
            told = {**head, **empty, "usage": usage_to_anthropic(None)}
            yield {"type": "message_start", "message": told}
        if chunk.get("usage"):
            self._usage = chunk["usage"]
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            thought = delta.get("reasoning_content") or delta.get("reasoning")
            if thought:
                yield from self._piece("thinking", {"type": "thinking_delta", "thinking": thought})
            if delta.get("content"):
                yield from self._piece("text", {"type": "text_delta", "text": delta["content"]})
            for call in delta.get("tool_calls") or ():
                yield from self._call(call)
            if choice.get("finish_reason"):
                self._stop = STOPS.get(str(choice["finish_reason"]), "end_turn")

    def closing(self) -> Iterator[dict[str, Any]]:
        yield from self._close()
        delta = {"stop_reason": self._stop, "stop_sequence": None}
        yield {"type": "message_delta", "delta": delta, "usage": usage_to_anthropic(self._usage)}
        yield {"type": "message_stop"}

    def _piece(self, kind: str, delta: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        if self._open != kind:
            block = {"type": kind, kind: "", **({"signature": ""} if kind == "thinking" else {})}
            yield from self._start(kind, block)
        yield {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _call(self, call: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        function = call.get("function") or {}
        kind = f"call {call.get('index', 0)}"
        if self._open != kind:
            block = {"type": "tool_use", "id": call.get("id", ""), "name": function.get("name", ""), "input": {}}
            yield from self._start(kind, block)
        if function.get("arguments"):
            delta = {"type": "input_json_delta", "partial_json": function["arguments"]}
            yield {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _start(self, kind: str, block: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self._close()
        self._index += 1
        self._open = kind
        yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _close(self) -> Iterator[dict[str, Any]]:
        if not self._open:
            return
        if self._open == "thinking":
            signed = {"type": "signature_delta", "signature": SIGNATURE}
            yield {"type": "content_block_delta", "index": self._index, "delta": signed}
        yield {"type": "content_block_stop", "index": self._index}
        self._open = ""
