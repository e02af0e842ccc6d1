"""What is asked in the evaluation: one suite a skill, held-out samples only, and how an answer is judged.

Knows nothing of models: a suite turns seeds into samples and texts into verdicts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

from qwench.train.data import arithmetic, facts, json_answers, recall, seeing, stories, tools
from qwench.train.data.sample import Sample
from qwench.train.encode import END, parts

CLOSE = "</think>\n\n"


@dataclass(frozen=True)
class Verdict:
    exact: bool
    parsed: bool | None = None  # JSON only


@dataclass(frozen=True)
class Suite:
    """`draw` makes one held-out sample; only samples with the wanted thinking switch count."""

    name: str
    draw: Callable[[Random], Sample]
    thinking: bool = False
    limit: int = 96  # tokens an answer may take
    judge: Callable[[str, str, str], Verdict] | None = None  # of the request, the wanted and the written answer

    def samples(self, count: int, seed: int) -> list[Sample]:
        rng = Random(f"{seed} {self.name} {self.thinking}")
        found: list[Sample] = []
        while len(found) < count:
            sample = self.draw(rng)
            if sample.thinking == self.thinking:
                found.append(sample)
        return found

    def verdict(self, sample: Sample, written: str) -> Verdict:
        """`written` is what the model wrote, thoughts included, the end mark left out."""
        wanted = answer_part(parts(sample)[-1][0].removesuffix(END), self.thinking)
        got = answer_part(written, self.thinking)
        return self.judge(sample.messages[-2]["content"], wanted, got) if self.judge else Verdict(got == wanted)


def answer_part(text: str, thinking: bool) -> str:
    """What stands after the thought; an unclosed thought is no answer."""
    if not thinking:
        return text
    return text.split(CLOSE, 1)[1] if CLOSE in text else ""


def judge_json(_request: str, wanted: str, got: str) -> Verdict:
    try:
        document = json.loads(got)
    except ValueError:
        return Verdict(False, False)
    return Verdict(document == json.loads(wanted), True)


def judge_story(request: str, _wanted: str, got: str) -> Verdict:
    """Both things that were asked for occur, no sentence comes twice, the last one is finished."""
    asked = re.findall(r"an? (\w+) and an? (\w+)", request)
    sentences = re.split(r"(?<=[.!?\"]) ", got)
    complete = len(set(sentences)) == len(sentences) >= 4 and got[-1:] in '.!?"'
    return Verdict(complete and all(word in got for word in asked[0]))


def _sized(rng: Random, sign: str, sizes: tuple[int, ...], thinking: bool) -> Sample:
    numbers = arithmetic.draw(rng, sizes, True, sign)
    return arithmetic.problem(rng, "evaluation", sign, numbers, thinking)


def _difference(rng: Random, thinking: bool) -> Sample:
    while True:
        sample = arithmetic.subtraction(rng, True, thinking)
        if len(re.findall(r"\d", sample.messages[0]["content"])) == 6:
            return sample


def _arithmetic() -> list[Suite]:
    rows = (
        ("sum, 2 digits", "+", (2, 2)),
        ("sum, 3 digits", "+", (3, 3)),
        ("sum of four 2-digit numbers", "+", (2, 2, 2, 2)),
        ("product, 2 digits", "*", (2, 2)),
    )
    suites = []
    for name, sign, sizes in rows:
        for thinking in (True, False):
            draw = partial(_sized, sign=sign, sizes=sizes, thinking=thinking)
            suites.append(Suite(name, draw, thinking, limit=220))
    return suites + [
        Suite("difference, 3 digits", partial(_difference, thinking=on), on, limit=220) for on in (True, False)
    ]


def _asked(rng: Random, kind: str, count: bool) -> Sample:
    """A question about shapes or bars: how many there are, or the other one."""
    while True:
        sample = seeing.seen(rng, True, kind)
        if sample.messages[-1]["content"].isdigit() == count:
            return sample


def _seeing() -> list[Suite]:
    return [
        Suite("see: number of 1 to 4 digits", partial(seeing.seen, held=True, kind="number"), limit=16),
        Suite("see: word of up to 6 letters", partial(seeing.seen, held=True, kind="word"), limit=16),
        Suite("see: how many shapes, 1 to 5", partial(_asked, kind="shapes", count=True), limit=16),
        Suite("see: colour of shapes", partial(_asked, kind="shapes", count=False), limit=16),
        Suite("see: how many bars", partial(_asked, kind="bars", count=True), limit=16),
        Suite("see: the tallest bar", partial(_asked, kind="bars", count=False), limit=16),
    ]


def suites() -> list[Suite]:
    """All suites, in the order of the table."""
    others = [
        Suite("copy 8 words", partial(recall.copy, held=True, count=8)),
        Suite("copy names and numbers", partial(recall.identifiers, held=True)),
        Suite("order of words", partial(recall.order, held=True)),
        Suite("look up a value", partial(recall.lookup, held=True)),
        Suite("find a fact in noise", partial(recall.needle, held=True)),
        Suite("remember from earlier turns", partial(recall.memory, held=True)),
        Suite("JSON", partial(json_answers.json_answer, held=True), judge=judge_json),
        Suite("tool call, unseen sentence", partial(tools.tool_call, held=True), limit=160),
        Suite("tool call, unseen tool name", partial(tools.tool_call, held=True, unseen=True), limit=160),
        Suite("tool result in words", partial(tools.tool_answer, held=True)),
        Suite("no tool needed", partial(tools.no_tool, held=True)),
        Suite("greeting", partial(facts.greeting, held=True)),
        Suite("fact, unseen wording", partial(facts.fact, held=True)),
        Suite("says it does not know", partial(facts.unknown, held=True)),
        Suite("story", partial(stories.story, held=True), limit=200, judge=judge_story),
    ]
    return _arithmetic() + others + _seeing()
