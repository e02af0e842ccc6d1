"""Ollama's requests -> a chat request, or a raw prompt. Knows no HTTP and no engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwench.errors import RequestError
from qwench.server.ollama.fields import OllamaChatRequest, OllamaGenerateRequest, Options
from qwench.server.schemas import ChatRequest, show
from qwench.server.translation import Places, Translation, Turns

UNBOUNDED = (-1, -2)  # of num_predict
SAME = ("temperature", "top_k", "top_p", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty")
OTHERS = {"num_predict": "max_tokens", "repeat_penalty": "repetition_penalty"}  # options by what they are called here
KEPT = ("tool_call_id", "thinking")


def read_chat(request: OllamaChatRequest) -> Translation:
    """What ``request`` comes to. Raises RequestError naming the place."""
    turns = Turns()
    for index, message in enumerate(request.messages):
        _message(turns, message, f"messages[{index}]")
    return _translation(request, turns, tools=request.tools)


def read_generate(request: OllamaGenerateRequest) -> Translation:
    """A prompt as a conversation."""
    turns = Turns()
    if request.system:
        turns.add("system", "system")["content"] = request.system
    _said(turns.add("user", "prompt"), request.prompt, request.images, "images")
    return _translation(request, turns)


def raw_body(request: OllamaGenerateRequest) -> tuple[dict[str, Any], Places]:
    """A prompt that is read as it is, or whose middle is filled: as a body of ``/v1/completions``."""
    asked = "suffix" if request.suffix else "raw"
    for name, given in (("images", request.images), ("system", request.system), ("think", request.think)):
        if given:
            raise RequestError(
                f"{name} cannot be combined with {asked} (there are no messages); leave it out.", param=name
            )
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    body = {"prompt": request.prompt, "suffix": request.suffix, "stream": request.stream, "logprobs": logprobs}
    return {**body, **_settings(request.options), "response_format": _format(request.format)}, _places()


def _message(turns: Turns, message: Mapping[str, Any], where: str) -> None:
    turn = turns.add(message.get("role") or "", where, **{name: message[name] for name in KEPT if name in message})
    if message.get("tool_name"):
        turn["name"] = message["tool_name"]
    _said(turn, message.get("content"), message.get("images"), f"{where}.images")
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise RequestError(f"{where}.tool_calls is {show(calls)}; give a list.", param=f"{where}.tool_calls")
    for at, call in enumerate(calls or ()):
        place = f"{where}.tool_calls[{at}]"
        turns.call(turn, {"id": f"call_{at}", "type": "function", **call} if isinstance(call, dict) else call, place)


def _said(turn: dict[str, Any], content: object, images: object, where: str) -> None:
    """What a message says, behind what it shows."""
    turn["content"] = content
    if images is None or images == []:
        return
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise RequestError(f"{where} is {show(images)}; give a list of pictures in base64.", param=where)
    shown: list[object] = [_picture(image) for image in images]
    turn["content"] = [*shown, {"type": "text", "text": content}] if content else shown


def _picture(image: str) -> dict[str, Any]:
    address = image if image.startswith("data:") else f"data:;base64,{image}"
    return {"type": "image_url", "image_url": {"url": address}}


def _translation(
    request: OllamaChatRequest | OllamaGenerateRequest, turns: Turns, tools: list[dict[str, Any]] | None = None
) -> Translation:
    turns.places.update(_places())
    return Translation(
        ChatRequest(
            messages=turns.messages,
            stream=request.stream,
            think=request.think,
            tools=tools,
            logprobs=request.logprobs,
            top_logprobs=request.top_logprobs,
            response_format=_format(request.format),
            **_settings(request.options),
        ),
        turns.places,
    )


def _settings(options: Options) -> dict[str, Any]:
    """The options that are sampling."""
    named = {name: getattr(options, name) for name in SAME}
    named |= {ours: getattr(options, theirs) for theirs, ours in OTHERS.items()}
    if named["max_tokens"] in UNBOUNDED:
        named["max_tokens"] = None
    return {name: value for name, value in named.items() if value is not None}


def _places() -> Places:
    known = {name: f"options.{name}" for name in SAME}
    return Places(
        known | {ours: f"options.{theirs}" for theirs, ours in OTHERS.items()} | {"response_format": "format"}
    )


def _format(wanted: str | dict[str, Any] | None) -> dict[str, Any] | None:
    if wanted is None or wanted == "":
        return None
    if isinstance(wanted, dict):
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted}}
    if wanted != "json":
        raise RequestError(f"format is {show(wanted)}; give json, or a JSON schema.", param="format")
    return {"type": "json_object"}
