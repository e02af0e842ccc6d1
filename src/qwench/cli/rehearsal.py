"""What an agent will ask of a server, asked once beforehand: streaming, a tool call, counted tokens, text between two.

Knows the three ways of asking (OpenAI's chat, OpenAI's responses, Anthropic's messages) and no agent. A check gives a
sentence about what it saw, or raises Lacking with what the server lacks.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qwench.errors import EngineUnavailable, UsageError

PATIENCE = 300.0  # seconds without a byte
GREETING = [{"role": "user", "content": "Say hello."}]
ERRAND = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOL = "get_weather"
PURPOSE = "The weather of a city"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ENOUGH = 2048  # tokens for an answer of this kind and some thinking, where a bound has to be sent

Document = dict[str, Any]


class Lacking(Exception):
    """What the server does not do as the agent needs it; the message is a sentence without its stop."""


class Wire:
    """Asks one server; never through a proxy, as it is nearly always this machine."""

    def __init__(self, url: str, key: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"--url is {url!r}; give an address such as http://127.0.0.1:8000.")
        self.url = url.rstrip("/")
        self._headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {key}",
            "anthropic-version": "2023-06-01",
        }
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(self, path: str, body: Document | None = None) -> Document:
        """The answer as one document. Raises Lacking for a refusal, EngineUnavailable where nobody answers."""
        lines = b"".join(self._lines(path, body))
        try:
            answer: Document = json.loads(lines)
        except ValueError:
            raise Lacking(f"{path} did not answer with JSON") from None
        return answer

    def events(self, path: str, body: Document) -> Iterator[Document]:
        """The events of a streamed answer; one that carries an error raises Lacking."""
        for line in self._lines(path, {**body, "stream": True}):
            data = line.removeprefix(b"data:").strip()
            if data == line.strip() or data == b"[DONE]":
                continue
            event: Document = json.loads(data)
            if event.get("error"):
                raise Lacking(f"{path} broke off: {event['error'].get('message')}")
            yield event

    def _lines(self, path: str, body: Document | None) -> Iterator[bytes]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, self._headers)  # noqa: S310  # http or https, see above
        try:
            with self._opener.open(request, timeout=PATIENCE) as response:
                yield from response
        except urllib.error.HTTPError as refusal:
            raise Lacking(f"{path} answered {refusal.code}: {_told(refusal.read())}") from None
        except (urllib.error.URLError, TimeoutError, ConnectionError) as failure:
            reason = getattr(failure, "reason", failure)
            told = f"No server answers at {self.url} ({reason}); start one with `qwench serve`, or name it with --url."
            raise EngineUnavailable(told) from None


Check = Callable[[Wire, str], str]  # (wire, model) -> a sentence


@dataclass(frozen=True)
class Dialect:
    """A way of asking. ``text`` of an event is what it adds to the answer, ``call`` of a body its first tool call."""

    path: str
    common: Callable[[str, list[Document]], Document]
    tool: Document
    choice: object
    text: Callable[[Document], str]
    ended: Callable[[Document], bool]
    call: Callable[[Document], tuple[str, object] | None]

    def streams(self, wire: Wire, model: str) -> str:
        """An answer as it comes."""
        began, first, pieces, ended = time.monotonic(), 0.0, 0, False
        for event in wire.events(self.path, self.common(model, GREETING)):
            if self.text(event):
                pieces += 1
                first = first or time.monotonic() - began
            ended = ended or self.ended(event)
        if not pieces:
            raise Lacking(f"{self.path} streamed no text")
        if not ended:
            raise Lacking(f"the stream of {self.path} does not say that it is over")
        return f"{pieces} pieces, the first after {first:.2f} s"

    def calls(self, wire: Wire, model: str) -> str:
        """A call of the one tool there is."""
        body = {**self.common(model, ERRAND), "tools": [self.tool], "tool_choice": self.choice}
        found = self.call(wire.ask(self.path, body))
        if found is None:
            raise Lacking(f"{self.path} called no tool although it had to")
        name, arguments = found
        if name != TOOL or not isinstance(arguments, Mapping) or not isinstance(arguments.get("city"), str):
            raise Lacking(f"{self.path} called {name} with {json.dumps(arguments):.80}, which its schema refuses")
        return f"{name}({json.dumps(arguments)})"


def counts_tokens(wire: Wire, model: str) -> str:
    """The length of a prompt, as Claude Code asks for it before it compacts."""
    counted = wire.ask("/v1/messages/count_tokens", {"model": model, "messages": GREETING}).get("input_tokens")
    if not isinstance(counted, int) or counted < 1:
        raise Lacking("/v1/messages/count_tokens gives no input_tokens")
    return f"{counted} tokens"


def lists_models(wire: Wire, model: str) -> str:
    """The list a user picks from."""
    names = [card.get("id") for card in wire.ask("/v1/models").get("data", [])]
    if model not in names:
        raise Lacking(f"/v1/models does not list {model}")
    return ", ".join(str(name) for name in names)


def fills_in(wire: Wire, model: str) -> str:
    """What an editor's autocomplete asks for."""
    body = {"model": model, "prompt": "def add(a, b):\n    return", "suffix": "\n", "max_tokens": 16}
    text = wire.ask("/v1/completions", body)["choices"][0]["text"]
    return f"{len(text)} characters"


