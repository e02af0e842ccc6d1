"""The guarantee: no successful answer says nothing, whatever the model wants; with the real sampler and tokenizer.

And budgets hold, text and engine count the same thinking, and nothing of it depends on the company of a request.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from tokenizers import Tokenizer as Backend

from qwench.engine.thinking import ThinkingRules
from qwench.text.thinking import rules_for
from qwench.text.tokenizer import Tokenizer
from tests.engine.wilful import Reader, wilful_engine
from tests.text.tiny import tokenizer_json

TOKENIZER = Tokenizer(Backend.from_str(tokenizer_json()))
END_IDS = frozenset(number for name in ("<|im_end|>", "<|endoftext|>") if (number := TOKENIZER.id_of(name)) is not None)
RULES = rules_for(TOKENIZER, END_IDS)
BATCH = 25


def asked(number: int) -> tuple[int, int, ThinkingRules]:
    """A taste, how many tokens there may be, and the rules of request ``number``."""
    rng = random.Random(number)
    opened = rng.random() < 0.7
    rules = replace(
        RULES,
        budget=rng.choice((None, 0, 3, 16, 40, 90)),
        open=opened,
        may_open=not opened and rng.random() < 0.7,
    )
    return rng.randrange(TOKENIZER.size), rng.choice((2, 3, 4, 8, 30, 120, rng.randint(2, 200))), rules


def answered(numbers: range, *, num_pages: int = 300) -> list[Reader]:
    engine = wilful_engine(TOKENIZER, END_IDS, num_pages=num_pages)
    readers = [Reader(engine, TOKENIZER, number, *asked(number)) for number in numbers]
    while engine.step():
        pass
    return readers


def hold(numbers: range) -> None:
    for number, reader in zip(numbers, answered(numbers), strict=True):
        assert reader.reason in ("stop", "length"), number
        assert reader.text("content").strip(), f"request {number} says nothing"
        assert reader.last.closed_by is not None or not reader.reasoning_tokens
        if reader.rules.budget is not None:
            assert reader.reasoning_tokens <= reader.rules.budget + reader.rules.allowance


@pytest.mark.parametrize("first", range(0, 300, BATCH))
def test_every_answer_says_something_and_keeps_its_budget(first: int) -> None:
    hold(range(first, first + BATCH))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(1000, 7000, 500))
def test_thousands_of_answers_say_something(first: int) -> None:
    hold(range(first, first + 500))


def test_the_runs_above_really_meet_every_end_of_thinking() -> None:
    met = {reader.last.closed_by for reader in answered(range(200, 300))}
    assert met >= {"model", "tool_call", "soft", "budget", "reserve", "end_of_turn", "loop"}


def test_company_and_preemption_change_nothing() -> None:
    numbers = range(2000, 2012)
    together = answered(numbers, num_pages=40)
    for number, reader in zip(numbers, together, strict=True):
        (alone,) = answered(range(number, number + 1))
        assert reader.token_ids == alone.token_ids
        assert reader.last == alone.last


def test_the_text_counts_the_thinking_that_the_engine_bounds() -> None:
    engine = wilful_engine(TOKENIZER, END_IDS, num_pages=300)
    readers = [Reader(engine, TOKENIZER, number, *asked(number)) for number in range(60)]
    thoughts = [request.thought for request in engine.scheduler.waiting]
    while engine.step():
        pass
    assert [reader.reasoning_tokens for reader in readers] == [thought.tokens for thought in thoughts if thought]
