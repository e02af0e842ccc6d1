"""A step that fails among several requests costs only the one it failed for: the others are answered as if alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Self

import pytest

from qwench.engine.core import Engine
from qwench.engine.scheduler import RowResult, Step
from tests.engine.ledger import ledger_answer, ledger_engine
from tests.engine.test_laws import Listener, drain, make_request, random_prompt, submit


class Poisoned:
    """A runner that fails in whatever step holds request ``victim`` with at least ``known`` tokens."""

    def __init__(self, engine: Engine, victim: int, known: int, times: int | None = None) -> None:
        self._runner = engine.runner
        self._victim, self._known, self._left = victim, known, times
        engine.runner = self

    def run(self, step: Step) -> list[RowResult]:
        for row in step.rows:
            if row.request.id == self._victim and row.start + row.count >= self._known and self._left != 0:
                self._left = None if self._left is None else self._left - 1
                raise RuntimeError("no such kernel")
        return self._runner.run(step)

    def is_victim(self, number: int) -> bool:
        return number == self._victim

    def copy(self, copies: object) -> None:
        self._runner.copy(copies)  # type: ignore[arg-type]


def four(engine: Engine, seed: int) -> tuple[list[list[int]], list[Listener]]:
    rng = random.Random(seed)
    prompts = [random_prompt(rng, 20) for _ in range(4)]
    return prompts, [submit(engine, prompt, 12, number) for number, prompt in enumerate(prompts)]


@pytest.mark.parametrize("snapshots", [0, 6])
@pytest.mark.parametrize("known", [1, 2, 9, 20, 28])
@pytest.mark.parametrize("victim", [0, 2])
def test_one_request_that_fails_every_step_ends_alone(victim: int, known: int, snapshots: int) -> None:
    engine = ledger_engine(num_pages=40, snapshots=snapshots)
    prompts, asked = four(engine, known)
    Poisoned(engine, victim, known)
    drain(engine)
    for number, (prompt, listener) in enumerate(zip(prompts, asked, strict=True)):
        answer = ledger_answer(prompt, 12)
        if number == victim and len(prompt) + 12 > known:
            assert listener.reason == "error"
            assert listener.token_ids == answer[: len(listener.token_ids)]
        else:
            assert (listener.reason, listener.token_ids) == ("length", answer)
    assert not engine.broken
    assert engine.scheduler.slots.num_used == len(engine.scheduler.cache)


@pytest.mark.parametrize("seed", range(6))
def test_a_failure_that_passes_costs_nobody(seed: int) -> None:
    engine = ledger_engine(num_pages=14, num_slots=3, snapshots=3)
    prompts, asked = four(engine, seed)
    runner, failed = engine.runner.run, list[Step]()

    def run(step: Step) -> list[RowResult]:
        if len(step.rows) > 1 and len(failed) < 2:
            failed.append(step)
            raise MemoryError
        return runner(step)

    engine.runner.run = run  # type: ignore[method-assign]
    drain(engine)
    assert len(failed) == 2
    for prompt, listener in zip(prompts, asked, strict=True):
        assert (listener.reason, listener.token_ids) == ("length", ledger_answer(prompt, 12))


def test_a_runner_that_always_fails_is_given_up_and_everybody_is_told() -> None:
    engine = ledger_engine(num_pages=40)
    _, asked = four(engine, 1)
    for victim in range(4):
        Poisoned(engine, victim, 0)
    for _ in range(40):
        if not engine.step():
            break
    assert [listener.reason for listener in asked] == ["error"] * 4
    engine.scheduler.check()


class Clumsy:
    """A guide that fails when the third token is known."""

    mask: bytes | None = None

    def __init__(self) -> None:
        self.known = 0

    def accept(self, token_ids: Sequence[int]) -> str | None:
        self.known += len(token_ids)
        if self.known == 3:
            raise ZeroDivisionError
        return None

    def __copy__(self) -> Self:
        return type(self)()


def test_a_guide_that_fails_ends_its_own_request() -> None:
    engine = ledger_engine(num_pages=40)
    healthy = submit(engine, [1, 2], 6, 0)
    request = make_request(1, [3, 4], 6)
    request.guide = Clumsy()
    doomed = Listener()
    engine.add([request], [doomed])
    drain(engine)
    assert healthy.token_ids == ledger_answer([1, 2], 6)
    assert (doomed.reason, doomed.events[-1].failure) == ("error", "grammar_too_complex")
