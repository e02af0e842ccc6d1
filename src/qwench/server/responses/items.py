"""The items of a Responses request -> chat messages. docs/dialects.md has the rules.

Thoughts, a message and calls that follow one another are one answer of the assistant's, as the model wrote it. Knows no
HTTP, no engine and no store.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import uuid4

from qwench.errors import RequestError
from qwench.server.responses.tools import call_of
from qwench.server.schemas import show
from qwench.server.translation import Turns

Item = Mapping[str, Any]
CALLS = ("function_call", "custom_tool_call", "local_shell_call")
OUTPUTS = tuple(f"{call}_output" for call in CALLS)
ROLES = ("user", "assistant", "system", "developer")
COMPACTED = ("compaction", "compaction_summary")
SUMMARY = "What was said before, summed up:\n\n"
SEALED = "qwench."  # what encrypted_content begins with where it is ours
# What OpenAI's servers or their tools did earlier; the model here knows none of it.
LEFT_OUT = frozenset(
    "web_search_call file_search_call code_interpreter_call image_generation_call computer_call computer_call_output "
    "shell_call shell_call_output apply_patch_call apply_patch_call_output mcp_list_tools mcp_approval_request "
    "mcp_approval_response mcp_call tool_search_call tool_search_output additional_tools program program_output "
    "compaction compaction_summary compaction_trigger context_compaction configuration_update ghost_snapshot".split()
)


def seal(text: str) -> str:
    """A text for clients that keep what they cannot read: base64, no secret. ``_unsealed`` is the way back."""
    return SEALED + base64.b64encode(text.encode("utf-8", "replace")).decode("ascii")


def read_items(items: Iterable[tuple[Item, str]], turns: Turns, warnings: list[str]) -> None:
    """Append ``items``, each with its place, to ``turns``. Raises RequestError naming the item."""
    answer = _AnswerUnderWay(turns)
    for item, place in items:
        kind = item.get("type")
        if kind == "message":
            if item.get("role") == "assistant":
                _extend(turns, answer.saying(place), item, place)
            else:
                answer.over()
                _said(turns, item, place)
        elif kind == "reasoning":
            _thoughts(answer, item, place, warnings)
        elif kind in CALLS:
            turns.call(answer.calling(place), call_of(item, place), place)
        elif kind in OUTPUTS:
            answer.over()
            call_id = item.get("call_id") or item.get("id")
            turns.add("tool", place, _parts(item.get("output"), f"{place}.output"), tool_call_id=call_id)
        elif kind in COMPACTED and (summary := _unsealed(item.get("encrypted_content"))):
            answer.over()
            turns.add("user", place, [({"type": "text", "text": SUMMARY + summary}, place)])
        elif isinstance(kind, str) and kind in LEFT_OUT:
            warnings.append(f"{place}: left out, nothing here reads {kind}")
        else:
            raise RequestError(f"{place}.type is {show(kind)}, which is no item known here.", param=f"{place}.type")


class _AnswerUnderWay:
    """The assistant's message that the next item may belong to."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._message: dict[str, Any] | None = None

    def over(self) -> None:
        self._message = None

    def thinking(self, place: str) -> dict[str, Any]:
        """Thoughts begin an answer."""
        if self._message is None or self._message["content"] or "tool_calls" in self._message:
            self._message = self._turns.add("assistant", place)
        return self._message

    def saying(self, place: str) -> dict[str, Any]:
        """An answer says one thing."""
        if self._message is None or self._message["content"]:
            self._message = self._turns.add("assistant", place)
        return self._message

    def calling(self, place: str) -> dict[str, Any]:
        if self._message is None:
            self._message = self._turns.add("assistant", place)
        return self._message


def _said(turns: Turns, item: Item, place: str) -> None:
    role = item.get("role")
    if role not in ROLES:
        raise RequestError(f"{place}.role is {show(role)}; known are {', '.join(ROLES)}.", param=f"{place}.role")
    turns.add(role, place, _parts(item.get("content"), f"{place}.content"))


def _extend(turns: Turns, message: dict[str, Any], item: Item, place: str) -> None:
    for part, where in _parts(item.get("content"), f"{place}.content"):
        turns.extend(message, part, where)


def _parts(content: object, place: str) -> list[tuple[Any, str]]:
    """Parts as chat takes them, with their places. Their types are checked where pictures are too."""
    if isinstance(content, str):
        return [({"type": "text", "text": content}, place)]
    if not isinstance(content, list):
        raise RequestError(f"{place} is {show(content)}; give a text or a list of parts.", param=place)
    return [(part, f"{place}[{at}]") for at, part in enumerate(content)]


def _thoughts(answer: _AnswerUnderWay, item: Item, place: str, warnings: list[str]) -> None:
    """Thoughts as they were told, else as they were sealed, else in the summary."""
    told = "".join(_texts(item.get("content"))) or _unsealed(item.get("encrypted_content"))
    told = told or "\n\n".join(_texts(item.get("summary")))
    if told:
        message = answer.thinking(place)
        message["reasoning_content"] = "\n\n".join(filter(None, (message.get("reasoning_content"), told)))
    elif item.get("encrypted_content"):
        warnings.append(f"{place}: left out, its thoughts can be read by their writer only")


def _texts(parts: object) -> list[str]:
    found = [part.get("text") for part in parts if isinstance(part, Mapping)] if isinstance(parts, list) else []
    return [text for text in found if isinstance(text, str)]


def _unsealed(content: object) -> str:
    if not isinstance(content, str) or not content.startswith(SEALED):
        return ""
    try:
        return base64.b64decode(content.removeprefix(SEALED), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        return ""


def as_items(given: str | list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """``input`` as items that can be listed: a text is a user's message, each has an id, each message parts."""
    said = [{"role": "user", "content": given}] if isinstance(given, str) else given or []
    return [_listed(item) for item in said]


def _listed(item: dict[str, Any]) -> dict[str, Any]:
    kind = item.get("type") or ("message" if "role" in item else "item_reference" if "id" in item else None)
    told = (
        item
        if isinstance(item.get("id"), str)
        else {**item, "id": f"{'msg' if kind == 'message' else 'item'}_{uuid4().hex}"}
    )
    content = item.get("content")
    if kind == "message" and isinstance(content, str):
        part = "output_text" if item.get("role") == "assistant" else "input_text"
        told = {"status": "completed", **told, "content": [{"type": part, "text": content}]}
    return {**told, "type": kind}
