"""A Responses request, and the conversation it goes on, as a chat request. Knows no HTTP and no engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwench.errors import RequestError
from qwench.server.responses.fields import ResponsesRequest
from qwench.server.responses.items import Item, read_items
from qwench.server.responses.tools import Offer, read_offer
from qwench.server.schemas import ChatRequest, show
from qwench.server.translation import Translation, Turns

SEALED_THOUGHTS, LOGPROBS = "reasoning.encrypted_content", "message.output_text.logprobs"


@dataclass(frozen=True)
class Asked:
    """What a request comes to; ``offer`` says what the functions of its calls are to the client."""

    translation: Translation
    offer: Offer


def read_response(request: ResponsesRequest, earlier: Sequence[Item], given: Sequence[Item]) -> Asked:
    """``given`` are the request's own items, ``earlier`` those of the response it goes on. Raises RequestError."""
    turns, warnings = Turns(), list[str]()
    turns.places["messages"] = "input"
    if request.instructions:
        turns.add("system", "instructions", [({"type": "text", "text": request.instructions}, "instructions")])
    placed = [(item, "previous_response_id") for item in earlier]
    read_items([*placed, *((item, f"input[{at}]") for at, item in enumerate(given))], turns, warnings)
    if not turns.messages:
        turns.add("user", "input")  # Codex asks with nothing to see whether somebody is there
    places = turns.places
    offer = read_offer(request, places, warnings)
    places |= {"max_tokens": "max_output_tokens", "response_format": "text.format"}
    places |= {"response_format.json_schema.schema": "text.format.schema"}
    for name in request.include or ():
        if name not in (SEALED_THOUGHTS, LOGPROBS):
            warnings.append(f"include: {show(name)} has no effect, nothing here makes it")
    chat = ChatRequest(
        messages=turns.messages,
        model=request.model,
        max_tokens=request.max_output_tokens,
        stream=request.stream,
        temperature=request.temperature,
        top_p=request.top_p,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logprobs=bool(request.top_logprobs) or request.includes(LOGPROBS) or None,
        top_logprobs=request.top_logprobs or None,
        tools=offer.functions or None,
        tool_choice=offer.choice,
        parallel_tool_calls=request.parallel_tool_calls,
        reasoning=request.reasoning,
        response_format=_format(request, warnings),
        service_tier=request.service_tier,
    )
    return Asked(Translation(chat, places, tuple(warnings)), offer)


def _format(request: ResponsesRequest, warnings: list[str]) -> dict[str, Any] | None:
    """``text.format`` as chat's response_format."""
    text = request.text or {}
    warnings += [f"text.{name}: ignored, ask for it in the prompt" for name in text if name != "format" and text[name]]
    form = text.get("format")
    if form is None:
        return None
    if not isinstance(form, Mapping):
        raise RequestError(f"text.format is {show(form)}; give an object with a type.", param="text.format")
    if form.get("type") != "json_schema":
        return dict(form)
    return {"type": "json_schema", "json_schema": {name: form[name] for name in form if name != "type"}}
