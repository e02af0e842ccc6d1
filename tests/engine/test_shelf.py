"""What carries states between memory and disk does so beside the steps: nobody's tokens wait for it, and no page is
handed on while it is being copied. Random sessions over one folder give the answers of undisturbed sequences."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from qwench.cache.disk import DiskTier, Entry, Loaded
from qwench.engine.core import Engine
from qwench.engine.runner import Runner
from qwench.engine.shelf import Shelf
from tests.engine.ledger import ledger_answer, ledger_engine
from tests.engine.test_laws import Listener, drain, make_request
from tests.engine.test_prefix_laws import ask, clear, play, reused

LONG = list(range(1, 61))


@contextmanager
def over(folder: Path, *, num_pages: int = 80, near: int = 2) -> Iterator[Engine]:
    """An engine over ``folder``; at its end nothing is left in its hands."""
    engine = ledger_engine(num_pages=num_pages, num_slots=4, snapshots=8, max_step_tokens=64, near=near)
    disk = DiskTier(folder, bytes(32), 10**6, 4)
    assert isinstance(engine.runner, Runner)
    engine.shelf = Shelf(disk, engine.scheduler, engine.runner)
    yield engine
    engine.close()
    engine.scheduler.check()
    clear(engine)


def stream(engine: Engine) -> Listener:
    """Somebody whose tokens must not wait."""
    listener = Listener()
    engine.add([make_request(900, [7, 8, 9], 1000)], [listener])
    engine.step()
    return listener


class Slow:
    """A function that ends only when it is let."""

    def __init__(self, work: Callable[..., object]) -> None:
        self.work = work
        self.calls = 0
        self.may = threading.Event()

    def __call__(self, *arguments: object) -> object:
        self.calls += 1
        assert self.may.wait(10)
        return self.work(*arguments)


def test_streams_go_on_while_a_state_is_copied_out_and_its_pages_stay(tmp_path: Path) -> None:
    with over(tmp_path, num_pages=40) as engine:
        assert isinstance(engine.runner, Runner)
        engine.runner.read_pages = slow = Slow(engine.runner.read_pages)  # type: ignore[assignment,method-assign]
        going = stream(engine)
        ask_beside(engine, LONG, 1)
        for snapshot in list(engine.scheduler.cache):  # others need the room: the pages must not be handed on
            if not snapshot.pins:
                engine.scheduler.cache.drop(snapshot)
        ask_beside(engine, [200] * 60, 2)
        said = len(going.token_ids)
        for _ in range(5):
            engine.step()
        assert len(going.token_ids) == said + 5
        assert slow.calls == 1
        slow.may.set()
        engine.abort(900)
        drain(engine)
    with over(tmp_path) as engine:  # what was written is what the pages held before they were given up
        assert reused(ask(engine, [*LONG, 5], 3, 0))[0] >= 59


def ask_beside(engine: Engine, prompt: list[int], number: int) -> None:
    """One token, of which others do not take notice."""
    listener = Listener()
    engine.add([make_request(number, prompt, 1)], [listener])
    while listener.reason is None:
        engine.step()
    assert listener.token_ids == ledger_answer(prompt, 1)


def test_streams_go_on_while_a_state_is_brought_in_and_it_is_read_once(tmp_path: Path) -> None:
    with over(tmp_path) as engine:
        ask(engine, LONG, 1, 0)
    with over(tmp_path) as engine:
        assert isinstance(engine.runner, Runner)
        assert engine.shelf is not None
        loads: list[Entry] = []
        load = engine.shelf.disk.load

        def counted(entry: Entry) -> Loaded | None:
            loads.append(entry)
            return load(entry)

        engine.shelf.disk.load = counted  # type: ignore[method-assign]
        engine.runner.write_pages = slow = Slow(engine.runner.write_pages)  # type: ignore[assignment,method-assign]
        going, listeners = stream(engine), [Listener() for _ in range(2)]
        for number, listener in enumerate(listeners):
            engine.add([make_request(number, [*LONG, 5 + number], 4)], [listener])
        while not slow.calls:
            engine.step()
        said = len(going.token_ids)
        for _ in range(5):
            engine.step()
        assert len(going.token_ids) == said + 5
        assert not any(listener.token_ids for listener in listeners)
        slow.may.set()
        while not all(listener.reason for listener in listeners):
            engine.step()
        assert (len(loads), slow.calls) == (1, 1)
        for number, listener in enumerate(listeners):
            assert listener.token_ids == ledger_answer([*LONG, 5 + number], 4)
            assert reused(listener)[0] >= 59
        assert engine.counters.disk_tokens >= 59
        engine.abort(900)
        drain(engine)


def test_who_leaves_while_its_state_is_brought_in_leaves_nothing(tmp_path: Path) -> None:
    with over(tmp_path) as engine:
        ask(engine, LONG, 1, 0)
    with over(tmp_path) as engine:
        assert isinstance(engine.runner, Runner)
        engine.runner.write_pages = slow = Slow(engine.runner.write_pages)  # type: ignore[assignment,method-assign]
        engine.add([make_request(0, [*LONG, 5], 4)], [Listener()])
        while not slow.calls:
            engine.step()
        engine.abort(0)
        slow.may.set()
        drain(engine)


def test_a_request_alone_waits_for_pages_that_are_being_copied(tmp_path: Path) -> None:
    """All of memory is being copied out: that is no reason to fail, only to wait."""
    with over(tmp_path, num_pages=16) as engine:
        assert isinstance(engine.runner, Runner)
        engine.runner.read_pages = slow = Slow(engine.runner.read_pages)  # type: ignore[assignment,method-assign]
        ask_beside(engine, LONG, 0)
        listener = Listener()
        engine.add([make_request(1, [200] * 60, 3)], [listener])
        for _ in range(3):
            engine.step()
        assert not listener.token_ids
        slow.may.set()
        drain(engine)
        assert listener.token_ids == ledger_answer([200] * 60, 3)


def test_who_found_no_room_is_not_looked_up_in_every_step() -> None:
    engine = ledger_engine(num_pages=16, num_slots=4, snapshots=0)
    listeners = [Listener(), Listener()]
    engine.add([make_request(0, list(range(40)), 20)], [listeners[0]])
    for _ in range(6):
        engine.step()
    find, found = engine.scheduler.cache.find, list[int]()

    def counted(token_ids: Sequence[int], limit: int) -> object:
        found.append(limit)
        return find(token_ids, limit)

    engine.scheduler.cache.find = counted  # type: ignore[assignment,method-assign]
    engine.add([make_request(1, list(range(50, 90)), 5)], [listeners[1]])
    for _ in range(10):
        engine.step()
    assert not listeners[1].token_ids
    assert len(found) <= 2  # when it came, and when it was its turn
    drain(engine)
    assert listeners[1].token_ids == ledger_answer(list(range(50, 90)), 5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("block", range(10))
def test_two_thousand_random_sessions_over_a_folder(tmp_path: Path, block: int) -> None:
    """Each engine finds what those before it left, or were still writing when they ended."""
    recalled = 0
    for seed in range(100 * block, 100 * block + 100):
        folder = tmp_path / str(seed % 10)
        for _ in range(2):
            engine = play(seed, folder=folder, state_pages=0.0 if seed % 4 == 0 else 2.0)
            recalled += engine.counters.disk_tokens
            clear(engine)
    assert recalled > 1000
