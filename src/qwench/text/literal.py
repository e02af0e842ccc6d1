"""What only looks like a special token stays text: nobody may end a turn, or begin a system's, by writing its tag.

Before a prompt is rendered, every such text in what users, systems and tools say, in the tools' own descriptions and in
a request's variables is broken with a character that no text contains; the tokens are made without it, piece by piece
between the template's own tags. Prompts without such a text, nearly all, are encoded as they are. The model's own
earlier answers keep the tags of thoughts and calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qwench.errors import RequestError
from qwench.text.tokenizer import Tokenizer

NEVER_IN_TEXT = tuple(map(chr, range(0xFDD0, 0xFDF0)))  # Unicode's noncharacters
DEEPEST = 100
RESULT = re.compile(r"(\s*<tool_response>)(.*)(</tool_response>\s*)", re.DOTALL)


class Literal:
    """The breaking of one conversation, of the ``tools`` it offers and the ``variables`` of its template. ``mark`` is
    None where nothing had to be broken."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        messages: Iterable[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._all = _any_of(tokenizer.added.values())
        self._special = _any_of(text for number, text in tokenizer.added.items() if number in tokenizer.special_ids)
        self.mark: str | None = None
        self.messages: list[Mapping[str, Any]] = list(messages)
        self.tools = tools
        self.variables = variables or {}
        texts = list(_strings([*self.messages, *(tools or ()), self.variables]))
        if any(self._all.search(text) for text in texts):
            self.mark = next((each for each in NEVER_IN_TEXT if not any(each in text for text in texts)), None)
        if self.mark is not None:
            self.messages = [self._broken(message) for message in self.messages]
            self.tools = None if tools is None else [self._everywhere(tool, "tools") for tool in tools]
            self.variables = self._everywhere(self.variables, "chat_template_kwargs")

    def text(self, rendered: str) -> str:
        """The prompt as it reads."""
        return rendered if self.mark is None else rendered.replace(self.mark, "")

    def encode(self, rendered: str) -> list[int]:
        """Its tokens."""
        if self.mark is None:
            return self._tokenizer.encode(rendered)
        ids: list[int] = []
        start = 0
        for tag in self._all.finditer(rendered):
            ids += self._tokenizer.encode_plain(self.text(rendered[start : tag.start()]))
            ids += self._tokenizer.encode(tag[0])
            start = tag.end()
        return ids + self._tokenizer.encode_plain(self.text(rendered[start:]))

    def _broken(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        content: Any = message["content"]
        own = message["role"] == "assistant"
        if isinstance(content, str):
            result = RESULT.fullmatch(content) if message["role"] == "user" else None
            if result:  # as clients without a tool's role write one
                content = result[1] + self._break(result[2]) + result[3]
            else:
                content = self._break(content, own=own)
        else:
            content = [
                {**part, "text": self._break(part["text"], own=own)} if isinstance(part.get("text"), str) else part
                for part in content
            ]
        others = {name: value for name, value in message.items() if name not in ("role", "content")}
        broken = {"role": message["role"], **self._everywhere(others, "messages"), "content": content}
        if isinstance(thought := message.get("reasoning_content"), str):
            broken["reasoning_content"] = self._break(thought, own=own)
        return broken

    def _break(self, text: str, *, own: bool = False) -> str:
        pattern = self._special if own else self._all
        return pattern.sub(lambda tag: f"{tag[0][0]}{self.mark}{tag[0][1:]}", text)

    def _everywhere(self, value: Any, field: str, depth: int = 0) -> Any:
        """JSON of ``field`` with all of its strings broken, keys too. Raises RequestError where it is too deep."""
        if depth > DEEPEST:
            reason = f"what reads like a tag and nests deeper than {DEEPEST} levels; send flatter JSON"
            raise RequestError(f"{field} holds {reason}.", param=field)
        if isinstance(value, str):
            return self._break(value)
        if isinstance(value, Mapping):
            return {
                self._everywhere(key, field): self._everywhere(each, field, depth + 1) for key, each in value.items()
            }
        return [self._everywhere(inner, field, depth + 1) for inner in value] if isinstance(value, list) else value


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    tags = sorted((re.escape(text) for text in texts if len(text) > 1), key=len, reverse=True)
    return re.compile("|".join(tags) or "(?!)")


def _strings(value: object) -> Iterable[str]:
    """All strings of JSON, without recursion: clients nest as deep as they like."""
    waiting: list[Any] = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, Mapping):
            waiting += [*each.keys(), *each.values()]
        elif isinstance(each, Sequence):
            waiting += each
