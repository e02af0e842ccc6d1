"""The laws of the prefix cache on the ledger model: whatever is reused, evicted, preempted, aborted, forked or
restored, every answer is the one an undisturbed sequence gets; and nothing leaks."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from qwench.cache.disk import DiskTier
from qwench.engine.core import Engine
from qwench.engine.request import Marks, Request, Saved
from qwench.engine.scheduler import RowResult, Step
from qwench.engine.shelf import Shelf
from tests.engine.ledger import VOCABULARY, ledger_answer, ledger_engine
from tests.engine.test_laws import Listener, drain, make_request


@dataclass
class Session:
    """Random conversations over one engine, with the answers they must get."""

    rng: random.Random
    engine: Engine
    stateful: bool = True
    asked: list[tuple[list[int], int, Listener]] = field(default_factory=list)
    numbers: dict[int, Listener] = field(default_factory=dict)
    saved: list[tuple[Saved, list[int]]] = field(default_factory=list)
    aborted: set[int] = field(default_factory=set)

    def ask(self) -> None:
        prompt = self._prompt()
        length = self.rng.randint(1, 12)
        marks = sorted(self.rng.sample(range(len(prompt)), self.rng.randint(0, min(4, len(prompt)))))
        requests, listeners = [], []
        for _ in range(self.rng.choice([1, 1, 1, 2, 5])):
            listener = Listener()
            request = make_request(len(self.numbers), prompt, length)
            request.marks = Marks(tuple(marks), tuple(marks[:1]))
            request.background = self.rng.random() < 0.2
            self._note(request, listener, prompt, length)
            requests.append(request)
            listeners.append(listener)
        self.engine.add(requests, listeners)

    def abort(self) -> None:
        number = self.rng.randrange(len(self.numbers))
        if self.numbers[number].reason is None:
            self.aborted.add(number)
        self.engine.abort(number)

    def save(self) -> None:
        saved = self.engine.save(self.rng.randrange(len(self.numbers)))
        if saved is not None:
            self.saved.append((saved, list(saved.token_ids)))

    def restore(self) -> None:
        """One or several continuations, perhaps with tokens put in."""
        saved, tokens = self.rng.choice(self.saved)
        tokens = tokens + [self.rng.randrange(4) for _ in range(self.rng.choice([0, 0, 3]))]
        length = self.rng.randint(1, 8)
        requests, listeners = [], []
        for _ in range(self.rng.randint(1, 3)):
            listener = Listener()
            request = make_request(len(self.numbers), tokens, length)
            request.prompt_len = saved.prompt_len
            self._note(request, listener, tokens, length)
            requests.append(request)
            listeners.append(listener)
        self.engine.add(requests, listeners)

    def release(self) -> None:
        saved, _ = self.saved.pop(self.rng.randrange(len(self.saved)))
        self.engine.release(saved)

    def check(self) -> None:
        for number, (prompt, length, listener) in enumerate(self.asked):
            expected = ledger_answer(prompt, length, stateful=self.stateful)
            if number in self.aborted:
                assert listener.reason == "abort"
                expected = expected[: len(listener.token_ids)]
            else:
                assert listener.reason == "length"
            assert listener.token_ids == expected

    def _note(self, request: Request, listener: Listener, prompt: list[int], length: int) -> None:
        self.numbers[request.id] = listener
        self.asked.append((prompt, length, listener))

    def _prompt(self) -> list[int]:
        """Often a beginning of what was said before, and something new."""
        old: list[int] = []
        if self.asked and self.rng.random() < 0.8:
            prompt, _, listener = self.rng.choice(self.asked)
            old = [*prompt, *listener.token_ids]
            old = old[: self.rng.choice([len(old), len(prompt), self.rng.randint(0, len(old))])][:24]
        new = [self.rng.randrange(self.rng.choice([2, VOCABULARY])) for _ in range(self.rng.randint(not old, 8))]
        return old + new


def play(seed: int, *, state_pages: float = 2.0, folder: Path | None = None) -> Engine:
    """One random session, checked at every step; the engine comes back idle."""
    rng = random.Random(seed)
    engine = ledger_engine(
        num_pages=rng.choice([12, 16, 40]),
        num_slots=rng.choice([1, 2, 4]),
        max_step_tokens=rng.choice([1, 3, 16, 64]),
        snapshots=rng.choice([1, 2, 5, 20]),
        state_pages=state_pages,
        near=rng.choice([1, 2, 4]),
    )
    if folder is not None:
        disk = DiskTier(folder, bytes([state_pages > 0]) + bytes(31), 50_000, 4)
        engine.shelf = Shelf(disk, engine.scheduler, engine.runner)  # type: ignore[arg-type]
    session = Session(rng, engine, stateful=state_pages > 0)
    for _ in range(rng.randint(2, 14)):
        session.ask()
        for _ in range(rng.randrange(6)):
            engine.step()
            engine.scheduler.check()
        for act, chance in ((session.abort, 0.2), (session.save, 0.3)):
            if rng.random() < chance:
                act()
        for act in (session.restore, session.release):
            if session.saved and rng.random() < 0.3:
                act()
        engine.scheduler.check()
    drain(engine)
    engine.close()
    session.check()
    while session.saved:
        session.release()
    return engine


def clear(engine: Engine) -> None:
    """Take the cache away, and see that the pools are whole."""
    cache = engine.scheduler.cache
    for snapshot in list(cache):
        assert snapshot.pins == 0
        cache.drop(snapshot)
    assert engine.scheduler.pages.num_used == engine.scheduler.slots.num_used == 0
    assert not cache._tree.root.children


@pytest.mark.parametrize("block", range(2))
def test_whatever_is_reused_the_answers_are_those_of_undisturbed_sequences(block: int) -> None:
    for seed in range(40 * block, 40 * block + 40):
        clear(play(seed, state_pages=0.0 if seed % 5 == 0 else 2.0))


def test_what_comes_back_from_disk_changes_no_answer(tmp_path: Path) -> None:
    """The same sessions again and again over one folder: each engine finds what those before it left."""
    recalled = 0
    for seed in (*range(12), *range(12), *range(8)):
        engine = play(seed, folder=tmp_path, state_pages=0.0 if seed % 4 == 0 else 2.0)
        recalled += engine.counters.disk_tokens
        clear(engine)
    assert recalled > 100


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("block", range(20))
def test_twenty_thousand_random_schedules(block: int) -> None:
    for seed in range(1000 * (block + 1), 1000 * (block + 2)):
        clear(play(seed, state_pages=0.0 if seed % 5 == 0 else 2.0))


def ask(engine: Engine, prompt: list[int], length: int, number: int, *ends: int) -> Listener:
    listener = Listener()
    request = make_request(number, prompt, length)
    request.marks = Marks(ends)
    engine.add([request], [listener])
    drain(engine)
    assert listener.token_ids == ledger_answer(prompt, length)
    return listener


def reused(listener: Listener) -> tuple[int, int]:
    (told,) = [event.reuse for event in listener.events if event.reuse]
    return told.cached, told.matched


def test_a_second_turn_begins_after_the_first_prompt_and_an_appended_one_after_the_answer() -> None:
    engine = ledger_engine(num_pages=60, snapshots=8)
    first = list(range(1, 31))
    answer = ask(engine, first, 10, 0, 28)
    assert reused(answer) == (0, 0)
    assert reused(ask(engine, [*first[:29], 77, 78, 79], 3, 1)) == (28, 29)
    assert reused(ask(engine, [*first, *answer.token_ids, 5], 3, 2)) == (39, 39)


def test_where_a_request_leaves_a_stored_path_is_kept_for_the_next() -> None:
    engine = ledger_engine(num_pages=60, snapshots=8)
    system = list(range(1, 21))
    found = [reused(ask(engine, [*system, 100 + number, 7, 8], 2, number)) for number in range(3)]
    assert found == [(0, 0), (0, 20), (20, 20)]


def test_keeping_states_on_the_way_takes_no_steps_of_its_own() -> None:
    engine = ledger_engine(num_pages=300, snapshots=30, max_step_tokens=64)
    request = make_request(0, list(range(1, 61)), 1)
    request.marks = Marks((10, 20, 30, 40, 50), (10,))
    engine.add([request], [Listener()])
    drain(engine)
    assert engine.counters.steps == 1
    assert sorted(each.position for each in engine.scheduler.cache) == [*request.cuts, 60]
    assert [reused(ask(engine, [*range(1, cut + 1), 99, 98], 1, cut))[0] for cut in request.cuts] == request.cuts


def test_prompts_that_begin_alike_are_read_once_when_they_come_together() -> None:
    engine = ledger_engine(num_pages=200, num_slots=8, snapshots=8, max_step_tokens=16)
    system, listeners = list(range(1, 41)), [Listener() for _ in range(6)]
    for number in range(3):
        engine.add([make_request(number, [*system, 50 + number, 60, 61], 4)], [listeners[number]])
    engine.step()
    for number in range(3, 6):  # while the first is being read
        engine.add([make_request(number, [*system, 50 + number, 60, 61], 4)], [listeners[number]])
    drain(engine)
    for number, listener in enumerate(listeners):
        assert listener.token_ids == ledger_answer([*system, 50 + number, 60, 61], 4)
    assert engine.counters.prompt_tokens == 40 + 6 * 3


def test_who_waits_for_a_prompt_that_is_given_up_reads_on_from_there() -> None:
    engine = ledger_engine(num_pages=200, num_slots=8, snapshots=8, max_step_tokens=16)
    prompt, listeners = list(range(1, 61)), [Listener() for _ in range(3)]
    for number in range(3):
        engine.add([make_request(number, prompt, 4)], [listeners[number]])
    engine.step()
    engine.abort(0)
    drain(engine)
    assert [listener.token_ids for listener in listeners[1:]] == [ledger_answer(prompt, 4)] * 2
    assert engine.counters.prompt_tokens == 60 + 1  # the last token of a prompt is never reused


def test_a_prompt_does_not_wait_for_one_in_the_background() -> None:
    engine = ledger_engine(num_pages=200, num_slots=8, snapshots=8, max_step_tokens=64)
    requests = [make_request(number, list(range(1, 31)), 4) for number in range(2)]
    requests[0].background = True
    listeners = [Listener(), Listener()]
    engine.add([requests[0]], [listeners[0]])
    engine.scheduler.schedule()
    engine.add([requests[1]], [listeners[1]])
    assert requests[1].leader is None


def test_a_preempted_request_starts_again_from_its_deepest_snapshot() -> None:
    engine = ledger_engine(num_pages=16, num_slots=2, snapshots=4, max_step_tokens=64)
    prompts = [[number + 1] * 24 for number in range(2)]
    listeners = []
    for number, prompt in enumerate(prompts):
        listener = Listener()
        request = make_request(number, prompt, 20)
        request.marks = Marks((20,))
        engine.add([request], [listener])
        listeners.append(listener)
    drain(engine)
    assert engine.scheduler.num_preemptions > 0
    assert engine.counters.prompt_tokens < 24 * (2 + engine.scheduler.num_preemptions)
    for prompt, listener in zip(prompts, listeners, strict=True):
        assert listener.token_ids == ledger_answer(prompt, 20)


def test_owed_prompt_logprobs_are_computed_even_if_the_prompt_is_stored() -> None:
    engine = ledger_engine(num_pages=60, snapshots=8)
    prompt = list(range(1, 31))
    ask(engine, prompt, 3, 0, 20)
    listener = Listener()
    engine.add([make_request(1, prompt, 3, prompt_logprobs=0)], [listener])
    drain(engine)
    assert [entry.token_id for event in listener.events for entry in event.prompt_logprobs] == prompt[1:]
    assert reused(listener)[0] == 0


def test_choices_wait_for_the_first_and_follow_whoever_of_them_is_left() -> None:
    engine = ledger_engine(num_pages=60, snapshots=8, num_slots=8, max_step_tokens=8)
    prompt = list(range(1, 31))
    listeners = [Listener() for _ in range(4)]
    engine.add([make_request(number, prompt, 5) for number in range(4)], listeners)
    engine.step()
    engine.abort(0)
    engine.abort(2)
    drain(engine)
    assert [listener.reason for listener in listeners] == ["abort", "length", "abort", "length"]
    assert listeners[1].token_ids == listeners[3].token_ids == ledger_answer(prompt, 5)
    assert engine.counters.prompt_tokens <= len(prompt) + 8 + 1


def test_a_failed_step_keeps_nothing_of_its_requests() -> None:
    engine = ledger_engine(num_pages=60, snapshots=8, max_step_tokens=8)
    listener = Listener()
    engine.add([make_request(0, list(range(1, 31)), 5)], [listener])
    engine.step()
    working = engine.runner.run

    def failing(step: Step) -> list[RowResult]:
        working(step)  # it has written already
        raise RuntimeError("too late")

    engine.runner.run = failing  # type: ignore[method-assign]
    engine.step()
    engine.runner.run = working  # type: ignore[method-assign]
    assert listener.reason == "error"
    assert reused(ask(engine, list(range(1, 31)), 5, 1)) == (0, 0)


def test_random_disconnects_leak_nothing() -> None:
    """10,000 requests, each aborted at some moment."""
    rng = random.Random(11)
    engine = ledger_engine(num_pages=40, snapshots=6, num_slots=3, max_step_tokens=512)
    alive: list[int] = []
    for number in range(10_000):
        prompt = [rng.randrange(2) for _ in range(rng.randint(1, 30))]
        engine.add([make_request(number, prompt, 100)], [Listener()])
        alive.append(number)
        if rng.random() < 0.1:
            engine.step()
        while len(alive) > rng.randrange(8):
            engine.abort(alive.pop(rng.randrange(len(alive))))
    for number in alive:
        engine.abort(number)
    drain(engine)
    clear(engine)
