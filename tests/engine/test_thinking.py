"""The laws of a thought: whatever is drawn, bounds hold, room is left, and the answer says something."""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import copy
from dataclasses import replace

import pytest

from qwench.engine.request import FinishReason
from qwench.engine.thinking import MAX_BLANKS, TOP_RANK, Closing, ThinkingRules, Thought

OPEN, CLOSE, TOOL, END, BLANK, NEWLINE = range(6)
WORDS = range(20, 60)
RULES = ThinkingRules(
    end_ids=frozenset((END,)),
    blank_ids=frozenset((BLANK, NEWLINE)),
    open_id=OPEN,
    close_id=CLOSE,
    tool_id=TOOL,
    sentence=(10, 11, 12, 13, 14, CLOSE, NEWLINE),
    bare=(NEWLINE, CLOSE, NEWLINE),
    open=True,
)
Draw = Callable[[random.Random, int], int]


class Run:
    """What comes of a model that draws by ``draw``; banned ids are drawn anew, as the sampler would."""

    def __init__(
        self,
        rules: ThinkingRules,
        room: int,
        draw: Draw,
        seed: int = 0,
        rank: Callable[[random.Random], int | None] = lambda _: None,
    ) -> None:
        rng = random.Random(seed)
        self.thought = Thought(rules, room)
        self.tokens: list[int] = []
        self.reason: FinishReason = "length"
        while len(self.tokens) < room:
            thought = self.thought
            token = draw(rng, len(self.tokens))
            while token in thought.banned:
                token = rng.choice((*WORDS, *range(6)))
            known = thought.take(token, rank(rng) if thought.wants_rank else None)
            if known == (token,) and token in rules.end_ids and not thought.is_open:
                self.reason = "stop"
                break
            self.tokens += known
        assert len(self.tokens) <= room, "more than was asked for"

    @property
    def answer(self) -> list[int]:
        """What stands behind the thinking."""
        return self.tokens[self.thought.tokens :]

    @property
    def says(self) -> bool:
        return any(token not in RULES.blank_ids for token in self.answer)


def words(rng: random.Random, _place: int) -> int:
    return rng.choice(WORDS)


def adversary(seed: int) -> Draw:
    """A model with a taste of its own: mostly one of a few behaviours, changing as it goes."""
    taste = random.Random(seed)
    weights = [taste.choice((0, 0, 1, 20)) for _ in range(7)]
    weights[6] = max(weights[6], 1)

    def draw(rng: random.Random, _place: int) -> int:
        kind = rng.choices(range(7), weights)[0]
        return rng.choice(WORDS) if kind == 6 else kind

    return draw


