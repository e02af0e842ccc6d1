"""A small forest of thoughts. Experimental: several trees of thought grow in steps, and their answers vote.

Sparse activation: after each step only as many thoughts as there are trees go on, those whose last step was the surest.
Self-correction: an answer that failed its check (without one: is unsure and outvoted) is looked at again.
Consensus: the answers vote, corrected ones in place of what they corrected.

Growing ends where an answer as long as it may be would no longer fit into the budget: thoughts alone say nothing.

A thought goes on from its own tokens, whose pages and state the engine keeps; a step shorter than the distance between
two of its snapshots is read once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from qwench.reason.course import Course
from qwench.reason.samples import Ask, Sample

LOOK_AGAIN = "Go through that answer once more, step by step. If it is wrong, correct it; if it is right, repeat it."


async def forest(course: Course) -> None:
    strategy = course.strategy
    step = min(strategy.step, course.limit)
    trees = [Ask(course.messages, step, step=True)] * strategy.samples
    fitting = (course.budget.left - (course.limit - step)) // step  # so many leave room for one of them to answer
    thoughts = await course.draw(trees[: max(1, fitting)])
    for _ in range(strategy.depth - 1):
        alive = surest(thoughts, strategy.samples)
        asks = [
            replace(_onward(course, thought, step), step=True) for thought in alive for _ in range(strategy.branches)
        ]
        asks = [ask for ask in asks if ask.limit > 0]
        end = max((course.limit - len(ask.begun) - ask.limit for ask in asks), default=0)
        if not asks or sum(ask.limit for ask in asks) + end > course.budget.left:
            break
        thoughts = await course.draw(asks)
    ends = [_onward(course, thought, course.limit) for thought in surest(thoughts, strategy.samples)]
    if ends := [ask for ask in ends if ask.limit > 0]:
        await course.draw(ends)
    doubted = doubtful(course)[: strategy.samples]
    corrected = await course.draw([_corrected(course, sample) for sample in doubted]) if doubted else []
    course.replaced |= {old.index for old, new in zip(doubted, corrected, strict=False) if course.passed(new)}


def surest(thoughts: Sequence[Sample], number: int) -> list[Sample]:
    """The thoughts that are not at their end, the surest ``number`` of them."""
    growing = [thought for thought in thoughts if thought.finish_reason == "length"]
    return sorted(growing, key=lambda thought: -thought.mean)[:number]


def doubtful(course: Course) -> list[Sample]:
    """The complete answers to look at again."""
    whole = [sample for sample in course.samples if sample.whole]
    if course.check is not None:
        return [sample for sample in whole if not course.passed(sample)]
    tallies = course.tallies()
    if len(tallies) < 2:
        return []
    middle = median(sample.confidence for sample in whole)
    return [sample for sample in whole if sample.confidence <= middle and course.key(sample) != tallies[0].key]


def _onward(course: Course, thought: Sample, more: int) -> Ask:
    return Ask(course.messages, min(more, course.limit - len(thought.token_ids)), tuple(thought.token_ids))


def _corrected(course: Course, sample: Sample) -> Ask:
    words = course.verdicts[sample.index].words if sample.index in course.verdicts else ""
    turns = [
        {"role": "assistant", "content": sample.content},
        {"role": "user", "content": f"{words}\n\n{LOOK_AGAIN}".strip()},
    ]
    return Ask([*course.messages, *turns], course.limit)
