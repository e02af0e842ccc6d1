"""Two dialects that upstreams speak: OpenAI's chat completions and Anthropic's messages.

A dialect makes the call for an option, and reads what comes back as a chat completion or its chunks. It says whether an
answer is whole and what the upstream reported of its usage. Knows no connection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from qwench.gateway.tiers import Option, Thinking
from qwench.gateway.to_anthropic import ChunkStream, message_to_completion, request_to_messages
from qwench.gateway.upstream import Call, Event
from qwench.gateway.usage import Usage, anthropic_usage, openai_usage
from qwench.gateway.wanted import Face, Wanted
from qwench.text.thinking import EFFORTS, KNOWN

ANTHROPIC_VERSION = "2023-06-01"
LEAST_BUDGET = 1024  # tokens; Anthropic refuses fewer
USUAL_BUDGET = 4096  # what "on" is where an upstream wants a number
THINKING_FIELDS = frozenset(name.partition(".")[0] for name in KNOWN) - {"chat_template_kwargs"}
TEMPLATE_FIELDS = frozenset({"enable_thinking", "thinking_budget"})


class Malformed(ValueError):
    """An answer that is JSON, and not what was asked for."""


class ToldFailure(ValueError):
    """The upstream says inside a stream or a 200 that it failed; the message is its own."""


@dataclass
class Reading:
    """What is known of an answer while it comes. ``characters``: of everything that was said in it; ``words``: what was
    said, by kind (``thought``, ``content``, ``calls``), where ``keeps``."""

    keeps: bool = False
    whole: bool = False
    stop: str = ""
    characters: int = 0
    reported: Any = None
    begun: bool = field(default=False, init=False)
    words: dict[str, list[str]] = field(default_factory=dict, init=False)

    def take(self, chunk: Mapping[str, Any]) -> None:
        """Count one chunk of a completion, of chat or not, or the completion itself. Raises Malformed."""
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            raise Malformed("no choices")
        for choice in choices:
            said = _said(choice) if isinstance(choice, Mapping) else None
            if said is None and not (isinstance(choice, Mapping) and choice.get("finish_reason")):
                raise Malformed("a choice without delta or message")
            size = 0
            for kind, text in _texts(said or {}):
                size += len(text)
                if self.keeps and text:
                    self.words.setdefault(kind, []).append(text)
            self.characters += size
            self.stop = str(choice.get("finish_reason") or self.stop)
            self.begun = self.begun or size > 0 or bool(choice.get("finish_reason"))
        if chunk.get("usage"):
            self.reported = chunk["usage"]


def _said(choice: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a choice says as a message; a completion of a raw prompt is nothing but text."""
    if isinstance(choice.get("text"), str):
        return {"content": choice["text"]}
    said = choice.get("delta") or choice.get("message")
    return said if isinstance(said, Mapping) else None