def test_the_bounds_hold_whatever_is_drawn() -> None:
    for seed in range(400):
        hold(seed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_bounds_hold_whatever_is_drawn_in_thousands_of_ways() -> None:
    for seed in range(400, 12_000):
        hold(seed)


def hold(seed: int) -> None:
    rng = random.Random(seed)
    budget = rng.choice((None, 0, 1, 5, 64, 300, rng.randrange(2000)))
    room = rng.choice((2, 3, 4, 5, 8, 20, 60, 500, rng.randint(3, 3000)))
    opened = rng.random() < 0.6
    rules = replace(RULES, budget=budget, open=opened, may_open=not opened and rng.random() < 0.6)
    run = Run(rules, room, adversary(seed), seed, rank=lambda rng: rng.choice((1, TOP_RANK, None, None)))
    assert run.says, f"run {seed} says nothing"
    assert not run.thought.is_open
    if budget is not None:
        assert run.thought.tokens <= budget + rules.allowance
    if opened or run.thought.tokens:
        assert run.thought.closed_by is not None
    if run.thought.closed_by in ("budget", "reserve", "loop", "soft") and room >= 20:
        assert room - run.thought.tokens >= room // 5


@pytest.mark.parametrize(
    ("draw", "rules", "room", "closed_by"),
    [
        (lambda _, place: CLOSE if place == 7 else 30 + place, RULES, 100, "model"),
        (lambda _, place: TOOL if place == 7 else 30 + place, RULES, 100, "tool_call"),
        (lambda _, place: END if place == 7 else 30 + place, RULES, 100, "end_of_turn"),
        (words, replace(RULES, budget=16), 400, "budget"),
        (words, RULES, 400, "reserve"),
        (lambda _, place: 30 + place % 4, RULES, 4000, "loop"),
    ],
)
def test_what_ended_the_thinking_is_told(draw: Draw, rules: ThinkingRules, room: int, closed_by: Closing) -> None:
    run = Run(rules, room, draw)
    assert run.thought.closed_by == closed_by
    assert run.says


def test_the_budget_is_cut_by_the_sentence_after_the_window() -> None:
    rules = replace(RULES, budget=16)
    run = Run(rules, 400, words)
    assert run.tokens[16 + rules.window :][: len(RULES.sentence)] == list(RULES.sentence)
    assert run.thought.tokens == 16 + rules.allowance


@pytest.mark.parametrize(("rank", "soft"), [(1, True), (TOP_RANK, True), (None, False)])
def test_a_likely_end_is_taken_in_the_window_and_only_there(rank: int | None, soft: bool) -> None:
    run = Run(replace(RULES, budget=16), 400, words, rank=lambda _: rank)
    assert (run.thought.closed_by == "soft") == soft
    assert not soft or run.tokens[16:18] == [CLOSE, NEWLINE]  # in place of what was drawn, without a sentence


def test_a_user_ends_it_at_once() -> None:
    thought = Thought(RULES, 1000)
    assert [thought.take(30 + place) for place in range(5)] == [(30 + place,) for place in range(5)]
    thought.end()
    assert thought.take(40) == RULES.sentence
    assert (thought.closed_by, thought.tokens) == ("control", 5 + 6)
    thought.end()
    assert thought.take(40) == (40,)


def test_a_copy_goes_on_alike_and_by_itself() -> None:
    rules, rng = replace(RULES, budget=200), random.Random(4)
    thought = Thought(rules, 2000)
    for _ in range(150):
        thought.take(30 + rng.randrange(4))
    other = copy(thought)
    other.go_on(2000, ())
    tokens = [30 + rng.randrange(4) for _ in range(300)]
    assert [thought.take(token) for token in tokens] == [other.take(token) for token in tokens]
    assert thought.closed_by == other.closed_by == "budget"


def test_what_is_put_behind_a_copy_counts_and_is_not_bounded() -> None:
    thought = Thought(replace(RULES, budget=4), 2000)
    thought.take(30)
    longer, closed = copy(thought), copy(thought)
    longer.go_on(2000, [30] * 40)
    assert (longer.tokens, longer.closed_by) == (41, None)
    assert longer.take(30) == RULES.sentence
    closed.go_on(2000, RULES.bare)
    assert (closed.is_open, closed.closed_by, thought.is_open) == (False, "model", True)


def test_an_answer_cannot_end_before_it_said_something() -> None:
    thought = Thought(RULES, 1000)
    thought.take(CLOSE)
    assert thought.banned == {OPEN, CLOSE, END}
    for _ in range(MAX_BLANKS):
        thought.take(NEWLINE)
    assert thought.banned == {OPEN, CLOSE, END, BLANK, NEWLINE}
    thought.take(33)
    assert thought.banned == frozenset()


def test_the_last_token_there_is_is_a_word() -> None:
    thought = Thought(replace(RULES, open=False), 2)
    thought.take(NEWLINE)
    assert BLANK in thought.banned


def test_an_answer_that_the_prompt_began_may_end_at_once() -> None:
    assert Thought(replace(RULES, open=False, begun=True), 100).banned == frozenset()


def test_a_model_that_opens_the_block_itself_needs_room_for_it() -> None:
    rules = replace(RULES, open=False, may_open=True)
    assert OPEN not in Thought(rules, 3).banned
    assert OPEN in Thought(rules, 2).banned
    thought = Thought(rules, 100)
    assert [thought.take(token) for token in (OPEN, 30, CLOSE)] == [(OPEN,), (30,), (CLOSE,)]
    assert (thought.tokens, thought.closed_by) == (3, "model")
    late = Thought(rules, 100)
    late.take(NEWLINE)
    assert OPEN in late.banned


def test_a_circle_in_the_answer_is_told_and_not_cut() -> None:
    run = Run(replace(RULES, open=False), 1000, lambda _, place: 30 + place % 3)
    assert run.thought.repeats
    assert len(run.tokens) == 1000
    assert not Run(replace(RULES, open=False), 1000, words).thought.repeats
