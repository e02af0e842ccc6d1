"""What a Responses request offers the model: every tool as a function, and what it is to the client.

A custom tool takes one text, so it becomes a function with one; ``local_shell`` becomes the function it stands for.
Tools that only OpenAI's servers run are left out with a warning. Knows nothing of what a model writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qwench.errors import RequestError
from qwench.server.responses.fields import ResponsesRequest
from qwench.server.schemas import show
from qwench.server.translation import Places

INPUT = "input"  # the one parameter of a custom tool
SHELL = "local_shell"
SHELL_ARGUMENTS = {
    "command": {"type": "array", "items": {"type": "string"}, "description": "The program and its arguments."},
    "working_directory": {"type": "string"},
    "timeout_ms": {"type": "integer"},
}


@dataclass(frozen=True)
class Origin:
    """What a function that the model calls is to the client."""

    kind: Literal["function", "custom", "local_shell"]
    name: str
    namespace: str | None = None

    @property
    def shown(self) -> str:
        """The name that the model knows."""
        return f"{self.namespace}.{self.name}" if self.namespace else self.name


@dataclass
class Offer:
    """``functions`` as chat takes them, ``origins`` by their names."""

    functions: list[dict[str, Any]] = field(default_factory=list)
    origins: dict[str, Origin] = field(default_factory=dict)
    choice: str | dict[str, Any] | None = None
    left_out: bool = False


def read_offer(request: ResponsesRequest, places: Places, warnings: list[str]) -> Offer:
    """The tools of ``request`` and the choice among them. Raises RequestError."""
    offer = Offer()
    for at, tool in enumerate(request.tools or ()):
        _take(offer, tool, f"tools[{at}]", places, warnings)
    offer.choice = _choice(request.tool_choice, offer, warnings)
    return offer


def _take(
    offer: Offer,
    tool: Mapping[str, Any],
    place: str,
    places: Places,
    warnings: list[str],
    namespace: str | None = None,
) -> None:
    kind, name = tool.get("type"), tool.get("name")
    if kind == "namespace" and namespace is None and isinstance(tool.get("tools"), list):
        for at, inner in enumerate(tool["tools"]):
            if not isinstance(inner, Mapping):
                raise RequestError(f"{place}.tools[{at}] is {show(inner)}; give a tool.", param=place)
            _take(offer, inner, f"{place}.tools[{at}]", places, warnings, str(name))
        return
    if kind not in ("function", "custom", SHELL):
        warnings.append(f"{place}: left out, {show(kind)} is not run here, send a function")
        offer.left_out = True
        return
    if kind == SHELL:
        name = SHELL
    if not isinstance(name, str) or not name:
        raise RequestError(f"{place}.name is missing; send a name.", param=f"{place}.name")
    origin = Origin(kind, name, namespace)
    index = f"tools[{len(offer.functions)}]"
    places[index] = places[f"{index}.function"] = place
    offer.functions.append(
        {"type": "function", "function": {"name": origin.shown, **_described(tool, warnings, place)}}
    )
    offer.origins[origin.shown] = origin


def _described(tool: Mapping[str, Any], warnings: list[str], place: str) -> dict[str, Any]:
    """Description and parameters of a tool as a function has them."""
    told = {"description": tool["description"]} if isinstance(tool.get("description"), str) else {}
    if tool["type"] == SHELL:
        return {
            "description": "Runs a command on the user's machine.",
            "parameters": _object(SHELL_ARGUMENTS, "command"),
        }
    if tool["type"] == "custom":
        form = tool.get("format")
        grammar = form.get("definition") if isinstance(form, Mapping) and form.get("type") == "grammar" else None
        about = "The whole input, as it is."
        if isinstance(grammar, str):
            warnings.append(f"{place}.format: the model is shown the grammar, its input is not held to it")
            about = f"The whole input, of this grammar:\n{grammar}"
        return {**told, "parameters": _object({INPUT: {"type": "string", "description": about}}, INPUT)}
    if tool.get("parameters") is not None:
        told["parameters"] = tool["parameters"]
    return {**told, "strict": True} if tool.get("strict") is True else told


def _object(properties: Mapping[str, object], required: str) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "required": [required]}


def _choice(choice: str | dict[str, Any] | None, offer: Offer, warnings: list[str]) -> str | dict[str, Any] | None:
    """``tool_choice`` in the words of chat."""
    if isinstance(choice, str):
        if choice == "required" and offer.left_out and not offer.functions:
            warnings.append("tool_choice: no effect, what it asks for is left out of tools")
            return None
        return choice
    if choice is None:
        return None
    kind = choice.get("type")
    if kind == "allowed_tools" and isinstance(choice.get("tools"), list):
        named = [_function(each, offer) for each in choice["tools"]]
        known = [each for each in named if each is not None]
        if len(known) < len(named):
            warnings.append("tool_choice: some of the tools it allows are left out")
        return {"type": kind, "mode": choice.get("mode", "auto"), "tools": known} if known else "none"
    if kind in ("function", "custom", SHELL, "allowed_tools"):
        return _function(choice, offer) or choice
    warnings.append(f"tool_choice: no effect, {show(kind)} is left out of tools")
    return None


def _function(choice: object, offer: Offer) -> dict[str, Any] | None:
    """One tool of a choice as the function it has become; None for one that is left out."""
    if not isinstance(choice, Mapping):
        return None
    name = SHELL if choice.get("type") == SHELL else choice.get("name")
    match = (shown for shown, origin in offer.origins.items() if name in (shown, origin.name))
    found = next(match, name if choice.get("type") in ("function", "custom") else None)
    return None if found is None else {"type": "function", "name": found}


def call_item(origin: Origin, item_id: str, call_id: str, arguments: str, status: str) -> dict[str, Any]:
    """A call as the client's own tools have it; ``arguments`` is one JSON object, or empty while it is written.

    What a model elsewhere wrote may be no JSON: then a custom tool is given all of it.
    """
    told: dict[str, Any] = {"id": item_id, "call_id": call_id, "status": status}
    if origin.kind == "function":
        told |= {"type": "function_call", "name": origin.name, "arguments": arguments}
        return told | ({"namespace": origin.namespace} if origin.namespace else {})
    given = _object_in(arguments)
    if origin.kind == "local_shell":
        return told | {"type": "local_shell_call", "action": {"type": "exec", "command": [], "env": {}, **given}}
    text = given.get(INPUT, "")
    told |= {"type": "custom_tool_call", "name": origin.name, "input": text if isinstance(text, str) else arguments}
    return told | ({"namespace": origin.namespace} if origin.namespace else {})


def _object_in(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {INPUT: text}


def call_of(item: Mapping[str, Any], place: str) -> dict[str, Any]:
    """An earlier call of the model, as chat has it. Raises RequestError."""
    kind, namespace = item["type"], item.get("namespace")
    arguments: Any
    if kind == "local_shell_call":
        action = item.get("action")
        given = action if isinstance(action, Mapping) else {}
        shown = SHELL
        arguments = json.dumps({name: given[name] for name in SHELL_ARGUMENTS if given.get(name) is not None})
    else:
        if not isinstance(item.get("name"), str):
            raise RequestError(f"{place}.name is missing; send the function's.", param=f"{place}.name")
        shown = Origin("function", item["name"], namespace if isinstance(namespace, str) else None).shown
        arguments = item.get("arguments") if kind == "function_call" else json.dumps({INPUT: item.get("input")})
    call_id = item.get("call_id") or item.get("id")
    return {"id": call_id, "type": "function", "function": {"name": shown, "arguments": arguments}}
