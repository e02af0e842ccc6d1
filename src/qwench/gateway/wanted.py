"""What a client wants, through whichever API it asks, as the chat completion it comes to.

The translations are the server's own, so the gateway reads what the server reads; here their result becomes what other
people's servers understand. Knows no option and no upstream.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from qwench.errors import RequestError
from qwench.gateway.signals import BYTES_PER_TOKEN, Signals, read_signals
from qwench.server.messages.conversation import read_messages
from qwench.server.messages.fields import FIELDS as MESSAGE_FIELDS
from qwench.server.messages.fields import CountRequest, MessagesRequest
from qwench.server.responses.conversation import read_response
from qwench.server.responses.fields import FIELDS as RESPONSE_FIELDS
from qwench.server.responses.fields import ResponsesRequest
from qwench.server.responses.items import as_items
from qwench.server.responses.tools import Offer
from qwench.server.schemas import shape, sift
from qwench.server.translation import Translation

Face = Literal["openai", "anthropic", "responses", "completions"]
TEXTS = frozenset({"text", "input_text", "output_text"})
UNREAD = "\0" * BYTES_PER_TOKEN  # stands for a token that is sent as its id


@dataclass(frozen=True)
class Wanted:
    """A request: as it was sent (``body``, in the words of ``face``), and as a chat completion.

    ``warnings``: what was lost on the way to that. ``response``: of the face responses, what the client asked for and
    what the functions of its calls are to it.
    """

    face: Face
    body: Mapping[str, Any]
    chat: Mapping[str, Any]
    signals: Signals
    warnings: tuple[str, ...] = ()
    response: tuple[ResponsesRequest, Offer] | None = None


def read_wanted(face: Face, body: Mapping[str, Any], *, counts: bool = False) -> Wanted:
    """``counts``: only how long it is is asked. Raises RequestError naming the field that cannot be used."""
    if face == "anthropic":
        return _message(body, CountRequest if counts else MessagesRequest)
    if face == "responses":
        return _response(body)
    if face == "openai":
        return Wanted(face, body, body, read_signals(body))
    chat = {**body, "messages": _prompts(body.get("prompt"))}
    return Wanted(face, body, chat, replace(read_signals(chat), asked="off"))  # nobody thinks before a raw prompt


def _prompts(given: Any) -> list[dict[str, Any]]:
    """Raw prompts as signals read them; of token ids only their number is known."""
    prompts = given if isinstance(given, list) and not _are_ids(given) else [given]
    if not prompts or not all(isinstance(each, str) or _are_ids(each) for each in prompts):
        raise RequestError("prompt must be a text, token ids, or a list of either.", param="prompt")
    return [{"role": "user", "content": each if isinstance(each, str) else UNREAD * len(each)} for each in prompts]


def _are_ids(given: object) -> bool:
    return isinstance(given, list) and bool(given) and all(type(each) is int for each in given)


def _message(body: Mapping[str, Any], kind: type[CountRequest]) -> Wanted:
    fields, warnings = sift(body, "messages", MESSAGE_FIELDS)
    translation = read_messages(shape(kind, fields, MESSAGE_FIELDS))
    chat = _chat(translation)
    if "thinking" not in fields:
        chat.pop("thinking", None)  # whether it is worth it is the router's to say
    with translation.places.naming():
        signals = read_signals(chat)
    return Wanted("anthropic", body, chat, signals, (*warnings, *translation.warnings))


def _response(body: Mapping[str, Any]) -> Wanted:
    fields, warnings = sift(body, "responses", RESPONSE_FIELDS)
    request = shape(ResponsesRequest, fields, RESPONSE_FIELDS)
    if request.previous_response_id is not None or request.background:
        name = "background" if request.background else "previous_response_id"
        raise RequestError(f"{name}: this gateway keeps no responses; send the whole conversation.", param=name)
    if request.input is None:
        raise RequestError("input is missing; send text, or a list of items.", param="input")
    if request.store:
        warnings.append("store: ignored, this gateway keeps no responses")
    if request.top_logprobs:
        warnings.append("top_logprobs: ignored, ask /v1/chat/completions for them")
    request = request.model_copy(update={"store": False, "top_logprobs": None, "include": request.include or []})
    asked = read_response(request, (), as_items(request.input))
    chat = _chat(asked.translation)
    chat.pop("logprobs", None)
    with asked.translation.places.naming():
        signals = read_signals(chat)
    return Wanted("responses", body, chat, signals, (*warnings, *asked.translation.warnings), (request, asked.offer))


def _chat(translation: Translation) -> dict[str, Any]:
    """The chat completion in the plain words of OpenAI's API: ours understands more."""
    chat = translation.request.model_dump(exclude_none=True)
    chat["messages"] = [_turn(message) for message in chat["messages"]]
    choice = chat.get("tool_choice")
    if isinstance(choice, Mapping):
        chat["tool_choice"] = _tool_choice(choice)
    return chat


def _turn(message: Mapping[str, Any]) -> dict[str, Any]:
    parts = [_part(part) for part in message["content"]]
    told = {**message, "content": _joined(parts)}
    if message.get("tool_calls"):
        told["tool_calls"] = [_call(call) for call in message["tool_calls"]]
    return told


def _joined(parts: Sequence[Any]) -> str | list[Any]:
    """Parts of nothing but text are one text: not everybody takes lists."""
    plain = all(isinstance(part, Mapping) and set(part) == {"type", "text"} for part in parts)
    return "".join(part["text"] for part in parts) if plain else list(parts)


def _part(part: Any) -> Any:
    if not isinstance(part, Mapping):
        return part
    kind, source = part.get("type"), part.get("source")
    if kind in TEXTS:
        return {"type": "text", "text": part.get("text"), **_mark(part)}
    if kind == "input_image" and isinstance(part.get("image_url"), str):
        detail = {"detail": part["detail"]} if part.get("detail") else {}
        return {"type": "image_url", "image_url": {"url": part["image_url"], **detail}}
    if kind == "input_file":
        return {"type": "file", "file": {name: part[name] for name in part if name not in ("type", "cache_control")}}
    if kind in ("image", "document") and isinstance(source, Mapping):
        url = source.get("url") or f"data:{source.get('media_type', '')};base64,{source.get('data', '')}"
        shown = {"image_url": {"url": url}} if kind == "image" else {"file": {"file_data": url}}
        return {"type": "image_url" if kind == "image" else "file", **shown, **_mark(part)}
    return part


def _mark(part: Mapping[str, Any]) -> dict[str, Any]:
    return {"cache_control": part["cache_control"]} if part.get("cache_control") else {}


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {**call, "function": {**function, "arguments": text}}


def _tool_choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    if choice.get("type") == "allowed_tools" and isinstance(choice.get("tools"), list):
        allowed = {"mode": choice.get("mode", "auto"), "tools": list(_named(choice["tools"]))}
        return {"type": "allowed_tools", "allowed_tools": allowed}
    return next(iter(_named([choice])))


def _named(choices: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    for each in choices:
        named = each.get("type") == "function" and "name" in each
        yield {"type": "function", "function": {"name": each["name"]}} if named else dict(each)
