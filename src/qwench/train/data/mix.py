"""The mixture: which generator gets which share of the tokens, and how hard its samples are at a given progress.

Knows nothing of tokens; shares are per token, so the caller tells how long samples of a kind were.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

from qwench.train.data import arithmetic, facts, json_answers, recall, seeing, stories, tools
from qwench.train.data.sample import Generator, Sample

# Copying is what tool calls, JSON and recall are made of, and it comes late and all at once: practise it first,
# on short samples, and give the long samples their share when it is there.
EARLY: dict[str, float] = {
    "sum thinking": 4, "sum": 2, "difference thinking": 3, "difference": 0.5, "long sum thinking": 3, "long sum": 0.3,
    "product thinking": 5, "product": 0.3,
    "tool call": 3, "invented tool": 7, "tool answer": 7, "no tool": 1,
    "copy": 18, "identifiers": 12, "order": 2, "lookup": 5, "needle": 2, "memory": 2,
    "json": 12, "greeting": 1.5, "fact": 3, "unknown": 1, "story": 5,
}  # fmt: skip
LATE: dict[str, float] = {
    "sum thinking": 4, "sum": 5, "difference thinking": 2.5, "difference": 0.5, "long sum thinking": 2, "long sum": 0.5,
    "product thinking": 4, "product": 0.5,
    "tool call": 9, "invented tool": 17, "tool answer": 8, "no tool": 1.5,
    "copy": 5, "forms": 11, "identifiers": 3, "order": 0.7, "lookup": 6, "needle": 1, "memory": 1,
    "json": 10, "greeting": 1, "fact": 2.5, "unknown": 1, "story": 2.5,
}  # fmt: skip

# Choosing among several tools is the last thing to come: the last third of the run is spent on it.
LAST: dict[str, float] = {
    "sum thinking": 3, "sum": 4, "difference thinking": 1.5, "difference": 0.5, "long sum thinking": 2,
    "product thinking": 4, "product": 0.3,
    "choose a tool": 26, "tool call": 13, "invented tool": 9, "tool answer": 8, "no tool": 1.5,
    "copy": 5, "forms": 5, "identifiers": 5, "order": 1.5, "lookup": 3, "needle": 0.5, "memory": 0.5,
    "json": 6, "greeting": 1, "fact": 2, "unknown": 0.7, "story": 1.5,
}  # fmt: skip

# Learning to see, nothing shall be forgotten: half of the tokens are the text of before, most of it what broke last time.
SEEING: dict[str, float] = {
    "seen number": 14, "seen word": 20, "seen shapes": 9, "seen bars": 7,
    **{name: share / 2 for name, share in LAST.items()},
}  # fmt: skip

# At the end mostly text again, and most of what suffered while pictures came.
SETTLING: dict[str, float] = {
    "seen number": 6, "seen word": 13, "seen shapes": 7, "seen bars": 4,
    **LAST, "choose a tool": 18, "tool call": 9, "json": 20, "identifiers": 11, "copy": 8, "order": 4, "lookup": 7, "memory": 4, "story": 6,
}  # fmt: skip

GENERATORS: dict[str, Generator] = {
    "sum thinking": partial(arithmetic.addition, thinking=True),
    "small sum thinking": partial(arithmetic.addition, thinking=True, top=2),
    "sum": partial(arithmetic.addition, thinking=False),
    "difference thinking": partial(arithmetic.subtraction, thinking=True),
    "difference": partial(arithmetic.subtraction, thinking=False),
    "long sum thinking": partial(arithmetic.long_sum, thinking=True),
    "long sum": partial(arithmetic.long_sum, thinking=False),
    "product thinking": partial(arithmetic.multiplication, thinking=True),
    "product": partial(arithmetic.multiplication, thinking=False),
    "tool call": tools.tool_call,
    "choose a tool": partial(tools.tool_call, others=tools.ALWAYS_SOME),
    "invented tool": tools.invented_call,
    "tool answer": tools.tool_answer,
    "no tool": tools.no_tool,
    "copy": recall.copy,
    "forms": recall.forms,
    "identifiers": recall.identifiers,
    "order": recall.order,
    "lookup": recall.lookup,
    "needle": recall.needle,
    "memory": recall.memory,
    "json": json_answers.json_answer,
    "greeting": facts.greeting,
    "fact": facts.fact,
    "unknown": facts.unknown,
    "story": stories.story,
}
SEEN: dict[str, Generator] = {f"seen {kind}": partial(seeing.seen, kind=kind) for kind in seeing.KINDS}


class Mixture:
    """Draws training samples so that tokens, not samples, follow the shares."""

    def __init__(self, probe: Random, measure: Callable[[Sample], int], shares: dict[str, float]) -> None:
        self.generators, lengths = GENERATORS | SEEN, {}
        for name in shares:
            lengths[name] = sum(measure(self.generators[name](probe, False)) for _ in range(40)) / 40
        self.names = list(shares)
        self.weights = [shares[name] / lengths[name] for name in self.names]

    def draw(self, rng: Random) -> Sample:
        name = rng.choices(self.names, self.weights)[0]
        return self.generators[name](rng, False)


def sample_text(seed: int, count: int) -> list[Sample]:
    """Samples for the tokenizer: every part of the mixture equally often."""
    rng, names = Random(seed), list(LATE)
    return [GENERATORS[names[index % len(names)]](rng, False) for index in range(count)]
