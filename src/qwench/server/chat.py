"""The shape of ``/v1/chat/completions``: chunks of a stream, or one body, from the same deltas. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Iterable

from qwench.engine.request import TokenLogprob
from qwench.server.answer import Answer, Delta, Format, Head
from qwench.text.reading import ToolCall
from qwench.text.stream import Call
from qwench.text.tokenizer import Tokenizer

LEAST_LOGPROB = -9999.0  # JSON has no minus infinity


class ChatFormat(Format):
    """Writes one chat answer. Reasoning stands under both of its names: ``reasoning_content`` and ``reasoning``."""

    def __init__(self, head: Head, answer: Answer, tokenizer: Tokenizer) -> None:
        self._head = head
        self._answer = answer
        self._tokenizer = tokenizer
        self._begun: set[int] = set()
        self._called: set[str] = set()
        self._ended = 0
        self._deltas: list[list[Delta]] = [[] for _ in range(answer.prepared.sampling.n)]

    def chunks(self, delta: Delta) -> list[dict[str, object]]:
        """The chunks that tell ``delta``: the choice's role first, its finish reason last."""
        chunks = []
        if delta.index not in self._begun:
            first = self._chunk(delta.index, {"role": "assistant", "content": ""})
            chunks.append(first if self._begun else {**first, "thinking": self._answer.prepared.thinking})
            self._begun.add(delta.index)
        if delta.kind == "end":
            self._ended += 1
            last = self._chunk(delta.index, {}, self._logprobs(delta.logprobs), delta)
            if self._ended == len(self._deltas):
                last |= {"timings": self._answer.timings(), **self._answer.extension()}
            return [*chunks, last]
        if delta.call is not None:
            return [*chunks, self._chunk(delta.index, self._part(delta.call, delta.text))]
        if delta.kind == "reasoning":
            text: dict[str, object] = {"reasoning_content": delta.text, "reasoning": delta.text}
            return [*chunks, self._chunk(delta.index, text)]
        return [*chunks, self._chunk(delta.index, {"content": delta.text}, self._logprobs(delta.logprobs))]

    def closing(self) -> list[dict[str, object]]:
        """The usage chunk, when it was asked for."""
        if not self._answer.prepared.include_usage:
            return []
        return [{**self._envelope("chat.completion.chunk"), "choices": [], "usage": self._answer.usage()}]

    def add(self, delta: Delta) -> None:
        self._deltas[delta.index].append(delta)

    def body(self) -> dict[str, object]:
        """The complete answer from all deltas added."""
        return {
            **self._envelope("chat.completion"),
            "choices": [self._choice(index, deltas) for index, deltas in enumerate(self._deltas)],
            "usage": self._answer.usage(),
            "timings": self._answer.timings(),
            **self._answer.extension(),
            "thinking": self._answer.prepared.thinking,
        }

    def _choice(self, index: int, deltas: list[Delta]) -> dict[str, object]:
        reasoning = "".join(delta.text for delta in deltas if delta.kind == "reasoning")
        logprobs = [logprob for delta in deltas for logprob in delta.logprobs]
        content = "".join(delta.text for delta in deltas if delta.kind == "content")
        arguments: dict[Call, str] = {}
        for delta in deltas:
            if delta.call is not None:
                arguments[delta.call] = arguments.get(delta.call, "") + delta.text
        calls = [ToolCall(call.id, call.name, text).document() for call, text in arguments.items()]
        message: dict[str, object] = {
            "role": "assistant",
            "content": None if calls and not content else content,
            "refusal": None,
            "annotations": [],
            "reasoning_content": reasoning or None,
            "reasoning": reasoning or None,
        }
        if calls and self._answer.prepared.legacy_calls:
            message["function_call"] = calls[0]["function"]
        elif calls:
            message["tool_calls"] = calls
        wanted = self._answer.prepared.sampling.logprobs is not None
        return {
            "index": index,
            "message": message,
            "logprobs": {"content": self._entries(logprobs), "refusal": None} if wanted else None,
            "finish_reason": self._reason(deltas[-1]),
            "finish_details": deltas[-1].details,
        }

    def _part(self, call: Call, arguments: str) -> dict[str, object]:
        """A piece of a call; its first says which function it is."""
        part: dict[str, object] = {"function": {"arguments": arguments}}
        if call.id not in self._called:
            self._called.add(call.id)
            part = ToolCall(call.id, call.name, arguments).document()
        if self._answer.prepared.legacy_calls:
            return {"function_call": part["function"]}
        return {"tool_calls": [{"index": call.index, **part}]}

    def _reason(self, end: Delta | None) -> str | None:
        reason = None if end is None else end.finish_reason
        return "function_call" if reason == "tool_calls" and self._answer.prepared.legacy_calls else reason

    def _envelope(self, kind: str) -> dict[str, object]:
        head = self._head
        return {
            "id": head.id,
            "object": kind,
            "created": head.created,
            "model": head.model,
            "system_fingerprint": head.fingerprint,
        }

    def _chunk(
        self, index: int, delta: dict[str, object], logprobs: object = None, end: Delta | None = None
    ) -> dict[str, object]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": self._reason(end)}
        if end is not None:
            choice["finish_details"] = end.details
        chunk = {**self._envelope("chat.completion.chunk"), "choices": [choice]}
        if self._answer.prepared.include_usage:
            chunk["usage"] = None  # the usage comes in a chunk of its own
        return chunk

    def _logprobs(self, logprobs: tuple[TokenLogprob, ...]) -> dict[str, object] | None:
        return {"content": self._entries(logprobs), "refusal": None} if logprobs else None

    def _entries(self, logprobs: Iterable[TokenLogprob]) -> list[dict[str, object]]:
        return [logprob_entry(logprob, self._tokenizer) for logprob in logprobs]


def logprob_entry(logprob: TokenLogprob, tokenizer: Tokenizer) -> dict[str, object]:
    """One token's log-probability, and those of the likeliest beside it."""

    def entry(token: int, value: float) -> dict[str, object]:
        return {
            "token": tokenizer.token_text(token),
            "logprob": max(value, LEAST_LOGPROB),
            "bytes": list(tokenizer.token_bytes(token)),
        }

    told = entry(logprob.token_id, logprob.logprob)
    return {**told, "top_logprobs": [entry(token, value) for token, value in logprob.top]}
