"""ThinkingPlan: what a request wants of thinking, read from every spelling that clients use.

One table says what each field means. Where two of them cannot both be meant the request is refused; where one gives way
to another a warning says so by name. What the plan comes to is written for the engine as ThinkingRules: token ids only.
Knows no HTTP and no engine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from qwench.engine.thinking import ThinkingRules
from qwench.errors import RequestError
from qwench.text.stream import THINK_CLOSE, THINK_OPEN, TOOL_CALL
from qwench.text.tokenizer import Tokenizer

MAX_BUDGET = 2**31 - 1
UNBOUNDED = -1  # llama.cpp's number for it
# Qwen publishes this sentence for cutting its models' thinking short; they were seen to answer well after it.
SENTENCE = "Considering the limited time by the user, I have to give the solution based on the thinking directly now."
SOFT_SWITCH = re.compile(r"(?<!\S)/(no_)?think(?!\S)")

# How many tokens each level of effort is worth; None does not bound.
EFFORTS: Mapping[str, int | None] = MappingProxyType(
    {"none": 0, "minimal": 256, "low": 1024, "medium": 4096, "high": 16_384, "xhigh": 32_768, "max": None}
)
TYPES: Mapping[str, bool | None] = MappingProxyType(
    {"enabled": True, "disabled": False, "adaptive": None, "between_tools": None, "auto": None}
)

Meaning = Literal["effort", "switch", "budget", "type", "sentence", "hide", "show", "display", "none"]


@dataclass(frozen=True)
class Spelling:
    """One field that concerns thinking, nested names with a dot, and whose it is."""

    name: str
    meaning: Meaning
    origin: str
    unbounded: bool = False  # -1 is this field's way to say: without a bound


SPELLINGS: tuple[Spelling, ...] = (
    Spelling("reasoning_effort", "effort", "OpenAI"),
    Spelling("reasoning.effort", "effort", "OpenAI, OpenRouter"),
    Spelling("output_config.effort", "effort", "Anthropic"),
    Spelling("enable_thinking", "switch", "DashScope, Qwen"),
    Spelling("enableThinking", "switch", "clients in JavaScript"),
    Spelling("think", "switch", "Ollama; also a level of effort"),
    Spelling("thinking", "switch", "true or false, or Anthropic's object"),
    Spelling("thinking.type", "type", "Anthropic"),
    Spelling("reasoning.enabled", "switch", "OpenRouter"),
    Spelling("chat_template_kwargs.enable_thinking", "switch", "vLLM, SGLang, llama.cpp"),
    Spelling("thinking_budget", "budget", "DashScope"),
    Spelling("thinking_token_budget", "budget", "vLLM"),
    Spelling("thinking_budget_tokens", "budget", "llama.cpp", unbounded=True),
    Spelling("reasoning_budget", "budget", "llama.cpp", unbounded=True),
    Spelling("reasoning_budget_tokens", "budget", "llama.cpp", unbounded=True),
    Spelling("thinking.budget_tokens", "budget", "Anthropic"),
    Spelling("reasoning.max_tokens", "budget", "OpenRouter"),
    Spelling("chat_template_kwargs.thinking_budget", "budget", "SGLang"),
    Spelling("reasoning_budget_message", "sentence", "llama.cpp"),
    Spelling("reasoning.exclude", "hide", "OpenRouter"),
    Spelling("include_reasoning", "show", "OpenRouter, vLLM"),
    Spelling("thinking.display", "display", "Anthropic"),
    Spelling("reasoning.summary", "none", "OpenAI"),
    Spelling("reasoning.generate_summary", "none", "OpenAI"),
)
KNOWN: Mapping[str, Spelling] = MappingProxyType({each.name: each for each in SPELLINGS})
ORDER: Mapping[str, int] = MappingProxyType({name: place for place, name in enumerate(KNOWN)})
OBJECTS = frozenset(("thinking", "reasoning", "output_config"))  # objects that are about thinking alone


@dataclass(frozen=True)
class ThinkingPlan:
    """What a request wants. None leaves it to the model: its template, its default budget, its family's sentence.

    ``budget`` UNBOUNDED asks for no bound. ``insists``: a switch was sent, so a model that cannot obey is an error;
    else wanting to think is a wish. ``sources`` are the fields it was read from.
    """

    enabled: bool | None = None
    budget: int | None = None
    insists: bool = False
    sentence: str | None = None
    show: bool = True
    sources: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def read_thinking(fields: Mapping[str, Any]) -> ThinkingPlan:
    """The plan of the fields that a request holds; other fields are left alone. Raises RequestError."""
    wishes, warnings = _Wishes(), list[str]()
    flat = dict(_flat(fields))
    for name in sorted(flat, key=lambda name: ORDER.get(name, len(ORDER))):
        value = flat[name]
        spelling = KNOWN.get(name)
        if spelling is not None:
            wishes.add(spelling, value, warnings)
        elif "." in name and name.partition(".")[0] in OBJECTS:
            warnings.append(f"{name:.80}: unknown field, ignored")
    return wishes.plan(warnings)


def concerns_thinking(name: str) -> bool:
    """Whether a field that nobody knows looks as if it were about thinking."""
    return "think" in name.lower() or "reason" in name.lower()


def rules_for(tokenizer: Tokenizer, end_ids: frozenset[int]) -> ThinkingRules:
    """What every request to one model shares. Without the tags as tokens of their own there is no thinking to steer."""
    opening, closing, tool = (tokenizer.id_of(tag) for tag in (THINK_OPEN, THINK_CLOSE, TOOL_CALL))
    blank = tokenizer.blank_ids - {tool}  # a call is an answer, even where its tag is a special token
    if opening is None or closing is None:
        return ThinkingRules(end_ids, blank)
    bare = (*tokenizer.encode("\n"), closing, *tokenizer.encode("\n\n"))
    return ThinkingRules(end_ids, blank, opening, closing, tool, closing_ids(SENTENCE, tokenizer), bare)


def closing_ids(sentence: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that cut thinking short: ``sentence``, and the tag as its own token between its usual line breaks."""
    closing = tokenizer.id_of(THINK_CLOSE)
    assert closing is not None
    return (*tokenizer.encode_plain(f"\n\n{sentence}\n"), closing, *tokenizer.encode("\n\n"))


