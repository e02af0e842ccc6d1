"""Two faces that clients see: OpenAI's chat completions and Anthropic's messages, each with what the answer cost.

An event of the upstream's own dialect is handed on as the bytes it came in; only what another dialect said is written
anew. The end of an answer is held back until its row is in the ledger. Knows no connection and no upstream.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from qwench.errors import QwenchError
from qwench.gateway.as_anthropic import EventStream, completion_to_message
from qwench.gateway.providers import Face
from qwench.gateway.upstream import DONE, Event
from qwench.server.errors import anthropic_error, encode, error_body

Receipt = Mapping[str, Any]  # the extension of usage


@dataclass(frozen=True)
class Answer:
    """A whole answer: as it was ``told`` in the dialect that was ``spoken``, and as a chat completion."""

    told: Mapping[str, Any]
    spoken: Face
    completion: Mapping[str, Any]


class Writer(Protocol):
    """One answer's worth of a face."""

    def write(self, event: Event, chunks: list[dict[str, Any]], spoken: Face) -> bytes: ...

    def end(self, receipt: Receipt) -> bytes: ...

    def fail(self, error: QwenchError) -> bytes: ...

    def whole(self, answer: Answer, receipt: Receipt) -> dict[str, Any]: ...


class OpenAIWriter:
    """``wants_usage``: the client asked for a chunk with usage; else the receipt comes as a comment."""

    def __init__(self, *, wants_usage: bool = False) -> None:
        self._wants_usage = wants_usage
        self._usage: object = None
        self._head: dict[str, Any] = {}

    def write(self, event: Event, chunks: list[dict[str, Any]], spoken: Face) -> bytes:
        told = b": keep-alive\n\n" if event.name == "comment" else b""
        for chunk in chunks:
            self._head = chunk
            if chunk.get("usage") and not chunk["choices"]:
                self._usage = chunk["usage"]
            else:
                told += event.raw if spoken == "openai" else b"data: " + encode(chunk) + b"\n\n"
        return told

    def end(self, receipt: Receipt) -> bytes:
        if not self._wants_usage:
            return b": qwench " + json.dumps(receipt).encode() + b"\n\n" + DONE
        usage = _with(self._usage, receipt)
        told: dict[str, Any] = {"choices": [], "usage": usage}
        told |= {name: self._head[name] for name in ("id", "object", "created", "model") if name in self._head}
        return b"data: " + encode(told) + b"\n\n" + DONE

    def fail(self, error: QwenchError) -> bytes:
        return b"data: " + encode(error_body(error)) + b"\n\n"

    def whole(self, answer: Answer, receipt: Receipt) -> dict[str, Any]:
        return {**answer.completion, "usage": _with(answer.completion.get("usage"), receipt)}


class AnthropicWriter:
    def __init__(self) -> None:
        self._stream = EventStream()
        self._last: dict[str, Any] | None = None  # message_delta, in Anthropic's own words

    def write(self, event: Event, chunks: list[dict[str, Any]], spoken: Face) -> bytes:
        if event.name == "comment":
            return _event({"type": "ping"})
        if spoken == "anthropic":
            kind = event.data.get("type") if event.data else None
            if kind == "message_delta":
                self._last = event.data
            return b"" if kind in ("message_delta", "message_stop", None) else event.raw
        return b"".join(_event(each) for chunk in chunks for each in self._stream.events(chunk))

    def end(self, receipt: Receipt) -> bytes:
        closing = [self._last, {"type": "message_stop"}] if self._last else list(self._stream.closing())
        for event in closing:
            if event["type"] == "message_delta":
                event["usage"] = _with(event.get("usage"), receipt)
        return b"".join(map(_event, closing))

    def fail(self, error: QwenchError) -> bytes:
        return _event(anthropic_error(error, None))

    def whole(self, answer: Answer, receipt: Receipt) -> dict[str, Any]:
        if answer.spoken == "anthropic":
            return {**answer.told, "usage": _with(answer.told.get("usage"), receipt)}
        usage = _with(answer.completion.get("usage"), receipt)
        return completion_to_message({**answer.completion, "usage": usage})


def writer(face: Face, body: Mapping[str, Any]) -> Writer:
    if face == "anthropic":
        return AnthropicWriter()
    options = body.get("stream_options")
    return OpenAIWriter(wants_usage=isinstance(options, Mapping) and options.get("include_usage") is True)


def _with(usage: object, receipt: Receipt) -> dict[str, Any]:
    """Usage as the upstream told it, whatever it is, and the receipt."""
    return {**(usage if isinstance(usage, Mapping) else {}), "qwench": receipt}


def _event(payload: Mapping[str, Any]) -> bytes:
    return b"event: " + str(payload["type"]).encode() + b"\ndata: " + encode(payload) + b"\n\n"
