"""The faces that clients see: OpenAI's chat completions, completions and responses, Anthropic's messages, each with
what the answer cost.

An event of the upstream's own dialect is handed on as the bytes it came in; what another dialect said is written anew,
by the server's own forms. The end of an answer is held back until its row is in the ledger. Knows no connection and no
upstream.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from qwench.errors import QwenchError
from qwench.gateway.deltas import Deltas
from qwench.gateway.records import new_id
from qwench.gateway.upstream import DONE, Event
from qwench.gateway.usage import Count, openai_usage
from qwench.gateway.wanted import Face, Wanted
from qwench.server.answer import Head
from qwench.server.errors import anthropic_error, encode, error_body
from qwench.server.messages.form import PING, MessageForm
from qwench.server.responses.fields import ResponsesRequest
from qwench.server.responses.form import ResponseForm, asked_for
from qwench.server.responses.tools import Offer
from qwench.server.sse import comment, event

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
        told = comment("keep-alive") if event.name == "comment" else b""
        for chunk in chunks:
            self._head = chunk
            if chunk.get("usage") and not chunk["choices"]:
                self._usage = chunk["usage"]
            else:
                told += event.raw if spoken == "openai" else b"data: " + encode(chunk) + b"\n\n"
        return told

    def end(self, receipt: Receipt) -> bytes:
        if not self._wants_usage:
            return comment(f"qwench {json.dumps(receipt)}") + DONE
        usage = _with(self._usage, receipt)
        told: dict[str, Any] = {"choices": [], "usage": usage}
        told |= {name: self._head[name] for name in ("id", "object", "created", "model") if name in self._head}
        return event(told) + DONE

    def fail(self, error: QwenchError) -> bytes:
        return event(error_body(error))

    def whole(self, answer: Answer, receipt: Receipt) -> dict[str, Any]:
        return {**answer.completion, "usage": _with(answer.completion.get("usage"), receipt)}


class Message(MessageForm):
    """A message that somebody else answers."""

    def __init__(self, head: Head, deltas: Deltas) -> None:
        super().__init__(head)
        self._deltas = deltas
        self.receipt: Receipt | None = None

    def _stop(self) -> dict[str, object]:
        reasons = {"tool_calls": "tool_use", "length": "max_tokens"}
        reason = reasons.get(self._deltas.end.finish_reason or "", "end_turn")
        told = "refusal" if self._deltas.refused else reason
        return {"stop_reason": told, "stop_sequence": None, "stop_details": None}

    def _usage(self) -> dict[str, object]:
        """``prompt_tokens`` without what was cached, as Anthropic counts; its clients want numbers in any case."""
        told = openai_usage(self._deltas.usage)
        cached, written = _number(told.cached), _number(told.written)
        return {
            "input_tokens": max(_number(told.input) - cached - written, 0),
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": written,
            "output_tokens": _number(told.output),
            **({"qwench": self.receipt} if self.receipt else {}),
        }


class Response(ResponseForm):
    """A response that somebody else answers; nothing of it is kept."""

    def __init__(self, head: Head, deltas: Deltas, request: ResponsesRequest, offer: Offer) -> None:
        named = Head(f"resp_{new_id()}", head.created, head.model, head.fingerprint)
        super().__init__(asked_for(named, request, request, None), request, offer, lambda _body: None)
        self._deltas = deltas
        self.receipt: Receipt | None = None

    def _logprobs(self, told: Sequence[object]) -> list[dict[str, object]]:
        assert not told, "deltas of others bring none"
        return []

    def _usage(self) -> dict[str, object]:
        extra: dict[str, object] = {"qwench": self.receipt} if self.receipt else {}
        if self._deltas.usage is None:
            return extra
        told = openai_usage(self._deltas.usage)
        given, made = _number(told.input), _number(told.output)
        return {
            "input_tokens": given,
            "input_tokens_details": {"cached_tokens": _number(told.cached)},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": _number(told.reasoning)},
            "total_tokens": given + made,
            **extra,
        }


Form = Message | Response


class FormWriter:
    """A face that is written by a form of the server's, which is made when the first chunk tells who answers."""

    def __init__(self, make: Callable[[Head, Deltas], Form]) -> None:
        self._make = make
        self._form: Form | None = None
        self._deltas = Deltas()

    def write(self, event: Event, chunks: list[dict[str, Any]], spoken: Face) -> bytes:
        del spoken
        if event.name == "comment":
            return self._tell(self._form.pulse()) if self._form else comment("keep-alive")
        told = b""
        for chunk in chunks:
            if self._form is None:
                told += self._tell(self._begun(chunk).opening())
            form = self._begun(chunk)
            told += b"".join(self._tell(form.chunks(delta)) for delta in self._deltas.of_chunk(chunk))
        return told

    def end(self, receipt: Receipt) -> bytes:
        form = self._begun({})
        form.receipt = receipt
        return self._tell(form.chunks(self._deltas.end))

    def fail(self, error: QwenchError) -> bytes:
        return self._tell(self._begun({}).failure(error))

    def whole(self, answer: Answer, receipt: Receipt) -> dict[str, Any]:
        form = self._begun(answer.completion)
        for delta in self._deltas.of_completion(answer.completion):
            form.add(delta)
        form.receipt = receipt
        return form.body()

    def _begun(self, told: Mapping[str, Any]) -> Form:
        if self._form is None:
            head = Head(str(told.get("id") or f"msg_{new_id()}"), int(time.time()), str(told.get("model") or ""), "")
            self._form = self._make(head, self._deltas)
        return self._form

    @staticmethod
    def _tell(payloads: Sequence[Mapping[str, object]]) -> bytes:
        return b"".join(event(payload, named=True) for payload in payloads)


