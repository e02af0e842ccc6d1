"""The shapes of ``/api/chat`` and ``/api/generate``: lines of a stream or one object, from the same deltas.

Durations are whole nanoseconds as they were measured. Knows no HTTP.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from qwench.errors import QwenchError
from qwench.server.answer import Answer, Delta, Format, Head
from qwench.server.chat import logprob_entry
from qwench.server.stretches import Stretch, Stretches
from qwench.text.tokenizer import Tokenizer


class OllamaFormat(Format):
    """A call is told when it is complete: Ollama's clients take no parts of one."""

    framed = False

    def __init__(self, head: Head, answer: Answer, tokenizer: Tokenizer) -> None:
        self._head = head
        self._answer = answer
        self._tokenizer = tokenizer
        self._stretches = Stretches()

    def chunks(self, delta: Delta) -> list[dict[str, object]]:
        """The line of a delta, behind the call that is over with it."""
        before = self._stretches[-1] if self._stretches else None
        over = self._stretches.add(delta) or delta.kind == "end"
        told = [self._line([before])] if before is not None and before.call is not None and over else []
        if delta.kind == "end":
            return [*told, self._last([])]
        if delta.call is None:
            told.append(self._line([Stretch(delta.kind, None, [delta.text], list(delta.logprobs))]))
        return told

    def failure(self, error: QwenchError) -> list[dict[str, object]]:
        return [{"error": error.message}]

    def add(self, delta: Delta) -> None:
        self._stretches.add(delta)

    def body(self) -> dict[str, object]:
        """The complete answer from all deltas added."""
        return self._last(self._stretches)

    @abstractmethod
    def part(self, content: str, thinking: str, calls: list[dict[str, object]]) -> dict[str, object]:
        """Where a line has what is said."""

    def _line(self, stretches: Sequence[Stretch], *, done: bool = False) -> dict[str, object]:
        texts = {
            kind: "".join(each.text for each in stretches if each.kind == kind) for kind in ("content", "reasoning")
        }
        calls = [_call(each) for each in stretches if each.call is not None]
        line = {**begun(self._head.model), **self.part(texts["content"], texts["reasoning"], calls), "done": done}
        logprobs = [logprob_entry(each, self._tokenizer) for stretch in stretches for each in stretch.logprobs]
        return {**line, "logprobs": logprobs} if logprobs else line

    def _last(self, stretches: Sequence[Stretch]) -> dict[str, object]:
        """The line with the reason and the measurements."""
        answer, end = self._answer, self._stretches.end
        length = end is not None and end.finish_reason == "length"
        timings: dict[str, Any] = answer.timings()
        usage: dict[str, Any] = answer.usage()
        return {
            **self._line(stretches, done=True),
            "done_reason": "length" if length else "stop",
            "total_duration": int(1e9 * (answer.clock() - answer.trail.arrived)),
            "load_duration": 0,  # the model is there
            "prompt_eval_count": usage["prompt_tokens"],
            "prompt_eval_duration": int(1e6 * timings["prompt_ms"]),
            "eval_count": usage["completion_tokens"],
            "eval_duration": int(1e6 * timings["predicted_ms"]),
        }


class OllamaChatFormat(OllamaFormat):
    """Of ``/api/chat``."""

    def part(self, content: str, thinking: str, calls: list[dict[str, object]]) -> dict[str, object]:
        message: dict[str, object] = {"role": "assistant", "content": content}
        return {
            "message": message | ({"thinking": thinking} if thinking else {}) | ({"tool_calls": calls} if calls else {})
        }


class OllamaGenerateFormat(OllamaFormat):
    """Of ``/api/generate``."""

    def part(self, content: str, thinking: str, calls: list[dict[str, object]]) -> dict[str, object]:
        assert not calls, "it takes no tools"
        return {"response": content, **({"thinking": thinking} if thinking else {})}


def begun(model: str) -> dict[str, object]:
    """How every line begins."""
    return {"model": model, "created_at": stamp(datetime.now(UTC))}


def stamp(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _call(stretch: Stretch) -> dict[str, object]:
    assert stretch.call is not None
    call = stretch.call
    function = {"index": call.index, "name": call.name, "arguments": json.loads(stretch.text)}
    return {"id": call.id, "function": function}
