"""The engine's laws on the ledger model: whatever happens around a request, its tokens are those it gets alone."""

from __future__ import annotations

import random

import pytest
import torch

from qwench.engine.core import Engine
from qwench.engine.request import FinishReason, Request, SamplingParams, TokenEvent
from qwench.model.batch import Batch, CacheTensors
from tests.engine.ledger import VOCABULARY, ledger_answer, ledger_engine


class Listener:
    """Collects one request's events."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.reason: FinishReason | None = None
        self.events: list[TokenEvent] = []

    def __call__(self, event: TokenEvent) -> None:
        assert self.reason is None, "an event after the last"
        self.events.append(event)
        self.token_ids += event.token_ids
        self.reason = event.finish_reason


def make_request(number: int, prompt: list[int], max_tokens: int, **sampling: object) -> Request:
    params = SamplingParams(temperature=0, max_tokens=max_tokens, **sampling)  # type: ignore[arg-type]
    return Request(
        id=number,
        prompt_len=len(prompt),
        token_ids=list(prompt),
        sampling=params,
        stop_token_ids=frozenset(params.stop_token_ids or ()),
        seed=number,
        max_total=len(prompt) + max_tokens,
    )


def submit(engine: Engine, prompt: list[int], max_tokens: int, number: int, **sampling: object) -> Listener:
    listener = Listener()
    engine.add([make_request(number, prompt, max_tokens, **sampling)], [listener])
    return listener


def drain(engine: Engine, limit: int = 10_000) -> None:
    for _ in range(limit):
        if not engine.step():
            return
        engine.scheduler.check()
    raise AssertionError("the engine does not come to rest")


def random_prompt(rng: random.Random, longest: int) -> list[int]:
    return [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, longest))]


@pytest.mark.parametrize("max_step_tokens", [1, 3, 16, 1000])
def test_chunked_prefill_equals_whole(max_step_tokens: int) -> None:
    engine = ledger_engine(num_pages=20, max_step_tokens=max_step_tokens)
    prompt = random_prompt(random.Random(1), 40)
    listener = submit(engine, prompt, 9, 0)
    drain(engine)
    assert listener.token_ids == ledger_answer(prompt, 9)
    assert listener.reason == "length"


@pytest.mark.parametrize("seed", range(25))
def test_any_company_leaves_every_answer_alone(seed: int) -> None:
    """Random arrivals, lengths, aborts, and a pool so small that preemption is common."""
    rng = random.Random(seed)
    engine = ledger_engine(
        num_pages=rng.choice([8, 12, 30]), num_slots=rng.choice([2, 4]), max_step_tokens=rng.choice([2, 5, 16, 64])
    )
    asked: list[tuple[list[int], int, Listener]] = []
    aborted: set[int] = set()
    for number in range(12):
        prompt, length = random_prompt(rng, 16), rng.randint(1, 16)
        asked.append((prompt, length, submit(engine, prompt, length, number)))
        for _ in range(rng.randrange(4)):
            engine.step()
            engine.scheduler.check()
        if rng.random() < 0.25:
            victim = rng.randrange(number + 1)
            if asked[victim][2].reason is None:
                aborted.add(victim)
            engine.abort(victim)
            engine.scheduler.check()
    drain(engine)
    for number, (prompt, length, listener) in enumerate(asked):
        expected = ledger_answer(prompt, length)
        if number in aborted:
            assert listener.reason == "abort"
            assert listener.token_ids == expected[: len(listener.token_ids)]
        else:
            assert listener.reason == "length"
            assert listener.token_ids == expected
    assert engine.scheduler.pages.num_used == engine.scheduler.slots.num_used == 0


def test_the_small_pool_really_preempts() -> None:
    engine = ledger_engine(num_pages=8, page_size=4, num_slots=4)
    prompts = [random_prompt(random.Random(n), 6) for n in range(4)]
    listeners = [submit(engine, prompt, 14, n) for n, prompt in enumerate(prompts)]
    drain(engine)
    assert engine.scheduler.num_preemptions > 0
    for prompt, listener in zip(prompts, listeners, strict=True):
        assert listener.token_ids == ledger_answer(prompt, 14)


def test_requests_start_in_order_of_arrival() -> None:
    engine = ledger_engine(num_pages=12, num_slots=2)
    listeners = [submit(engine, [n + 1] * 10, 3, n) for n in range(6)]
    order: list[int] = []
    while engine.step():
        order += [n for n, listener in enumerate(listeners) if listener.token_ids and n not in order]
    assert order == sorted(order)


def test_a_long_prompt_does_not_hold_up_those_who_generate() -> None:
    engine = ledger_engine(num_pages=100, max_step_tokens=8)
    talking = submit(engine, [1, 2, 3], 30, 0)
    engine.step()
    submit(engine, [5] * 120, 2, 1)
    before = len(talking.token_ids)
    for _ in range(10):
        engine.step()
    assert len(talking.token_ids) == before + 10


def test_stop_ids_end_the_answer_and_are_told_apart() -> None:
    prompt = [3, 1, 4]
    answer = ledger_answer(prompt, 10)
    engine = ledger_engine(num_pages=20)
    listener = submit(engine, prompt, 10, 0, stop_token_ids=[answer[4]])
    drain(engine)
    first = answer.index(answer[4])
    assert listener.token_ids == answer[:first]
    assert (listener.reason, listener.events[-1].stop_token_id) == ("stop", answer[4])


def test_min_tokens_forbids_stopping_before() -> None:
    prompt = [3, 1, 4]
    answer = ledger_answer(prompt, 3)
    engine = ledger_engine(num_pages=20)
    listener = submit(engine, prompt, 8, 0, stop_token_ids=[answer[0]], min_tokens=4)
    drain(engine)
    assert len(listener.token_ids) >= 4
    assert answer[0] not in listener.token_ids[:4]


def test_a_failing_step_ends_its_requests_with_the_reason_and_the_next_one_runs() -> None:
    engine = ledger_engine(num_pages=20)
    working = engine.runner

    class Failing:
        def run(self, step: object) -> list[object]:
            raise RuntimeError("no such kernel")

    engine.runner = Failing()  # type: ignore[assignment]
    doomed = submit(engine, [1, 2], 4, 0)
    engine.step()
    assert doomed.reason == "error"
    assert "no such kernel" in (doomed.events[-1].error or "")
    engine.scheduler.check()
    engine.runner = working
    fine = submit(engine, [1, 2], 4, 1)
    drain(engine)
    assert fine.token_ids == ledger_answer([1, 2], 4)
    assert not engine.broken


def test_prompt_logprobs_come_once_for_every_prompt_token_whatever_the_chunks() -> None:
    prompt = [random.Random(3).randrange(VOCABULARY) for _ in range(21)]
    found = []
    for max_step_tokens in (1, 4, 64):
        engine = ledger_engine(num_pages=20, max_step_tokens=max_step_tokens)
        listener = submit(engine, prompt, 2, 0, prompt_logprobs=1, logprobs=2)
        drain(engine)
        told = [entry for event in listener.events for entry in event.prompt_logprobs]
        assert [entry.token_id for entry in told] == prompt[1:]
        assert [entry.token_id for event in listener.events for entry in event.logprobs if entry] == listener.token_ids
        found.append(told)
    assert found[0] == found[1] == found[2]


def test_a_row_without_numbers_ends_alone() -> None:
    engine = ledger_engine(num_pages=20)
    model = engine.runner.model  # type: ignore[attr-defined]
    forward = model.forward

    def poisoned(batch: Batch, cache: CacheTensors, seen: object) -> torch.Tensor:
        logits: torch.Tensor = forward(batch, cache, seen)
        if len(logits) == 2:
            logits[1, 5] = torch.inf
        return logits

    model.forward = poisoned
    healthy, doomed = submit(engine, [1, 2], 6, 0), submit(engine, [3, 4], 6, 1)
    drain(engine)
    assert healthy.token_ids == ledger_answer([1, 2], 6)
    assert doomed.reason == "error"
    assert "finite" in (doomed.events[-1].error or "")
    assert not engine.broken