class AnthropicWriter(FormWriter):
    """Messages of an upstream that speaks them already are handed on as they are."""

    def __init__(self) -> None:
        super().__init__(Message)
        self._last: dict[str, Any] | None = None  # message_delta, in Anthropic's own words

    def write(self, event: Event, chunks: list[dict[str, Any]], spoken: Face) -> bytes:
        if event.name == "comment":
            return self._tell([PING])
        if spoken != "anthropic":
            return super().write(event, chunks, spoken)
        kind = event.data.get("type") if event.data else None
        if kind == "message_delta":
            self._last = event.data
        return b"" if kind in ("message_delta", "message_stop", None) else event.raw

    def end(self, receipt: Receipt) -> bytes:
        if self._last is None:
            return super().end(receipt)
        return self._tell([{**self._last, "usage": _with(self._last.get("usage"), receipt)}, {"type": "message_stop"}])

    def fail(self, error: QwenchError) -> bytes:
        return self._tell([anthropic_error(error, None)])

    def whole(self, answer: Answer, receipt: Receipt) -> dict[str, Any]:
        if answer.spoken == "anthropic":
            return {**answer.told, "usage": _with(answer.told.get("usage"), receipt)}
        return super().whole(answer, receipt)


def writer(wanted: Wanted) -> Writer:
    if wanted.face == "anthropic":
        return AnthropicWriter()
    if wanted.response is not None:
        request, offer = wanted.response
        return FormWriter(lambda head, deltas: Response(head, deltas, request, offer))
    options = wanted.body.get("stream_options")
    return OpenAIWriter(wants_usage=isinstance(options, Mapping) and options.get("include_usage") is True)


def _number(count: Count) -> int:
    """Where these faces have no word for what is not known; the receipt beside it tells."""
    return count if isinstance(count, int) else 0


def _with(usage: object, receipt: Receipt) -> dict[str, Any]:
    """Usage as the upstream told it, whatever it is, and the receipt."""
    return {**(usage if isinstance(usage, Mapping) else {}), "qwench": receipt}