def soft_switch(messages: Sequence[Mapping[str, Any]]) -> bool | None:
    """The last ``/think`` or ``/no_think`` that a user or the system wrote, None without one."""
    for message in reversed(messages):
        found = SOFT_SWITCH.findall(message["content"]) if message["role"] in ("user", "system") else []
        if found:
            return not found[-1]
    return None


def _flat(fields: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Fields and those one level below, with dotted names. Null means absent."""
    for name, value in fields.items():
        nested = isinstance(value, Mapping) and (name in OBJECTS or name == "chat_template_kwargs")
        pairs = ((f"{name}.{key}", inner) for key, inner in value.items()) if nested else ((name, value),)
        yield from ((path, inner) for path, inner in pairs if inner is not None)


class _Wishes:
    """The wishes of one request, by what they mean: each from the field that said it."""

    def __init__(self) -> None:
        self.switches: dict[str, bool] = {}
        self.budgets: dict[str, int] = {}
        self.efforts: dict[str, str] = {}
        self.sources: list[str] = []
        self.sentence: str | None = None
        self.show = True

    def add(self, spelling: Spelling, value: object, warnings: list[str]) -> None:
        name, meaning = spelling.name, spelling.meaning
        self.sources.append(name)
        if meaning == "effort" or (name == "think" and isinstance(value, str)):
            self._effort(name, _one_of(name, value, EFFORTS))
        elif meaning == "switch":
            self.switches[name] = _flag(name, value)
        elif meaning == "budget":
            self.budgets[name] = _budget(spelling, value)
        elif meaning == "type":
            kind = _one_of(name, value, TYPES)
            if (switch := TYPES[kind]) is not None:
                self.switches[name] = switch
            else:
                warnings.append(f"{name}: '{kind}' leaves it to the model's default, this family has no such mode")
        elif meaning in ("hide", "show"):
            self.show &= _flag(name, value) == (meaning == "show")
        elif meaning == "display":
            self.show &= _one_of(name, value, ("summarized", "full", "omitted")) != "omitted"
        elif meaning == "sentence":
            self.sentence = _text(name, value)
        else:
            warnings.append(f"{name}: ignored, the reasoning itself is sent")

    def _effort(self, name: str, effort: str) -> None:
        if effort == "none":
            self.switches[name] = False
        else:
            self.efforts[name] = effort

    def plan(self, warnings: list[str]) -> ThinkingPlan:
        """What all of it comes to: off wins, then a number, then a level of effort."""
        switch, budget, effort = (_agreed(found) for found in (self.switches, self.budgets, self.efforts))
        enabled = switch[1] if switch else True if budget or effort else None
        tokens = budget[1] if budget else EFFORTS[effort[1]] if effort else None
        if effort and tokens is None:
            tokens = UNBOUNDED
        if switch and not switch[1]:
            others = (budget if budget and budget[1] else None, effort)
            warnings += [f"{each[0]}: no effect, {switch[0]} switches thinking off" for each in others if each]
        elif budget and budget[1] == 0:
            enabled = False
            warnings += [f"{each[0]}: no effect, {budget[0]} is 0" for each in (switch, effort) if each]
        elif budget and effort:
            warnings.append(f"{effort[0]}: gives way to {budget[0]}")
        return ThinkingPlan(
            enabled=enabled,
            budget=None if switch and not switch[1] else tokens,
            insists=switch is not None,
            sentence=self.sentence,
            show=self.show,
            sources=tuple(self.sources),
            warnings=tuple(warnings),
        )


def _agreed(found: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The first field and the value that all fields of one meaning share. Raises RequestError where they differ."""
    pairs = sorted(found.items(), key=lambda pair: ORDER[pair[0]])
    for name, value in pairs:
        if value != pairs[0][1]:
            first, told = pairs[0]
            reason = f"{first} ({_told(first, told)}) and {name} ({_told(name, value)}) disagree; send one of them"
            raise RequestError(f"{reason}.", param=first)
    return pairs[0] if pairs else None


def _told(name: str, value: object) -> str:
    """A value as the client wrote it: an effort of none became a switch."""
    if isinstance(value, bool):
        return "none" if KNOWN[name].meaning == "effort" else str(value).lower()
    return str(value)


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{name} is {value!r:.80}; it should be true, false or left out.", param=name)
    return value


def _budget(spelling: Spelling, value: object) -> int:
    name = spelling.name
    if spelling.unbounded and value == UNBOUNDED and not isinstance(value, bool):
        return UNBOUNDED
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_BUDGET:
        instead = "-1 for no bound" if spelling.unbounded else "leave it out for the model's default"
        reason = f"give a number of tokens from 0 to {MAX_BUDGET}, or {instead}"
        raise RequestError(f"{name} is {value!r:.80}; {reason}.", param=name)
    return value


def _one_of(name: str, value: object, known: Mapping[str, object] | Sequence[str]) -> str:
    if not isinstance(value, str) or value not in known:
        raise RequestError(f"{name} is {value!r:.80}; known are {', '.join(known)}.", param=name)
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{name} is {value!r:.80}; give a text.", param=name)
    return value.strip()
