"""``fault("name")`` stands at every call that the world outside can make fail; it does nothing without a test's plan.

A plan belongs to the context that installed it and to the threads and tasks started from there, so two tests and two
engines in one process do not meet. Knows none of its callers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

# Every name there is, and the call it stands at. A test compares this table with the calls.
FAULTS: Mapping[str, str] = {
    "library.open": "the native library is opened",
    "memory.weights": "memory for the weights is taken",
    "memory.cache": "memory for pages and states is taken",
    "memory.step": "memory for the activations of one step is taken",
    "read.config": "a JSON file of a checkpoint is read",
    "read.tokenizer": "tokenizer.json is read",
    "read.template": "a chat template or its settings are read",
    "read.header": "the header of a weight file is read",
    "read.weights": "bytes of a stored tensor are read",
    "write.weights": "weights are written to a checkpoint",
    "write.cache": "a state is written to the cache folder, or the folder is made",
    "read.cache": "a file of the cache folder is read",
    "read.requests": "the input of a batch is read",
    "connect.hub": "the Hub is asked, and files come from it into its cache",
    "start.decoder": "a process that decodes media is started",
    "read.media": "a file that is to be looked at is read",
    "connect.upstream": "the gateway calls an upstream",
    "start.engine": "the gateway starts an engine",
    "connect.media": "the name in a media address is looked up",
    "open.ledger": "the ledger's database is opened",
    "write.ledger": "rows are committed to the ledger",
    "read.log": "a log that is to be imported is read",
    "write.results": "results of a batch are written, or its file is opened",
    "write.output": "standard output is written",
    "open.store": "the database of files and batches is opened",
    "write.store": "something in it is read or written",
    "listen": "the server's socket is bound",
    "receive": "bytes of a request come from a client",
    "send": "bytes of an answer go to a client",
}


class Plan:
    """What shall fail, and how often. Filled by a test, also after what it watches has started."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: dict[str, tuple[BaseException, int, int | None]] = {}
        self.reached: dict[str, int] = dict.fromkeys(FAULTS, 0)

    def fail(self, name: str, error: BaseException, *, after: int = 0, times: int | None = None) -> None:
        """From now on, raise ``error`` at ``name`` after ``after`` more passes, ``times`` times (None: always)."""
        assert name in FAULTS, f"{name} is not among the faults"
        with self._lock:
            self._rules[name] = error, after, times

    def mend(self, name: str) -> None:
        """Let ``name`` succeed again."""
        with self._lock:
            self._rules.pop(name, None)

    def reach(self, name: str) -> None:
        """Called where ``name`` stands. Raises what is planned there."""
        with self._lock:
            self.reached[name] += 1
            error, after, times = self._rules.get(name, (None, 0, None))
            if error is None:
                return
            if after:
                self._rules[name] = error, after - 1, times
                return
            if times == 0:
                return
            self._rules[name] = error, 0, None if times is None else times - 1
        raise error


_PLAN: ContextVar[Plan | None] = ContextVar("fault_plan", default=None)


def fault(name: str) -> None:
    """Stands right before the call that ``FAULTS`` describes under ``name``, inside whatever catches its errors."""
    plan = _PLAN.get()
    if plan is not None:
        plan.reach(name)


@contextmanager
def planned() -> Iterator[Plan]:
    """A fresh plan for this context, and for threads and tasks that start from it."""
    plan = Plan()
    token = _PLAN.set(plan)
    try:
        yield plan
    finally:
        _PLAN.reset(token)
