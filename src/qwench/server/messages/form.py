"""The shape of ``/v1/messages``: blocks in a body, or the events of a stream, from the same deltas. Knows no HTTP."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from typing import Any

from qwench.errors import QwenchError
from qwench.server.answer import Answer, Delta, Format, Head
from qwench.server.errors import anthropic_error
from qwench.server.stretches import Stretch, Stretches
from qwench.text.tokenizer import Tokenizer

PING: dict[str, object] = {"type": "ping"}


class MessageForm(Format):
    """Writes one message. Who answered knows why it ended and what it took."""

    named = True
    done = False

    def __init__(self, head: Head) -> None:
        self._head = head
        self._stretches = Stretches()
        self._begun = False

    def chunks(self, delta: Delta) -> list[dict[str, object]]:
        """The events that tell ``delta``: what is over is closed before something else begins."""
        events: list[dict[str, object]] = [] if self._begun else [self._start(), PING]
        self._begun = True
        last = len(self._stretches) - 1
        begins = self._stretches.add(delta)
        if last >= 0 and (begins or delta.kind == "end"):
            events += self._close(last)
        if delta.kind == "end":
            stopped = {**self._stop(), "container": None}
            return [
                *events,
                {"type": "message_delta", "delta": stopped, "usage": self._usage()},
                {"type": "message_stop"},
            ]
        index = len(self._stretches) - 1
        if begins:
            block = _empty(self._stretches[-1])
            events.append({"type": "content_block_start", "index": index, "content_block": block})
        kind = {"reasoning": "thinking", "content": "text"}.get(delta.kind, "partial_json")
        told = {"type": "input_json_delta" if delta.call else f"{kind}_delta", kind: delta.text}
        return [*events, {"type": "content_block_delta", "index": index, "delta": told}]

    def pulse(self) -> list[dict[str, object]]:
        return [dict(PING)]

    def failure(self, error: QwenchError) -> list[dict[str, object]]:
        return [anthropic_error(error, None)]

    def add(self, delta: Delta) -> None:
        self._stretches.add(delta)

    def body(self) -> dict[str, object]:
        """The complete message from all deltas added."""
        content = [_block(stretch) for stretch in self._stretches]
        return {**self._message(content), **self._stop(), "usage": self._usage()}

    def _start(self) -> dict[str, object]:
        unknown = {"stop_reason": None, "stop_sequence": None, "stop_details": None}
        message = {**self._message([]), **unknown, "usage": self._usage()}
        return {"type": "message_start", "message": message}

    def _close(self, index: int) -> list[dict[str, object]]:
        stretch = self._stretches[index]
        events: list[dict[str, object]] = [{"type": "content_block_stop", "index": index}]
        if stretch.kind == "reasoning":
            signed = {"type": "signature_delta", "signature": signature(stretch.text)}
            events.insert(0, {"type": "content_block_delta", "index": index, "delta": signed})
        return events

    def _message(self, content: list[dict[str, Any]]) -> dict[str, object]:
        return {
            "id": self._head.id,
            "type": "message",
            "role": "assistant",
            "model": self._head.model,
            "content": content,
            "container": None,
        }

    @abstractmethod
    def _stop(self) -> dict[str, object]:
        """``stop_reason`` and ``stop_sequence``."""

    @abstractmethod
    def _usage(self) -> dict[str, object]: ...


class MessageFormat(MessageForm):
    """A message that is answered here. It begins with its first token, when it is known how much of the prompt was."""

    def __init__(self, head: Head, answer: Answer, _tokenizer: Tokenizer) -> None:
        super().__init__(head)
        self._answer = answer

    def _stop(self) -> dict[str, object]:
        """``max_tokens`` are left away where the window is the nearer bound."""
        assert self._stretches.end is not None
        reading = self._answer.choices[0].reading
        reason = {"tool_calls": "tool_use", "length": "max_tokens"}.get(
            self._stretches.end.finish_reason or "", "end_turn"
        )
        if reason == "max_tokens" and self._answer.prepared.sampling.max_tokens is None:
            reason = "model_context_window_exceeded"
        text = reading.stop_reason if reason == "end_turn" and isinstance(reading.stop_reason, str) else None
        return {"stop_reason": "stop_sequence" if text else reason, "stop_sequence": text, "stop_details": None}

    def _usage(self) -> dict[str, object]:
        """Each prompt token counts once: as known already, as kept by a mark of the client, or else as input."""
        answer = self._answer
        total = sum(len(prompt.token_ids) for prompt in answer.prepared.prompts)
        cached, written = answer.cached_tokens(), answer.written_tokens()
        thinking = sum(choice.reading.reasoning_tokens for choice in answer.choices)
        return {
            "input_tokens": total - cached - written,
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": cached,
            "cache_creation": None,
            "output_tokens": sum(choice.reading.num_tokens for choice in answer.choices),
            "output_tokens_details": {"thinking_tokens": thinking},
            "server_tool_use": None,
            "inference_geo": None,
            "service_tier": "standard",
        }


def signature(thinking: str) -> str:
    """What Anthropic's clients expect beside a thought. It proves nothing and is asked of nobody who sends it back."""
    return hashlib.sha256(thinking.encode("utf-8", "replace")).hexdigest()


def _empty(stretch: Stretch) -> dict[str, Any]:
    if stretch.call is not None:
        told = {"id": stretch.call.id, "name": stretch.call.name, "input": {}}
        return {"type": "tool_use", **told, "caller": {"type": "direct"}}
    if stretch.kind == "reasoning":
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "text", "text": "", "citations": None}


def _block(stretch: Stretch) -> dict[str, Any]:
    block = _empty(stretch)
    if stretch.call is not None:
        return block | {"input": json.loads(stretch.text)}
    if stretch.kind == "reasoning":
        return block | {"thinking": stretch.text, "signature": signature(stretch.text)}
    return block | {"text": stretch.text}
