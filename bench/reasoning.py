"""Accuracy against generated tokens: one greedy answer, with and without thinking, and each recipe at equal budgets.

    .venv/bin/pip install reasoning-gym
    .venv/bin/python bench/reasoning.py [--items 100] [--budgets 300,600] [--out bench/results/reasoning.json]

`--arms greedy "forest, 300"` measures only those whose names begin so, and keeps the others that the file holds.

Nano, on held-out tasks of its own evaluation and on tasks of reasoning-gym it was never trained on. Everybody answers
the same items; what counts is what was generated, all samples together. Best-of-N is told by arithmetic which answer
is right, which nobody else is: it shows what a checker is worth, not what the model knows. Sampling is as recommended.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from qwench import LLM
from qwench.reason.answers import answer_key
from qwench.reason.checks import Arithmetic
from qwench.reason.recipes import Task, question, reason
from qwench.reason.strategy import Strategy
from qwench.text.thinking import read_thinking
from qwench.train.evaluate import wilson
from qwench.train.suites import suites

SEED = 77
LEAST = 1e-3  # a temperature that is not refused; with top_k 1 the likeliest token is drawn
LIMIT = 220  # tokens of one answer, as in nano's evaluation
OWN = ("product, 2 digits", "difference, 3 digits")
GYM: dict[str, dict[str, Any]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 2, "max_digits": 2},
    "basic_arithmetic": {
        "min_terms": 2,
        "max_terms": 2,
        "min_digits": 2,
        "max_digits": 2,
        "operators": ("+", "-", "*"),
        "allow_parentheses": False,
        "allow_negation": False,
    },
}
TOGETHER = 12  # items answered at the same time


@dataclass(frozen=True)
class Item:
    task: str
    messages: list[dict[str, Any]]
    answer: str


@dataclass(frozen=True)
class Arm:
    """A way to answer. Without a strategy one greedy answer is given."""

    name: str
    thinking: bool = True
    strategy: Strategy | None = None


def items(number: int) -> list[Item]:
    """``number`` of every task, the same each time."""
    import reasoning_gym

    found = []
    for suite in suites():
        if suite.name in OWN and suite.thinking:
            for sample in suite.samples(number, SEED):
                *asked, answer = sample.messages
                found.append(Item(suite.name, asked, answer["content"]))
    for name, options in GYM.items():
        for entry in reasoning_gym.create_dataset(name, size=number, seed=SEED, **options):
            asked = [{"role": "user", "content": entry["question"]}]
            found += [Item(f"gym: {name}", asked, str(entry["answer"]))]
    return found


def arms(budgets: Sequence[int]) -> list[Arm]:
    found = [Arm("greedy, no thinking", thinking=False), Arm("greedy, thinking")]
    for budget in budgets:
        found += [
            Arm(f"vote, {budget}", strategy=Strategy("vote", 16, budget)),
            Arm(f"vote of the surer half, {budget}", strategy=Strategy("vote", 16, budget, keep=0.5, window=16)),
            Arm(f"forest, {budget}", strategy=Strategy("forest", 3, budget, step=32)),
            Arm(f"best of 16 by arithmetic, {budget}", strategy=Strategy("best_of", 16, budget)),
        ]
    return found


async def answered(llm: LLM, arm: Arm, item: Item, seed: int) -> tuple[str, int]:
    """The answer and the tokens it took."""
    plan = read_thinking({"enable_thinking": arm.thinking})
    render = partial(llm.text.chat_prompt, thinking=plan)
    strategy = arm.strategy or Strategy("vote", 1)
    own = {"max_tokens": LIMIT, "seed": seed} | ({} if arm.strategy else {"temperature": LEAST, "top_k": 1})
    sampling = llm.text.sampling(arm.thinking, own)
    check = Arithmetic(question(item.messages)) if strategy.method == "best_of" else None
    task = Task(item.messages, render, sampling, strategy, check)
    outcome = await reason(llm.client, llm.text.tokenizer, task, LIMIT)
    return outcome.sample.content, outcome.report["tokens"]["used"]


async def measured(llm: LLM, arm: Arm, asked: Sequence[Item]) -> dict[str, Any]:
    """One arm over all items: right or wrong and tokens of each."""
    room = asyncio.Semaphore(TOGETHER)
    started = time.monotonic()

    async def one(at: int, item: Item) -> dict[str, Any]:
        async with room:
            said, tokens = await answered(llm, arm, item, seed=1000 * at)
        return {"task": item.task, "right": answer_key(said) == answer_key(item.answer), "tokens": tokens}

    results = await asyncio.gather(*(one(at, item) for at, item in enumerate(asked)))
    print(f"{arm.name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return {"arm": arm.name, "items": results}


def table(document: dict[str, Any]) -> str:
    """The document as Markdown: per cent right and mean tokens of each task, then of all with an interval."""
    tasks = list(dict.fromkeys(item["task"] for item in document["arms"][0]["items"]))
    lines = [f"| who, budget in tokens | {' | '.join(tasks)} | all (95 % interval) | tokens an answer |"]
    lines.append("|---|" + "--:|" * (len(tasks) + 2))
    for arm in document["arms"]:
        cells = [f"{100 * mean(each['right'] for each in arm['items'] if each['task'] == task):.0f}" for task in tasks]
        right = sum(each["right"] for each in arm["items"])
        low, high = wilson(right, len(arm["items"]))
        share = f"{100 * right / len(arm['items']):.1f} ({low:.0f} to {high:.0f})"
        tokens = f"{mean(each['tokens'] for each in arm['items']):.0f}"
        lines.append(f"| {arm['arm']} | {' | '.join(cells)} | {share} | {tokens} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy against generated tokens.")
    parser.add_argument("--items", type=int, default=100, help="of each task")
    parser.add_argument("--budgets", default="300,600", help="tokens of all samples together")
    parser.add_argument("--arms", nargs="+", default=[""], metavar="NAME", help="only those whose names begin so")
    parser.add_argument("--out", type=Path, default=Path("bench/results/reasoning.json"))
    options = parser.parse_args()
    asked = items(options.items)
    facts = {"model": "nano", "items": options.items, "seed": SEED}
    every = arms([int(each) for each in options.budgets.split(",")])
    found = {arm["arm"]: arm for arm in kept(options.out, facts)}
    with LLM("nano") as llm:
        for arm in every:
            if arm.name.startswith(tuple(options.arms)):
                found[arm.name] = asyncio.run(measured(llm, arm, asked))
    document = facts | {"arms": [found[arm.name] for arm in every if arm.name in found]}
    options.out.write_text(json.dumps(document) + "\n", encoding="utf-8")
    print(table(document))


def kept(path: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The arms that were measured before, on the same items."""
    document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return document["arms"] if facts.items() <= document.items() else []


if __name__ == "__main__":
    main()
