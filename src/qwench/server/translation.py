"""A request of another API as the chat request it comes to, and what its places are called there.

Whatever is wrong with a conversation is found behind the translation; ``Places`` see to it that the sentence names what
the client sent. Knows none of the other APIs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from qwench.errors import RequestError
from qwench.server.prepare import Prepared, prepare_request
from qwench.server.schemas import ChatRequest
from qwench.text.model import ModelText
from qwench.text.vision import Eyes, shows

PATH = re.compile(r"[A-Za-z_]\w*(?:\[\d+\]|\.[A-Za-z_]\w*)*")


class Places(dict[str, str]):
    """From places of the chat request to those the client knows. A place inside a known one is renamed with it."""

    def told(self, text: str) -> str:
        """``text`` with every place as the client knows it. One that is a plain word counts at the beginning only."""
        return PATH.sub(lambda found: self._name(found[0], first=not found.start()), text)

    @contextmanager
    def naming(self) -> Iterator[None]:
        """A RequestError from inside names the client's places."""
        try:
            yield
        except RequestError as error:
            error.message = self.told(error.message)
            error.param = error.param and self.told(error.param)
            raise

    def _name(self, path: str, *, first: bool) -> str:
        if path.isalpha() and not first:
            return path
        known, rest = path, ""
        while known not in self:
            cut = max(known.rfind("["), known.rfind("."))
            if cut < 0:
                return path
            known, rest = known[:cut], known[cut:] + rest
        return self[known] + rest


class Turns:
    """Chat messages while they are written, each with the place it comes from."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.places = Places()

    def add(self, role: str, place: str, parts: Iterable[tuple[Any, str]] = (), **more: Any) -> dict[str, Any]:
        """One more message of ``parts``, each with its place. Texts that follow one another are lines of their own,
        except in answers, which were written in one go."""
        message: dict[str, Any] = {"role": role, "content": [], **more}
        self.places[f"messages[{len(self.messages)}]"] = place
        self.messages.append(message)
        for part, where in parts:
            self.extend(message, part, where)
        return message

    def extend(self, message: dict[str, Any], part: Any, place: str) -> None:
        """``part`` behind what the last message says already."""
        content: list[Any] = message["content"]
        if message["role"] != "assistant" and content and _is_text(part) and _is_text(content[-1]):
            content[-1] = {**content[-1], "text": content[-1]["text"].removesuffix("\n") + "\n"}
        self.places[f"messages[{len(self.messages) - 1}].content[{len(content)}]"] = place
        content.append(part)

    def call(self, message: dict[str, Any], call: Mapping[str, Any], place: str) -> None:
        """A tool call of the last message."""
        calls = message.setdefault("tool_calls", [])
        here = f"messages[{len(self.messages) - 1}].tool_calls[{len(calls)}]"
        self.places[here] = self.places[f"{here}.function"] = place
        calls.append(call)


@dataclass(frozen=True)
class Translation:
    """``request`` means what the client sent, ``warnings`` tell what it does not."""

    request: ChatRequest
    places: Places
    warnings: tuple[str, ...] = ()

    @property
    def shows(self) -> bool:
        """Whether there is something to look at."""
        return shows({"messages": self.request.messages})

    def prepare(self, text: ModelText, eyes: Eyes | None) -> Prepared:
        """As ``prepare_request``; whatever it complains of is named as the client knows it."""
        with self.places.naming():
            prepared = prepare_request(self.request, (), text, eyes)
        told = tuple(self.places.told(warning) for warning in prepared.warnings)
        return replace(prepared, warnings=(*self.warnings, *told))


def _is_text(part: object) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("text"), str)
