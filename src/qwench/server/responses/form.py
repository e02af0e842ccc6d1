"""The shape of ``/v1/responses``: items in a body, or the events of a stream, from the same deltas. Knows no HTTP."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qwench.engine.request import SamplingParams, TokenLogprob
from qwench.errors import ContextLengthExceeded, QwenchError
from qwench.server.answer import Answer, Delta, Format, Head
from qwench.server.chat import logprob_entry
from qwench.server.responses.conversation import SEALED_THOUGHTS
from qwench.server.responses.fields import ResponsesRequest
from qwench.server.responses.items import seal
from qwench.server.responses.tools import Offer, Origin, call_item
from qwench.server.stretches import Stretch, Stretches
from qwench.text.tokenizer import Tokenizer

Event = dict[str, object]
Keep = Callable[[Mapping[str, Any]], None]
PREFIXES = {"reasoning": "rs", "content": "msg", "tool_call": "fc"}


class ResponseForm(Format):
    """Writes one response. ``asked``: what it repeats of its request; ``keep`` is told its body once that is final,
    however it ended. Who answered knows what it took."""

    named = True

    def __init__(self, asked: Mapping[str, Any], request: ResponsesRequest, offer: Offer, keep: Keep) -> None:
        self._seals = request.includes(SEALED_THOUGHTS)
        self._origins = offer.origins
        self._asked = asked
        self._keep = keep
        self._stretches = Stretches()
        self._told = 0  # events

    def opening(self) -> list[Event]:
        return [self._event(f"response.{name}", response=self.begun()) for name in ("created", "in_progress")]

    def pulse(self) -> list[Event]:
        return [self._event("response.in_progress", response=self.begun())]

    def chunks(self, delta: Delta) -> list[Event]:
        """The events that tell ``delta``: what is over is closed before something else begins."""
        events: list[Event] = []
        last = len(self._stretches) - 1
        begins = self._stretches.add(delta)
        if last >= 0 and (begins or delta.kind == "end"):
            events += self._close(last)
        if begins:
            events += self._open(last + 1)
        if delta.kind != "end":
            return [*events, *self._delta(delta)]
        body = self.body()
        return [*events, self._event(f"response.{body['status']}", response=body)]

    def failure(self, error: QwenchError) -> list[Event]:
        """Codex reads why from the code."""
        code = error.code if isinstance(error, ContextLengthExceeded) else "server_error"
        body = {**self.begun(), "status": "failed", "error": {"code": code, "message": error.message}}
        self._keep(body)
        return [self._event("response.failed", response=body)]

    def cancelled(self) -> None:
        """Nothing more will come of it, on the client's word."""
        self._keep({**self.begun(), "status": "cancelled"})

    def add(self, delta: Delta) -> None:
        self._stretches.add(delta)

    def begun(self) -> dict[str, Any]:
        """The response before anything of it is known."""
        return {**self._asked, "status": "in_progress", "output": [], "usage": None, "completed_at": None}

    def body(self) -> dict[str, object]:
        """The complete response from all deltas added."""
        assert self._stretches.end is not None
        cut = self._stretches.end.finish_reason == "length"
        body = {
            **self._asked,
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "completed_at": int(time.time()),
            "output": [self._item(index) for index in range(len(self._stretches))],
            "usage": self._usage(),
        }
        self._keep(body)
        return body

    def _event(self, kind: str, **fields: object) -> Event:
        self._told += 1
        return {"type": kind, "sequence_number": self._told - 1, **fields}

    def _open(self, index: int) -> list[Event]:
        item, item_id = self._item(index, begins=True), self._item_id(index)
        events = [self._event("response.output_item.added", output_index=index, item=item)]
        part = self._part(Stretch(self._stretches[index].kind))
        if part is not None:
            where = {"item_id": item_id, "output_index": index, "content_index": 0}
            events.append(self._event("response.content_part.added", **where, part=part))
        return events

    def _delta(self, delta: Delta) -> list[Event]:
        index = len(self._stretches) - 1
        where: dict[str, object] = {"item_id": self._item_id(index), "output_index": index}
        if delta.call is not None:
            if self._origin(index).kind != "function":
                return []  # its one text can be told apart only when its JSON is complete
            return [self._event("response.function_call_arguments.delta", **where, delta=delta.text)]
        where["content_index"] = 0
        if delta.kind == "reasoning":
            return [self._event("response.reasoning_text.delta", **where, delta=delta.text)]
        logprobs = self._logprobs(delta.logprobs)
        return [self._event("response.output_text.delta", **where, delta=delta.text, logprobs=logprobs)]

    def _close(self, index: int) -> list[Event]:
        stretch, item = self._stretches[index], self._item(index)
        where: dict[str, object] = {"item_id": self._item_id(index), "output_index": index}
        events: list[Event] = []
        part = self._part(stretch)
        if part is not None:
            where["content_index"] = 0
            more = {"logprobs": part["logprobs"]} if stretch.kind == "content" else {}
            kind = "output_text" if stretch.kind == "content" else "reasoning_text"
            events.append(self._event(f"response.{kind}.done", **where, text=stretch.text, **more))
            events.append(self._event("response.content_part.done", **where, part=part))
        elif item["type"] == "function_call":
            told = {"name": item["name"], "arguments": item["arguments"]}
            events.append(self._event("response.function_call_arguments.done", **where, **told))
        elif item["type"] == "custom_tool_call":
            events.append(self._event("response.custom_tool_call_input.delta", **where, delta=item["input"]))
            events.append(self._event("response.custom_tool_call_input.done", **where, input=item["input"]))
        return [*events, self._event("response.output_item.done", output_index=index, item=item)]

    def _item(self, index: int, *, begins: bool = False) -> dict[str, Any]:
        """One item of the output: as it is known now, or as it begins."""
        stretch, item_id = self._stretches[index], self._item_id(index)
        end = self._stretches.end
        cut = end is not None and end.finish_reason == "length" and index == len(self._stretches) - 1
        status = "in_progress" if begins else "incomplete" if cut else "completed"
        if stretch.call is not None:
            arguments = "" if begins else stretch.text
            return call_item(self._origin(index), item_id, stretch.call.id, arguments, status)
        content = [] if begins else [self._part(stretch)]
        told = {"id": item_id, "status": status, "content": content}
        if stretch.kind == "reasoning":
            sealed = {"encrypted_content": "" if begins else seal(stretch.text)} if self._seals else {}
            return {"type": "reasoning", "summary": [], **told, **sealed}
        return {"type": "message", "role": "assistant", **told}

    def _part(self, stretch: Stretch) -> dict[str, Any] | None:
        """What an item holds; a call holds nothing but itself."""
        if stretch.kind == "reasoning":
            return {"type": "reasoning_text", "text": stretch.text}
        if stretch.kind != "content":
            return None
        logprobs = self._logprobs(stretch.logprobs)
        return {"type": "output_text", "text": stretch.text, "annotations": [], "logprobs": logprobs}

    def _origin(self, index: int) -> Origin:
        """What the called function is to the client; a name that was not offered is a function's."""
        call = self._stretches[index].call
        assert call is not None
        return self._origins.get(call.name) or Origin("function", call.name)

    def _item_id(self, index: int) -> str:
        return f"{PREFIXES[self._stretches[index].kind]}_{self._asked['id'].removeprefix('resp_')}_{index}"

    @abstractmethod
    def _logprobs(self, told: Sequence[TokenLogprob]) -> list[dict[str, object]]: ...

    @abstractmethod
    def _usage(self) -> dict[str, object]: ...


