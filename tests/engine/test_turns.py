"""The laws of taking turns: each stream its token in every step, a bounded gap between them, nobody starves, keys get
equal shares. On a machine without a model, whose steps take the time a formula says."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from qwench.cache.pool import Pool
from qwench.cache.prefix import PrefixPolicy
from qwench.engine.core import Engine
from qwench.engine.request import Request, Status
from qwench.engine.scheduler import Copies, RowResult, Scheduler, Step
from qwench.engine.turns import STRETCH
from tests.engine.ledger import ledger_answer, ledger_engine
from tests.engine.test_laws import Listener, drain, make_request
from tests.engine.test_prefix_laws import clear, reused


@dataclass
class Machine:
    """A step takes ``usual`` seconds if anyone generates, and ``each`` per prompt token, twice that ``deep`` tokens on.

    ``noise``: by what share a step may take longer or less long.
    """

    usual: float = 0.02
    each: float = 0.001
    deep: int = 1_000_000
    noise: float = 0.0
    now: float = 0.0
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    steps: list[tuple[float, Step]] = field(default_factory=list)

    def run(self, step: Step) -> list[RowResult]:
        reads = [row for row in step.rows if row.count > 1]
        seconds = self.usual if len(step.rows) > len(reads) else 0.001
        seconds += sum(row.count * self.each * (1 + (row.start + row.count / 2) / self.deep) for row in reads)
        seconds *= 1 + self.rng.uniform(-self.noise, self.noise)
        self.now += seconds
        self.steps.append((seconds, step))
        return [RowResult(1 if row.samples else None) for row in step.rows]

    def copy(self, copies: Copies) -> None: ...


def engine_on(
    machine: Machine, *, slots: int = 64, pages: int = 5000, max_step_tokens: int = 512, sparsity: float = 1.0
) -> Engine:
    scheduler = Scheduler(Pool(pages), Pool(slots), page_size=16, max_step_tokens=max_step_tokens, sparsity=sparsity)
    return Engine(scheduler, machine, clock=lambda: machine.now)


def finish(engine: Engine) -> None:
    while engine.step():
        pass


def ask(
    engine: Engine, number: int, length: int, answer: int, owner: str = "", *, background: bool = False
) -> tuple[Request, Listener]:
    request, listener = make_request(number, [number % 250 + 1] * length, answer), Listener()
    request.owner, request.background = owner, background
    engine.add([request], [listener])
    return request, listener


def read_among(streams: int, length: int, machine: Machine, *, background: bool = False) -> tuple[float, float]:
    """A prompt comes among streams: the longest step until it is read, in usual ones, and the seconds it takes."""
    engine = engine_on(machine)
    for number in range(streams):
        ask(engine, number, 50, 10**6)
    for _ in range(60):
        engine.step()
    _, listener = ask(engine, 99, length, 2, background=background)
    begin, machine.steps = machine.now, []
    while not listener.token_ids:
        engine.step()
    return max(seconds for seconds, _ in machine.steps) / machine.usual, machine.now - begin


@pytest.mark.parametrize(("streams", "each"), [(1, 0.001), (4, 0.0001), (4, 0.002), (16, 0.001)])
def test_a_long_prompt_stretches_no_gap_threefold_and_gets_its_share(streams: int, each: float) -> None:
    def machine() -> Machine:
        return Machine(each=each, deep=60_000, noise=0.05)

    longest, seconds = read_among(streams, 30_000, machine())
    _, alone = read_among(0, 30_000, machine())
    assert longest <= 3
    # Streams that share nothing with the prompt take one part in STRETCH of the time; a little is measured away.
    assert seconds <= alone / (1 - 1 / STRETCH) * 1.12


def test_a_background_prompt_stretches_gaps_less() -> None:
    assert read_among(4, 10_000, Machine(), background=True)[0] <= 1.6


def test_what_a_token_costs_is_known_by_depth() -> None:
    """After a short prompt, whose tokens are cheap, a deep one is not read in pieces as large."""
    machine = Machine(each=2e-4, deep=4000)
    engine = engine_on(machine)
    ask(engine, 0, 50, 10**6)
    for number in range(1, 5):
        _, listener = ask(engine, number, 900, 1)
        while not listener.reason:
            engine.step()
    deep, _ = ask(engine, 5, 18_000, 1)
    machine.steps.clear()
    while deep.status is not Status.FINISHED:
        engine.step()
        if deep.computed > 16_000 and len(machine.steps) % 4 == 0:
            ask(engine, 10 + len(machine.steps), 100, 1)  # cheap ones between
    assert max(seconds for seconds, _ in machine.steps) / machine.usual <= 3


def test_a_machine_that_became_faster_is_noticed() -> None:
    machine = Machine(deep=60_000, noise=0.03)
    engine = engine_on(machine)
    for number in range(4):
        ask(engine, number, 50, 10**6)
    for _ in range(60):
        engine.step()
    ask(engine, 99, 30_000, 2)
    for _ in range(100):
        engine.step()
    machine.usual, machine.each, machine.steps = machine.usual / 1.6, machine.each / 1.6, []
    for _ in range(150):
        engine.step()
    late = [seconds / machine.usual for seconds, _ in machine.steps]
    assert sum(gap > 3 for gap in late) <= 10
    assert max(late[50:]) <= 3


def test_alone_a_step_is_as_long_as_anyone_waits_for_a_cancel_to_be_noticed() -> None:
    machine = Machine(each=0.02)
    engine = engine_on(machine)
    ask(engine, 0, 5000, 2)
    finish(engine)
    assert max(seconds for seconds, _ in machine.steps[1:]) <= 1.1
    assert machine.steps[0][1].rows[0].count == 512  # nothing is known yet


@pytest.mark.parametrize(("sparsity", "read"), [(1.0, 32), (2.5, 80), (32.0, 512)])
def test_alone_a_step_reads_enough_for_every_weight_however_long_that_takes(sparsity: float, read: int) -> None:
    machine = Machine(each=0.5)
    engine = engine_on(machine, sparsity=sparsity)
    ask(engine, 0, 3000, 2)
    finish(engine)
    reads = [step.rows[0].count for _, step in machine.steps if step.rows[0].count > 1]
    assert set(reads[1:-1]) == {read}


@pytest.mark.parametrize("seed", range(4))
def test_nobody_starves_however_many_short_prompts_come(seed: int) -> None:
    """Short ones arrive faster than they can be read, for ever; slots are few. The long one is read all the same, and
    so is one in the background."""
    rng = random.Random(seed)
    machine = Machine(usual=0.01)
    engine = engine_on(machine, slots=3, max_step_tokens=64)
    long, _ = ask(engine, 0, 2000, 3)
    quiet, _ = ask(engine, 1, 300, 3, background=True)
    others = 0
    for number in range(2, 10_000):
        length = rng.randint(20, 60)
        ask(engine, number, length, 2)
        engine.step()
        if long.status is quiet.status is Status.FINISHED:
            break
    others = engine.counters.prompt_tokens - 2300
    assert long.status is quiet.status is Status.FINISHED
    assert others <= 3 * 2300 * 1.2


def play(seed: int) -> None:
    """A random schedule: each stream gets its token in every step; who is done was passed by no more than is fair."""
    rng = random.Random(seed)
    machine = Machine(rng.uniform(0.001, 0.05), rng.uniform(1e-4, 5e-3), rng.choice([500, 10**6]), noise=0.1)
    most = rng.choice([16, 64, 512])
    engine = engine_on(machine, max_step_tokens=most)
    owners = ["", "a", "b", "c"][: rng.randint(1, 4)]
    begun: dict[Request, tuple[int, int]] = {}  # what was read before it came, and what its key's older ones lack
    asked: list[tuple[Request, Listener]] = []

    def unread(owner: str) -> int:
        return sum(each.unread for each, _ in asked if each.owner == owner and not each.num_generated)

    for _ in range(rng.randint(20, 60)):
        while rng.random() < 0.4 and len(asked) < 30:
            owner = rng.choice(owners)
            older = unread(owner)
            request, listener = ask(engine, len(asked), rng.choice([1, 5, 40, 300]), rng.randint(1, 20), owner)
            request.background = rng.random() < 0.1
            begun[request] = engine.counters.prompt_tokens, older
            asked.append((request, listener))
        live = {each for each in engine.scheduler.running if each.missing == 1}
        if not engine.step():
            continue
        _, step = machine.steps[-1]
        assert live <= {row.request for row in step.rows}
        for request in [each for each in begun if each.num_generated]:
            before, older = begun.pop(request)
            passed = engine.counters.prompt_tokens - before
            assert passed <= len(owners) * 4 * (older + request.prompt_len + most) + 2 * most
    finish(engine)
    assert all(listener.reason == "length" for _, listener in asked)
    assert all(len(listener.token_ids) == request.num_generated for request, listener in asked)


@pytest.mark.parametrize("block", range(2))
def test_random_schedules_are_fair(block: int) -> None:
    for seed in range(100 * block, 100 * block + 100):
        play(seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thousands_of_random_schedules_are_fair() -> None:
    for seed in range(1000, 6000):
        play(seed)


def test_a_key_with_one_short_prompt_does_not_wait_behind_another_keys_queue() -> None:
    machine = Machine()
    engine = engine_on(machine, max_step_tokens=64)
    for number in range(40):
        ask(engine, number, 200, 1, "busy")
    for _ in range(5):
        engine.step()
    _, listener = ask(engine, 99, 400, 1, "quiet")
    before = engine.counters.prompt_tokens
    while not listener.reason:
        engine.step()
    assert engine.counters.prompt_tokens - before <= 2 * 400 + 64


@pytest.mark.parametrize("seed", range(20))
def test_keys_that_all_have_much_to_read_read_equally(seed: int) -> None:
    rng = random.Random(seed)
    machine = Machine(rng.uniform(0.001, 0.05), rng.uniform(1e-4, 5e-3), noise=0.1)
    most = rng.choice([16, 64, 512])
    engine = engine_on(machine, max_step_tokens=most, slots=200)
    ask(engine, 0, 5, 10**6)
    for _ in range(5):
        engine.step()
    left = Counter[str]()
    for number in range(1, 120):
        owner = rng.choice("aabc")
        length = rng.randint(20, 60) if owner == "a" else rng.randint(100, 400)
        ask(engine, number, length, 1, owner)
        left[owner] += length
    read = dict.fromkeys("abc", 0)
    while all(left[owner] - read[owner] > 400 for owner in "abc"):
        engine.step()
        for row in machine.steps[-1][1].rows:
            read[row.request.owner or "a"] += row.count if row.count > 1 else 0
        assert max(read.values()) - min(read.values()) <= 2 * most


@pytest.mark.parametrize("seed", range(40))
def test_answers_do_not_depend_on_turns(seed: int) -> None:
    """The ledger model under random keys, costs and company gives the answers of undisturbed sequences."""
    rng = random.Random(seed)
    machine = Machine(rng.uniform(0.001, 0.05), rng.uniform(1e-4, 5e-2), noise=0.5)
    engine = ledger_engine(num_pages=rng.choice([14, 60]), num_slots=3, snapshots=rng.choice([0, 4]))
    work = engine.runner.run

    def run(step: Step) -> list[RowResult]:
        machine.run(step)
        return work(step)

    engine.runner.run, engine.clock = run, lambda: machine.now  # type: ignore[method-assign]
    asked: list[tuple[list[int], int, Listener]] = []
    for number in range(10):
        prompt = [rng.randrange(9) for _ in range(rng.randint(1, 30))]
        request, listener = make_request(number, prompt, rng.randint(1, 12)), Listener()
        request.owner, request.background = rng.choice("ab"), rng.random() < 0.2
        engine.add([request], [listener])
        asked.append((prompt, request.max_total - len(prompt), listener))
        for _ in range(rng.randrange(5)):
            engine.step()
            engine.scheduler.check()
    drain(engine)
    for prompt, length, listener in asked:
        assert listener.token_ids == ledger_answer(prompt, length)


def test_an_abandoned_prompt_is_read_to_its_end_for_the_next_try() -> None:
    engine = ledger_engine(num_pages=60, snapshots=8, max_step_tokens=8)
    engine.scheduler.finish_abandoned = True
    prompt = list(range(1, 60))
    listener = Listener()
    engine.add([make_request(0, prompt, 5)], [listener])
    engine.step()
    engine.abort(0)
    engine.abort(0)
    assert listener.reason is None
    drain(engine)
    assert listener.token_ids == []
    assert engine.counters.aborted == 1
    again = Listener()
    engine.add([make_request(1, prompt, 5)], [again])
    drain(engine)
    assert reused(again)[0] == len(prompt) - 1
    assert again.token_ids == ledger_answer(prompt, 5)


def test_a_stopped_prompt_goes_on_where_it_was_at_the_next_try() -> None:
    engine = ledger_engine(num_pages=60, snapshots=8, max_step_tokens=8)
    listener, prompt = Listener(), list(range(1, 60))
    engine.add([make_request(0, prompt, 5)], [listener])
    engine.step()
    engine.step()
    engine.abort(0)
    assert engine.scheduler.is_idle()
    again = Listener()
    engine.add([make_request(1, prompt, 5)], [again])
    drain(engine)
    assert reused(again)[0] == 16


def disconnect(seed: int, count: int) -> None:
    """``count`` requests, each left at some moment, under either policy."""
    rng = random.Random(seed)
    policy = PrefixPolicy(limit=6, state_pages=2, near=2)
    scheduler = Scheduler(
        Pool(40), Pool(9), page_size=4, max_step_tokens=16, policy=policy, finish_abandoned=seed % 2 == 0
    )
    machine = Machine(noise=0.3, rng=rng)
    engine = Engine(scheduler, machine, clock=lambda: machine.now)
    alive: list[tuple[int, Listener]] = []
    left: list[Listener] = []
    for number in range(count):
        prompt = [rng.randrange(2) for _ in range(rng.randint(1, 60))]
        requests = [make_request(number * 4 + choice, prompt, 60) for choice in range(rng.choice([1, 1, 3]))]
        listeners = [Listener() for _ in requests]
        for request in requests:
            request.owner = str(number % 3)
        engine.add(requests, listeners)
        alive += [(request.id, listener) for request, listener in zip(requests, listeners, strict=True)]
        for _ in range(rng.choice([0, 0, 1, 3])):
            engine.step()
            scheduler.check()
        machine.steps.clear()
        while len(alive) > rng.randrange(10):
            number_left, listener = alive.pop(rng.randrange(len(alive)))
            engine.abort(number_left)
            left.append(listener)
    for number_left, listener in alive:
        engine.abort(number_left)
        left.append(listener)
    drain(engine)
    assert all(listener.reason in ("abort", "length") for listener in left)
    clear(engine)


@pytest.mark.parametrize("seed", range(2))
def test_random_disconnects_leak_nothing_under_either_policy(seed: int) -> None:
    disconnect(seed, 400)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(2))
def test_ten_thousand_random_disconnects_leak_nothing(seed: int) -> None:
    disconnect(seed, 10_000)
