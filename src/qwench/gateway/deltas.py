"""A chat completion that somebody else wrote, as the deltas that the server writes its other APIs from.

The same fold for chunks and for a whole completion. Knows no API but chat's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qwench.server.answer import Delta
from qwench.text.reading import EndReason
from qwench.text.stream import Call

REASONS: tuple[EndReason, ...] = ("stop", "length", "tool_calls")


class Deltas:
    """Reads one answer. ``usage``: as it was told last; ``refused``: a filter of the upstream's ended it."""

    def __init__(self) -> None:
        self.usage: Mapping[str, Any] | None = None
        self.refused = False
        self.end = Delta(0, "end", finish_reason="stop")  # the last of them, which its writer tells when it may
        self._calls: dict[int, Call] = {}

    def of_chunk(self, chunk: Mapping[str, Any]) -> Iterator[Delta]:
        """All but the end."""
        self._note(chunk)
        for choice in chunk["choices"]:
            said = _part(choice, "delta")
            yield from self._said(said)
            for call in _calls(said):
                yield from self._called(call)
            self._finish(choice)

    def of_completion(self, completion: Mapping[str, Any]) -> Iterator[Delta]:
        """All of them. Arguments that are no object are told as none, since a call must be one."""
        self._note(completion)
        choice = completion["choices"][0]
        said = _part(choice, "message")
        yield from self._said(said)
        for index, call in enumerate(_calls(said)):
            function = _part(call, "function")
            arguments = function.get("arguments")
            whole = {**function, "arguments": arguments if _is_object(arguments) else "{}"}
            yield from self._called({**call, "index": index, "function": whole})
        self._finish(choice)
        yield self.end

    def _note(self, told: Mapping[str, Any]) -> None:
        if isinstance(told.get("usage"), Mapping) and told["usage"]:
            self.usage = told["usage"]

    def _finish(self, choice: Mapping[str, Any]) -> None:
        reason = choice.get("finish_reason")
        self.refused = self.refused or reason == "content_filter"
        if reason:
            known: Sequence[EndReason] = [each for each in REASONS if each == reason]
            self.end = Delta(0, "end", finish_reason=known[0] if known else "stop")

    @staticmethod
    def _said(said: Mapping[str, Any]) -> Iterator[Delta]:
        thought = said.get("reasoning_content") or said.get("reasoning")
        if isinstance(thought, str) and thought:
            yield Delta(0, "reasoning", thought)
        if isinstance(said.get("content"), str) and said["content"]:
            yield Delta(0, "content", said["content"])

    def _called(self, call: Mapping[str, Any]) -> Iterator[Delta]:
        """A call begins with its name, even where its arguments come later."""
        index, function = call.get("index"), _part(call, "function")
        index = index if isinstance(index, int) else 0
        begins = index not in self._calls
        if begins:
            name = str(function.get("name") or "")
            self._calls[index] = Call(index, str(call.get("id") or f"call_{index}"), name)
        arguments = str(function.get("arguments") or "")
        if begins or arguments:
            yield Delta(0, "tool_call", arguments, call=self._calls[index])


def _part(told: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object inside another; empty where somebody wrote something else there."""
    found = told.get(name)
    return found if isinstance(found, Mapping) else {}


def _calls(said: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = said.get("tool_calls")
    return [call for call in found if isinstance(call, Mapping)] if isinstance(found, list) else []


def _is_object(text: object) -> bool:
    try:
        return isinstance(json.loads(text), dict) if isinstance(text, str) else False
    except ValueError:
        return False
