"""Conversations as clients send them -> such as templates take, by the rules of docs/messages.md, each told when used.

``respell`` brings what clients spell differently to one spelling, message by message; ``complete`` adds the one turn of
a user that templates insist on. A message is changed only by what stands before it, so the prompt of a beginning is
the beginning of the prompt. What is simply wrong is left for chat.py to refuse by name. Knows no template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

SYSTEM = ("system", "developer")
INLINE = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "reasoning_text")
EARLIER = "(Earlier messages are left out.)"


def respell(messages: object) -> tuple[object, list[str]]:
    """One message for each of ``messages``, and which rules were used. The input stays as it is."""
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        return messages, []
    used: list[str] = []
    clean: list[object] = []
    begun = False  # something but system messages was seen
    for message in messages:
        if not isinstance(message, Mapping):
            clean.append(message)
            continue
        found = dict(message)
        if "content" in found and found["content"] is None and found.get("role") in (*SYSTEM, "user"):
            found["content"] = ""
            used.append("empty content is empty text")
        if begun and found.get("role") in SYSTEM:
            found = _later_system(found)
            used.append("a system message behind the first turn stays at its place, as a user's")
        begun = begun or found.get("role") not in SYSTEM
        _legacy(found, used)
        if found.get("role") == "assistant":
            _reasoning(found, used)
        clean.append(found)
    return clean, list(dict.fromkeys(used))


def complete(messages: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Normalised ``messages`` with a user's turn in front where there is none that a template would count."""
    asked = any(message["role"] == "user" and not _is_result(message["content"]) for message in messages)
    at = next((index for index, message in enumerate(messages) if message["role"] != "system"), len(messages))
    begins = at < len(messages) and messages[at]["role"] == "tool"
    if asked and not begins:
        return list(messages), []
    turn = {"role": "user", "content": EARLIER if at < len(messages) else ""}
    return [*messages[:at], turn, *messages[at:]], ["a user's turn is put in front, templates need one"]


def _later_system(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, str):
        content = f"<system>\n{content}\n</system>"
    elif isinstance(content, list):
        content = ["<system>\n", *content, "\n</system>"]
    return {**message, "role": "user", "content": content}


def _legacy(message: dict[str, Any], used: list[str]) -> None:
    """What OpenAI's API had before tools."""
    call = message.pop("function_call", None) if message.get("role") == "assistant" else None
    if call is not None and not message.get("tool_calls"):
        message["tool_calls"] = [{"id": "call_0", "type": "function", "function": call}]
        used.append("function_call is a tool call")
    if message.get("role") == "function":
        message["role"] = "tool"
        used.append("a function's message is a tool's")


def _reasoning(message: dict[str, Any], used: list[str]) -> None:
    """Under whichever name, in parts of its own, or inside the content: as ``reasoning_content``."""
    thoughts = [message.pop(name) for name in THOUGHTS if isinstance(message.get(name), str)]
    details = message.pop("reasoning_details", None)
    if not thoughts and isinstance(details, list):
        texts = [each.get("text") or each.get("summary") for each in details if isinstance(each, Mapping)]
        thoughts += ["".join(text for text in texts if isinstance(text, str))]
    content = message.get("content")
    if isinstance(content, list):
        parts = [part for part in content if not _is_thought(part)]
        if len(parts) < len(content):
            thoughts += ["".join(_thought(part) for part in content if _is_thought(part))]
            message["content"] = parts or ""
    elif isinstance(content, str) and (found := INLINE.match(content)):
        thoughts.append(found[1].strip("\n"))
        message["content"] = content[found.end() :]
        used.append("thoughts inside the content are reasoning_content")
    if any(thoughts):
        message["reasoning_content"] = next(text for text in thoughts if text)


def _is_thought(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") in ("thinking", "reasoning", "redacted_thinking")


def _thought(part: Mapping[str, Any]) -> str:
    text = part.get("thinking") or part.get("text") or part.get("reasoning")
    return text if isinstance(text, str) else ""


def _is_result(content: object) -> bool:
    """Whether a template takes a user's turn for a tool's result."""
    text = content.strip() if isinstance(content, str) else ""
    return text.startswith("<tool_response>") and text.endswith("</tool_response>")
