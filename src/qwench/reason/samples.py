"""Samples: answers drawn from the engine, several to one prompt, each counted to the last token it cost.

The prompt of a round is submitted once; its samples share the pages and the state that come of it. Knows no votes and
no checks.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qwench.engine.request import Guide, SamplingParams
from qwench.engine.thinking import ThinkingRules
from qwench.errors import RequestError
from qwench.reason.confidence import LowestWindow
from qwench.text.marks import layout
from qwench.text.model import ChatPrompt
from qwench.text.reading import Reading
from qwench.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from qwench.engine.client import EngineClient, Generation

Message = Mapping[str, Any]
Render = Callable[[Sequence[Message]], ChatPrompt]


@dataclass
class Sample:
    """One answer. ``tokens`` is what it cost, ``token_ids`` what it holds (with what it went on from).

    ``confidence`` is its lowest window's mean log-probability, ``mean`` that of all its tokens.
    """

    index: int
    token_ids: list[int]
    reasoning: str = ""
    content: str = ""
    tokens: int = 0
    reasoning_tokens: int = 0
    finish_reason: str | None = None
    closed_by: str | None = None
    repeats: bool = False
    confidence: float = -math.inf
    mean: float = -math.inf
    prompt_tokens: int = 0
    cached_tokens: int = 0

    @property
    def whole(self) -> bool:
        """Whether it came to its own end with something said."""
        return self.finish_reason == "stop" and bool(self.content.strip())


@dataclass(frozen=True)
class Ask:
    """What to draw: an answer to ``messages`` of at most ``limit`` tokens, going on from ``begun``.

    It is given up as soon as its confidence is below ``floor``. A ``step`` is a piece of
    thought without an end of its own.
    """

    messages: Sequence[Message]
    limit: int
    begun: tuple[int, ...] = ()
    floor: float = -math.inf
    step: bool = False


class Drawing:
    """A sample being drawn."""

    def __init__(self, sample: Sample, ask: Ask, generation: Generation, reading: Reading, window: int) -> None:
        self.sample = sample
        self._ask = ask
        self._generation = generation
        self._reading = reading
        self._lowest = LowestWindow(window)
        self._sum = 0.0
        self._count = 0
        reading.begin(ask.begun)

    def stop(self) -> None:
        """Enough of it: ``read`` returns soon."""
        self._generation.abort()

    async def read(self) -> Sample:
        """The sample, complete or stopped. Also after a stop every token that was computed is counted."""
        sample, reading = self.sample, self._reading
        async for event in self._generation:
            sample.tokens += len(event.token_ids)
            for entry in event.logprobs:
                if entry is not None:
                    self._measure(entry.logprob)
            if sample.finish_reason is None:
                sample.token_ids += event.token_ids
                reading.take(event)
                sample.finish_reason = reading.finish_reason
                if sample.finish_reason is None and self._lowest.full and self._lowest.value < self._ask.floor:
                    sample.finish_reason = "unsure"
                if sample.finish_reason is not None:
                    self.stop()
        sample.cached_tokens, sample.closed_by = reading.cached_tokens, reading.closed_by
        sample.repeats, sample.reasoning_tokens = reading.repeats, reading.reasoning_tokens
        sample.reasoning, sample.content = reading.reasoning, reading.content
        sample.confidence = self._lowest.value
        sample.mean = self._sum / self._count if self._count else -math.inf
        return sample

    def _measure(self, logprob: float) -> None:
        self._lowest.push(logprob)
        self._sum += logprob
        self._count += 1


@dataclass
class Sampler:
    """Draws samples through ``client``; ``render`` makes a prompt of messages, ``sampling`` says how to draw.

    ``prompts`` are those read so far, each with the first sample of it: what many samples share is there once.
    """

    client: EngineClient
    tokenizer: Tokenizer
    render: Render
    sampling: SamplingParams
    window: int = 64
    owner: str = ""
    drawn: int = 0
    prompts: dict[tuple[int, ...], Sample] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sampling = replace(self.sampling, n=1, logprobs=0, prompt_logprobs=None)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts that were read."""
        return sum(map(len, self.prompts))

    @property
    def cached_tokens(self) -> int:
        """Of these, tokens that were known when a prompt was first read."""
        return sum(min(len(ids), sample.cached_tokens) for ids, sample in self.prompts.items())

    async def begin(self, asks: Sequence[Ask]) -> list[Drawing]:
        """Start ``asks``, but for those that do not fit the window. Raises what the engine's ``submit`` raises."""
        drawings: list[Drawing] = []
        groups: dict[tuple[int, tuple[int, ...]], list[Ask]] = {}
        for ask in asks:
            groups.setdefault((id(ask.messages), ask.begun), []).append(ask)
        with ExitStack() as undo:
            for group in groups.values():
                for drawing in await self._begin_group(group):
                    undo.callback(drawing.stop)
                    drawings.append(drawing)
            undo.pop_all()
        return drawings

    async def _begin_group(self, asks: Sequence[Ask]) -> list[Drawing]:
        """Samples of one prompt, submitted together so that they share it."""
        begun = asks[0].begun
        prompt = await asyncio.to_thread(self.render, asks[0].messages)  # templates take their time
        ids = (*prompt.token_ids, *begun)
        room = self.client.max_model_len - len(ids)
        if room < 1 and self.prompts:  # what a later round added is too long; the first prompt is refused by the engine
            return []
        choices = [self._choice(min(ask.limit, max(room, 1)), self.drawn + at) for at, ask in enumerate(asks)]
        drawings: list[Drawing] = []
        rules, marks = _onward(prompt.rules, asks[0]), layout(prompt.token_ids, self.tokenizer).marks
        generations = self.client.submit_choices(
            ids, choices, thinking=rules, marks=marks, owner=self.owner, guide=_guide_on(prompt, asks[0])
        )
        for ask, generation in zip(asks, generations, strict=True):
            sample = Sample(self.drawn, list(begun), prompt_tokens=len(prompt.token_ids))
            reading = Reading(self.tokenizer, self.sampling, thinking_open=prompt.thinking_open)
            drawings.append(Drawing(sample, ask, generation, reading, self.window))
            self.drawn += 1
        self.prompts.setdefault(tuple(prompt.token_ids), drawings[0].sample)
        return drawings

    def _choice(self, limit: int, index: int) -> SamplingParams:
        params = self.sampling.for_choice(index)
        return replace(params, max_tokens=limit, min_tokens=min(params.min_tokens, limit))


def _guide_on(prompt: ChatPrompt, ask: Ask) -> Guide | None:
    """What such a sample may say; a mere step on the way is no answer."""
    guide = None if ask.step else copy(prompt.guide)
    if guide is not None and ask.begun:
        guide.accept(ask.begun)
    return guide


def _onward(rules: ThinkingRules, ask: Ask) -> ThinkingRules | None:
    """What a sample is held to that goes on from ``ask.begun``; a mere step on the way to no end at all."""
    if ask.step:
        return None
    if not ask.begun:
        return rules
    open_now = (rules.open or rules.open_id in ask.begun) and rules.close_id not in ask.begun
    left = None if rules.budget is None else max(0, rules.budget - len(ask.begun))
    return replace(rules, open=open_now, may_open=False, begun=not open_now, budget=left)


def check_temperature(sampling: SamplingParams) -> None:
    """Raise RequestError where there is no chance in drawing."""
    if sampling.is_greedy:
        reason = "every sample would be the same; give a temperature above 0, such as 0.7"
        raise RequestError(f"temperature is {sampling.temperature:g}: {reason}.", param="temperature")
