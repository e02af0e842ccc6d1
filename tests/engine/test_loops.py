"""The loop detector: circles are seen soon, and work that repeats itself is not one."""

from __future__ import annotations

import random

import pytest

from qwench.engine.loops import COPIES, LEAST, LoopDetector


def seen_after(tokens: list[int]) -> int | None:
    """How many tokens it took, None if no loop was seen."""
    detector = LoopDetector()
    for count, token in enumerate(tokens, start=1):
        detector.push(token)
        if detector.looping:
            return count
    return None


def fresh(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(50_000) for _ in range(length)]


@pytest.mark.parametrize("period", [1, 2, 3, 7, 8, 9, 30, 97, 400])
def test_a_period_is_seen_once_it_came_often_enough(period: int) -> None:
    rng = random.Random(period)
    before, unit = fresh(rng, 300), fresh(rng, period)
    found = seen_after([*before, *unit * (1000 // period + 4)])
    needed = max(LEAST, COPIES * period)
    assert found is not None
    assert len(before) + period + needed <= found <= len(before) + period + needed + 8


@pytest.mark.parametrize("seed", range(5))
def test_phrases_that_recur_with_variations_are_a_circle(seed: int) -> None:
    """As "Wait, ..." does: a few sentences in any order, each with a number that changes."""
    rng = random.Random(seed)
    sentences = [fresh(rng, 25) for _ in range(6)]
    tokens = [token for _ in range(300) for token in (*rng.choice(sentences), rng.randrange(50_000))]
    found = seen_after(tokens)
    assert found is not None
    assert found < 2000


@pytest.mark.parametrize("seed", range(5))
def test_work_is_no_circle(seed: int) -> None:
    """Fresh text, a table, a draft written out three times, and a count: none is cut."""
    rng = random.Random(seed)
    draft, rule = fresh(rng, 700), fresh(rng, 4)
    table = [token for _ in range(60) for token in (1, rng.randrange(900), 2, rng.randrange(900), 3)]
    count = [token for number in range(400) for token in (5, 6, 7, number)]
    again = [token for token in draft if rng.random() > 0.02]
    tokens = [*fresh(rng, 2000), *draft, *table, *again, *rule * 12, *fresh(rng, 50), *draft, *count, *fresh(rng, 500)]
    assert seen_after(tokens) is None


def test_few_different_tokens_are_no_circle_by_themselves() -> None:
    rng = random.Random(3)
    assert seen_after([rng.randrange(12) for _ in range(5000)]) is None
