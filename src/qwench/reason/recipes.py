"""The recipes: adaptive vote, best of many with a check, a forest. A recipe only says what to draw next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qwench.engine.request import SamplingParams
from qwench.reason.checks import Check
from qwench.reason.confidence import floor_of
from qwench.reason.course import Course, Outcome, Recipe
from qwench.reason.forest import forest
from qwench.reason.samples import Ask, Message, Render, Sample, Sampler, check_temperature
from qwench.reason.strategy import Method, Strategy
from qwench.reason.vote import needed, stays
from qwench.text.tokenizer import Tokenizer
from qwench.text.vision import text_of

if TYPE_CHECKING:
    from qwench.engine.client import EngineClient

FAILED = "That answer did not pass the check:\n\n{words}\n\nGive a corrected answer."


@dataclass(frozen=True)
class Task:
    """A question and how it is to be answered. ``render`` makes prompts of messages, ``sampling`` says how to draw."""

    messages: Sequence[Message]
    render: Render
    sampling: SamplingParams
    strategy: Strategy
    check: Check | None = None
    owner: str = ""  # whose share of the engine it is

    def limit(self, client: EngineClient) -> int:
        """Tokens one sample takes at most. Raises what the engine would refuse, before anything runs."""
        check_temperature(self.sampling)
        prompt = self.render(self.messages).token_ids
        client.check(prompt, replace(self.sampling, n=1, logprobs=0))
        return self.sampling.max_tokens or client.max_model_len - len(prompt)


async def reason(client: EngineClient, tokenizer: Tokenizer, task: Task, limit: int) -> Outcome:
    """One answer to ``task``; a single sample takes ``limit`` tokens at most.

    Raises what the engine raises. Cancelled, it leaves nothing running but a checker that ends by itself in time.
    """
    sampler = Sampler(client, tokenizer, task.render, task.sampling, task.strategy.window, task.owner)
    course = Course(sampler, task.strategy, task.messages, limit, task.check)
    try:
        await RECIPES[task.strategy.method](course)
        return course.outcome()
    finally:
        course.close()


def question(messages: Sequence[Message]) -> str:
    """What was asked last, for checks that look at it."""
    asked = [message["content"] for message in messages if message.get("role") == "user"]
    return text_of(asked[-1]) if asked else ""


async def vote(course: Course) -> None:
    """Rounds just large enough to settle it if all agree; the end is where the leader would stay.

    With ``keep`` below 1 the first round says how confident a sample has to be, and later ones stop when they are not.
    """
    strategy = course.strategy
    while remaining := strategy.samples - len(course.samples):
        counts = [tally.count for tally in course.tallies()]
        number = needed(counts, remaining, strategy.confidence)
        drawn = await course.draw([Ask(course.messages, course.limit, floor=course.floor)] * number)
        if not drawn:
            return
        if len(drawn) == len(course.samples) and strategy.keep < 1:
            course.floor = floor_of([sample.confidence for sample in drawn if sample.whole], strategy.keep)
        remaining = strategy.samples - len(course.samples)
        if remaining and stays([tally.count for tally in course.tallies()], remaining) >= strategy.confidence:
            course.stopped = "agreed"
            return


async def best_of(course: Course) -> None:
    """One, then two, then four at once, until one passes. Every other later one is shown an answer that failed."""
    number = 1
    while remaining := course.strategy.samples - len(course.samples):
        failed = sorted((s for s in course.samples if s.whole), key=lambda sample: -sample.mean)
        asks = [
            _again(course, failed[at // 2 % len(failed)]) if at % 2 and failed else Ask(course.messages, course.limit)
            for at in range(min(number, remaining))
        ]
        drawn = await course.draw(asks, until_passed=True)
        if any(course.passed(sample) for sample in drawn):
            course.stopped = "passed"
            return
        if not drawn:
            return
        number *= 2


def _again(course: Course, failed: Sample) -> Ask:
    """Another try that sees what was wrong with the last."""
    words = FAILED.format(words=course.verdicts[failed.index].words)
    turns = [{"role": "assistant", "content": failed.content}, {"role": "user", "content": words}]
    return Ask([*course.messages, *turns], course.limit)


RECIPES: dict[Method, Recipe] = {"vote": vote, "best_of": best_of, "forest": forest}
