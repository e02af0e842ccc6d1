"""Tools: the functions that a request offers, and which of them it lets or makes the model call.

Reads what clients send as ``tools`` and ``tool_choice``. Knows no template and nothing of what a model writes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qwench.errors import RequestError
from qwench.text.arguments import Schema

NAME = re.compile(r"[^<>\s\"]{1,128}")
SHAPE = '{"type": "function", "function": {"name": ..., "parameters": {...}}}'


@dataclass(frozen=True)
class Tools:
    """``offered`` is what the prompt shows; ``parameters`` are the schemas by name of those that may be called.

    ``most`` bounds the calls of one answer, ``required`` wants at least one. ``strict`` are those whose schema is to be
    held to in full.
    """

    offered: Sequence[Mapping[str, Any]]
    parameters: Mapping[str, Schema] = field(default_factory=dict)
    most: int | None = None
    required: bool = False
    strict: frozenset[str] = frozenset()


def read_tools(tools: object, choice: object = None, *, parallel: bool | None = None) -> Tools | None:
    """What a request offers; None if there are no tools or none may be called. Raises RequestError."""
    given = [] if tools is None else tools
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
        raise RequestError(f"tools is {given!r:.80}; give a list of functions.", param="tools")
    parameters = _parameters(given)
    allowed, required = _allowed(choice, parameters)
    if not allowed:
        if required:
            raise RequestError("tool_choice wants a call, but there are no tools; send some.", param="tool_choice")
        return None
    offered = [tool for tool in given if tool["function"]["name"] in allowed]
    return Tools(
        given if required else offered,  # what a grammar allows need not change the prompt, which may be known
        {name: parameters[name] for name in allowed},
        1 if parallel is False or (isinstance(choice, Mapping) and choice.get("type") == "function") else None,
        required,
        frozenset(tool["function"]["name"] for tool in offered if tool["function"].get("strict") is True),
    )


def _parameters(tools: Sequence[Any]) -> dict[str, Schema]:
    """The schemas of all tools by their names."""
    found: dict[str, Schema] = {}
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(tool, Mapping) or tool.get("type") != "function" or not isinstance(function, Mapping):
            raise RequestError(f"{where} is not a function; give {SHAPE}.", param=where)
        name, schema = function.get("name"), function.get("parameters")
        if not isinstance(name, str) or not name:
            raise RequestError(f"{where}.function.name is missing; send a name.", param=where)
        if not NAME.fullmatch(name):
            reason = "give at most 128 characters without blanks, quotation marks and angle brackets"
            raise RequestError(f"{where}.function.name is {name!r:.80}; {reason}.", param=where)
        if name in found:
            raise RequestError(f"{where}.function.name is {name!r:.80}, as of another tool; rename one.", param=where)
        if schema is not None and not isinstance(schema, Mapping):
            raise RequestError(f"{where}.function.parameters is {schema!r:.80}; give a JSON schema.", param=where)
        found[name] = schema or {}
    return found


def _allowed(choice: object, parameters: Mapping[str, Schema]) -> tuple[list[str], bool]:
    """The names that may be called, and whether one has to be."""
    if choice in (None, "auto", "required"):
        return list(parameters), choice == "required"
    if choice == "none":
        return [], False
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        return [_known(_named(choice), parameters)], True
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        inner = choice.get("allowed_tools", choice)
        given = inner.get("tools") if isinstance(inner, Mapping) else None
        names = [_named(each) for each in given] if isinstance(given, list) else []
        mode = inner.get("mode", "auto") if isinstance(inner, Mapping) else None
        if mode in ("auto", "required") and names:
            return [_known(name, parameters) for name in names], mode == "required"
    raise RequestError(
        f"tool_choice is {choice!r:.80}; send auto, none, required, a function, or allowed_tools.", param="tool_choice"
    )


def _named(choice: object) -> str | None:
    """The function that a choice names, in the shape of chat completions or of responses."""
    inner = choice.get("function", choice) if isinstance(choice, Mapping) else None
    name = inner.get("name") if isinstance(inner, Mapping) else None
    return name if isinstance(name, str) else None


def _known(name: str | None, parameters: Mapping[str, Schema]) -> str:
    if name is None or name not in parameters:
        raise RequestError(
            f"tool_choice names {name!r:.80}, which is none of tools; add it there.", param="tool_choice"
        )
    return name