class ResponseFormat(ResponseForm):
    """A response that is answered here."""

    def __init__(
        self, head: Head, answer: Answer, tokenizer: Tokenizer, request: ResponsesRequest, offer: Offer, keep: Keep
    ) -> None:
        prepared = answer.prepared
        super().__init__(asked_for(head, request, prepared.sampling, prepared.thinking), request, offer, keep)
        self._head = head
        self._answer = answer
        self._tokenizer = tokenizer

    def _logprobs(self, told: Sequence[TokenLogprob]) -> list[dict[str, object]]:
        return [logprob_entry(each, self._tokenizer) for each in told]

    def _usage(self) -> dict[str, object]:
        usage: Any = self._answer.usage()
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": self._answer.written_tokens()},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": usage["completion_tokens_details"],
            "total_tokens": usage["total_tokens"],
        }


def asked_for(
    head: Head, request: ResponsesRequest, chosen: SamplingParams | ResponsesRequest, thinking: object
) -> dict[str, Any]:
    """What a response repeats of its request, with what was ``chosen`` where nothing was said."""
    reasoning = request.reasoning or {}
    return {
        "id": head.id,
        "object": "response",
        "created_at": head.created,
        "model": head.model,
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "previous_response_id": request.previous_response_id,
        "store": request.stores,
        "background": bool(request.background),
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": None,
        "temperature": chosen.temperature,
        "top_p": chosen.top_p,
        "presence_penalty": chosen.presence_penalty,
        "frequency_penalty": chosen.frequency_penalty,
        "top_logprobs": request.top_logprobs or 0,
        "tools": [_repeated(tool) for tool in request.tools or ()],
        "tool_choice": request.tool_choice or "auto",
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "thinking": thinking,
        "text": {"format": {"type": "text"}, **(request.text or {})},
        "truncation": "disabled",
        "service_tier": "default",
        "metadata": request.metadata or {},
        "user": None,
        "safety_identifier": None,
        "prompt_cache_key": None,
    }


def _repeated(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as responses repeat it: of a function, what was left out is there too."""
    absent = {"description": None, "parameters": None, "strict": False} if tool.get("type") == "function" else {}
    return {**absent, **tool}