def _texts(said: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "thought", str(said.get("reasoning_content") or said.get("reasoning") or "")
    yield "content", str(said.get("content") or "")
    for call in said.get("tool_calls") or ():
        function = (call.get("function") or {}) if isinstance(call, Mapping) else {}
        yield "calls", str(function.get("name") or "")
        yield "calls", str(function.get("arguments") or "")


class Dialect(Protocol):
    """One answer's worth of a dialect: made anew for every attempt."""

    face: Face
    reading: Reading

    def call(self, option: Option, wanted: Wanted, ends: float) -> tuple[Call, list[str]]: ...

    def completion(self, told: Mapping[str, Any]) -> dict[str, Any]: ...

    def chunks(self, event: Event) -> list[dict[str, Any]]: ...

    def usage(self) -> Usage: ...


class OpenAIDialect:
    face: Face = "openai"

    def __init__(self, *, keeps: bool = False) -> None:
        self.reading = Reading(keeps)

    def call(self, option: Option, wanted: Wanted, ends: float) -> tuple[Call, list[str]]:
        """The chat completion for the option's model and thinking, or the raw prompt as it was sent; usage is always
        asked for."""
        raw = wanted.face == "completions"
        body = {**(wanted.body if raw else wanted.chat), "model": option.model}
        if not raw and (option.thinking != "" or option.tier.steering != "qwen"):
            body = _steered(body, option, wanted.signals.asked)
        if not raw and option.recipe:
            body["reasoning_strategy"] = {"method": option.recipe, "samples": option.samples}
        if wanted.signals.stream and option.tier.usage:
            body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        key = option.tier.secret.value
        headers = {"authorization": f"Bearer {key}"} if key else {}
        path = "/v1/completions" if raw else "/v1/chat/completions"
        return Call(path, body, ends, headers), list(wanted.warnings)

    def completion(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Raises Malformed or ToldFailure."""
        _raise_error(told)
        self.reading.take(told)
        if not told["choices"]:
            raise Malformed("no choice")
        self.reading.whole = True
        return dict(told)

    def chunks(self, event: Event) -> list[dict[str, Any]]:
        """Raises Malformed or ToldFailure."""
        if event.name == "done":
            self.reading.whole = True
        if event.data is None:
            return []
        _raise_error(event.data)
        self.reading.take(event.data)
        return [event.data]

    def usage(self) -> Usage:
        return openai_usage(self.reading.reported)


class AnthropicDialect:
    face: Face = "anthropic"

    def __init__(self, *, keeps: bool = False) -> None:
        self.reading = Reading(keeps)
        self._stream = ChunkStream()

    def call(self, option: Option, wanted: Wanted, ends: float) -> tuple[Call, list[str]]:
        """A message goes as it was sent; a chat completion is translated."""
        asked, warnings = wanted.signals.asked, list[str]()
        if wanted.face == "anthropic":
            body = {name: value for name, value in wanted.body.items() if name not in ("thinking", "output_config")}
            kept = {name: wanted.body[name] for name in ("thinking", "output_config") if name in wanted.body}
            body = {**body, "model": option.model} | (kept if option.thinking == "" else {})
        else:
            plain = {name: value for name, value in wanted.chat.items() if name not in THINKING_FIELDS}
            body, warnings = request_to_messages(plain, option.model)
            warnings = [*wanted.warnings, *warnings]
        if option.thinking != "" or wanted.face != "anthropic":
            body |= _anthropic_thinking(option, asked, body["max_tokens"])
        if body.get("thinking", {}).get("type") == "enabled" and option.thinking != "":
            warnings += _made_room(body)
        headers = {"anthropic-version": ANTHROPIC_VERSION}
        if option.tier.secret.value:
            headers["x-api-key"] = option.tier.secret.value
        return Call("/v1/messages", body, ends, headers), warnings

    def completion(self, told: Mapping[str, Any]) -> dict[str, Any]:
        _raise_error(told)
        try:
            completion = message_to_completion(told)
        except (ValueError, AttributeError) as error:
            raise Malformed(str(error)) from None
        self.reading.take(completion)
        self.reading.reported, self.reading.whole = told.get("usage"), True
        return completion

    def chunks(self, event: Event) -> list[dict[str, Any]]:
        if event.data is None:
            return []
        _raise_error(event.data)
        if event.data.get("type") == "message_stop":
            self.reading.whole = True
        try:
            found = list(self._stream.chunks(event.data))
        except (AttributeError, TypeError) as error:
            raise Malformed(str(error)) from None
        for chunk in found:
            self.reading.take(chunk)
        return found

    def usage(self) -> Usage:
        return anthropic_usage(self._stream.usage or self.reading.reported)


def _made_room(body: dict[str, Any]) -> list[str]:
    """Anthropic counts thinking among the answer's tokens, wants room beyond the budget, and then no own sampling."""
    needed = body["thinking"]["budget_tokens"] + LEAST_BUDGET
    raised = [f"max_tokens: {needed} was sent, to leave room for thinking"] if body["max_tokens"] < needed else []
    body["max_tokens"] = max(body["max_tokens"], needed)
    dropped = [name for name in ("temperature", "top_k") if body.pop(name, None) is not None]
    return raised + [f"{name}: ignored, the tier thinks" for name in dropped]


def dialect(option: Option, *, keeps: bool = False) -> Dialect:
    """``keeps``: what is said is remembered until the answer is over."""
    return AnthropicDialect(keeps=keeps) if option.tier.kind == "anthropic" else OpenAIDialect(keeps=keeps)


def _raise_error(told: object) -> None:
    if not isinstance(told, Mapping):
        raise Malformed("no object")
    error = told.get("error")
    if error:
        message = error.get("message") if isinstance(error, Mapping) else error
        raise ToldFailure(str(message or "it does not say why"))


def _steered(body: Mapping[str, Any], option: Option, asked: Thinking | None) -> dict[str, Any]:
    """``body`` with every spelling of thinking replaced by the one the tier understands."""
    plain = {name: value for name, value in body.items() if name not in THINKING_FIELDS}
    template = {k: v for k, v in (plain.pop("chat_template_kwargs", None) or {}).items() if k not in TEMPLATE_FIELDS}
    if template:
        plain["chat_template_kwargs"] = template
    mode = _mode(option, asked)
    if mode is None or option.tier.steering == "none":
        return plain
    if option.tier.steering == "qwen":
        budget = {"thinking_budget": mode} if isinstance(mode, int) else {}
        return {**plain, "enable_thinking": mode != "off", **budget}
    return {**plain, "reasoning_effort": _effort(mode)}


def _mode(option: Option, asked: Thinking | None) -> Thinking | None:
    """What the request says counts; the gates let only options through that agree on whether to think."""
    return asked if asked is not None else option.thinking or None


def _effort(mode: Thinking) -> str:
    """A budget is the highest level of effort that it pays for."""
    if not isinstance(mode, int):
        return "none" if mode == "off" else "medium"
    within = [name for name, tokens in EFFORTS.items() if tokens is not None and tokens <= mode and name != "none"]
    return within[-1] if within else "minimal"


def _anthropic_thinking(option: Option, asked: Thinking | None, limit: int) -> dict[str, Any]:
    mode = _mode(option, asked)
    if mode is None or option.tier.steering == "none":
        return {}
    if mode == "off":
        return {"thinking": {"type": "disabled"}}
    if option.tier.steering == "adaptive":
        effort = {"output_config": {"effort": _effort(mode)}} if isinstance(mode, int) else {}
        return {"thinking": {"type": "adaptive"}, **effort}
    budget = mode if isinstance(mode, int) else min(USUAL_BUDGET, max(limit // 2, LEAST_BUDGET))
    return {"thinking": {"type": "enabled", "budget_tokens": max(budget, LEAST_BUDGET)}}