def _told(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"]).rstrip(".")
    except (ValueError, KeyError, TypeError):
        return "no sentence"


def _parsed(arguments: object) -> object:
    try:
        return json.loads(str(arguments))
    except ValueError:
        return arguments


def _chat_text(event: Document) -> str:
    deltas = [choice.get("delta", {}) for choice in event.get("choices", [])]
    return "".join((delta.get("content") or "") + (delta.get("reasoning_content") or "") for delta in deltas)


def _chat_call(body: Document) -> tuple[str, object] | None:
    calls = body["choices"][0]["message"].get("tool_calls") or []
    return next(((call["function"]["name"], _parsed(call["function"]["arguments"])) for call in calls), None)


def _messages_text(event: Document) -> str:
    delta = event.get("delta", {})
    return str(delta.get("text") or delta.get("thinking") or "")


def _messages_call(body: Document) -> tuple[str, object] | None:
    blocks = (block for block in body.get("content", []) if block.get("type") == "tool_use")
    return next(((block["name"], block["input"]) for block in blocks), None)


def _responses_call(body: Document) -> tuple[str, object] | None:
    items = (item for item in body.get("output", []) if item.get("type") == "function_call")
    return next(((item["name"], _parsed(item["arguments"])) for item in items), None)


CHAT = Dialect(
    path="/v1/chat/completions",
    common=lambda model, messages: {"model": model, "messages": messages},
    tool={"type": "function", "function": {"name": TOOL, "description": PURPOSE, "parameters": PARAMETERS}},
    choice="required",
    text=_chat_text,
    ended=lambda event: any(choice.get("finish_reason") for choice in event.get("choices", [])),
    call=_chat_call,
)
MESSAGES = Dialect(
    path="/v1/messages",
    common=lambda model, messages: {"model": model, "messages": messages, "max_tokens": ENOUGH},
    tool={"name": TOOL, "description": PURPOSE, "input_schema": PARAMETERS},
    choice={"type": "any"},
    text=_messages_text,
    ended=lambda event: event.get("type") == "message_stop",
    call=_messages_call,
)
RESPONSES = Dialect(
    path="/v1/responses",
    common=lambda model, messages: {"model": model, "input": messages},
    tool={"type": "function", "name": TOOL, "description": PURPOSE, "parameters": PARAMETERS},
    choice="required",
    text=lambda event: str(event["delta"]) if str(event.get("type")).endswith("text.delta") else "",
    ended=lambda event: event.get("type") in {"response.completed", "response.incomplete"},
    call=_responses_call,
)
