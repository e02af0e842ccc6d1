"""The engine: schedule, run, commit, publish, on one thread, for one model. Decides what a failure kills."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Protocol, Self

from qwench.engine.request import Guide, Request, Saved, Status, TokenEvent
from qwench.engine.scheduler import Copies, RowResult, Scheduler, Step
from qwench.engine.shelf import Shelf

Deliver = Callable[[TokenEvent], None]
MAX_FAILURES_IN_A_ROW = 3
MAX_FAILURES = 3  # steps among others that may fail before a request is no longer tried alone
LONGEST_LOOK = 1.0  # seconds until commands are obeyed again
MAX_CHECKED = 100_000  # shares of pages; to count more takes longer than a request that comes now should wait

logger = logging.getLogger(__name__)


class StepRunner(Protocol):
    def run(self, step: Step) -> list[RowResult]: ...

    def copy(self, copies: Copies) -> None: ...


class Looking(Protocol):
    """What looks at pictures before their requests begin."""

    def look(self, request: Request, going_on: Callable[[], bool]) -> bool: ...

    def release(self, request: Request) -> None: ...


class Guarded:
    """A request's guide, whose failure is that request's alone."""

    def __init__(self, guide: Guide) -> None:
        self._guide = guide

    @property
    def mask(self) -> bytes | None:
        return self._guide.mask

    def accept(self, token_ids: Sequence[int]) -> str | None:
        try:
            return self._guide.accept(token_ids)
        except Exception:
            logger.exception("a guide failed; its request ends with an error")
            return "what the answer may say could not be worked out"

    def __copy__(self) -> Self:
        return type(self)(copy(self._guide))


@dataclass
class Counters:
    """Totals since the start, read by stats and metrics."""

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    disk_tokens: int = 0
    generated_tokens: int = 0
    finished: int = 0
    aborted: int = 0
    failed: int = 0


class Engine:
    """Not thread-safe by design: engine/client owns the thread and hands commands over."""

    def __init__(
        self, scheduler: Scheduler, runner: StepRunner, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.clock = clock
        self.counters = Counters()
        self.shelf: Shelf | None = None
        self.failures_in_a_row = 0
        self.eyes: Looking | None = None
        self.lasted = 0.0  # the last step, in seconds
        self._listeners: dict[int, tuple[Request, Deliver]] = {}

    def add(self, requests: Sequence[Request], deliver: Sequence[Deliver]) -> None:
        """Queue answers to one prompt; each one's ``deliver`` gets its events, the last with a finish_reason."""
        for request in requests:
            if request.guide is not None and not isinstance(request.guide, Guarded):
                request.guide = Guarded(request.guide)
        self._listeners.update({each.id: (each, told) for each, told in zip(requests, deliver, strict=True)})
        self.scheduler.add(requests)

    def save(self, request_id: int) -> Saved | None:
        """The running sequence as it is now, kept until ``release``; None for unknown and finished ones."""
        if request_id not in self._listeners:
            return None
        saved = self.scheduler.save(self._listeners[request_id][0])
        self._copy()
        return saved

    def release(self, saved: Saved) -> None:
        self.scheduler.release(saved)

    def abort(self, request_id: int) -> None:
        """End a request now and free everything it holds, unless its prompt is to be read on; unknown or finished ids
        are left alone."""
        if request_id in self._listeners:
            request, _ = self._listeners[request_id]
            self.scheduler.abort(request)
            self._copy()
            if request.status is Status.FINISHED:
                self._publish(request, TokenEvent(finish_reason="abort"))

    def end_thinking(self, request_id: int) -> None:
        """Have a request's thinking closed; unknown or finished ids are left alone."""
        if request_id in self._listeners:
            self.scheduler.end_thinking(self._listeners[request_id][0])

    def step(self) -> bool:
        """One turn of the loop. False if there was nothing to do; then the books are checked."""
        if self.scheduler.is_idle():
            if sum(len(snapshot.pages) for snapshot in self.scheduler.cache) <= MAX_CHECKED:
                self.scheduler.check()
            return False
        if self.shelf is not None:
            self.counters.disk_tokens += self.shelf.recall()
        if self.eyes is not None:
            self._look(self.eyes)
        step = self.scheduler.schedule()
        if not step.rows and self._awaits():
            return True
        assert step.rows, "requests are waiting but none can run: a request larger than the cache was let in"
        start = self.clock()
        try:
            results = self.runner.run(step)
        except Exception as error:  # noqa: BLE001 - whatever went wrong, every request of the step gets an answer
            self._fail(step, error)
            return True
        self.failures_in_a_row = 0
        self.lasted = self.clock() - start
        self.scheduler.took(step, self.lasted)
        self._count(step)
        # All of the step is written down before anyone is told: a listener that raises must not leave half a step.
        events = list(self.scheduler.commit(step, results))
        self._copy()
        for request, event in events:
            self._publish(request, event)
        return True

    def fail_all(self, message: str) -> None:
        """End every request with an error: the engine stops. The books are left, they may be what was wrong."""
        for request, _ in list(self._listeners.values()):
            request.status = Status.FINISHED
            self._publish(request, TokenEvent(finish_reason="error", error=message))

    def close(self) -> None:
        """Finish writing; nothing runs any more."""
        if self.shelf is not None:
            self.shelf.close()

    @property
    def broken(self) -> bool:
        return self.failures_in_a_row >= MAX_FAILURES_IN_A_ROW

    def _copy(self) -> None:
        """Make the copies that are due, before the next step writes where they come from; store what should stay."""
        if copies := self.scheduler.copies():
            self.runner.copy(copies)
        kept = self.scheduler.kept()
        if self.shelf is not None:
            self.shelf.store(kept)

    def _awaits(self) -> bool:
        """Whether what could run waits for something to be looked at, or read; this waits a moment too."""
        return bool(self.scheduler.unseen()) or (self.shelf is not None and self.shelf.wait())

    def _look(self, eyes: Looking) -> None:
        """Look at what the next prompts show, beside others for as long as their last step took: they go on at half
        their pace. Where that fails, one request ends."""
        until = self.clock() + (self.lasted if self.scheduler.running else LONGEST_LOOK)
        for request in self.scheduler.unseen():
            try:
                request.looked = eyes.look(request, lambda: self.clock() < until)
            except Exception as error:
                logger.exception("a picture could not be looked at; its request ends with an error")
                self.scheduler.abort(request, sound=False)
                self._publish(request, TokenEvent(finish_reason="error", error=f"{type(error).__name__}: {error}"))
            if self.clock() >= until:
                return

    def _count(self, step: Step) -> None:
        self.counters.steps += 1
        for row in step.rows:
            fresh = max(0, min(row.start + row.count, row.request.prompt_len) - row.start)
            self.counters.prompt_tokens += fresh
            self.counters.generated_tokens += row.samples

    def _fail(self, step: Step, error: Exception) -> None:
        """One request alone ends with the error; several are tried again one by one, so that only its own kills one."""
        logger.error("a step of %d requests failed", len(step.rows), exc_info=error)
        requests = [row.request for row in step.rows]
        alone = len(requests) == 1
        if not (alone and self.scheduler.is_suspect(requests[0])):  # else it was counted when it failed among others
            self.failures_in_a_row += 1
        self.scheduler.begin_again(step)
        for request in requests:
            request.num_failures += 1
            if alone or request.num_failures > MAX_FAILURES or self.broken:
                self.scheduler.abort(request, sound=False)
                self._publish(request, TokenEvent(finish_reason="error", error=f"{type(error).__name__}: {error}"))

    def _publish(self, request: Request, event: TokenEvent) -> None:
        _, deliver = self._listeners[request.id]
        self.counters.cached_tokens += event.cached_tokens
        if event.finish_reason is not None:
            del self._listeners[request.id]
            if self.eyes is not None:
                self.eyes.release(request)
            self.counters.finished += event.finish_reason in ("stop", "length")
            self.counters.aborted += event.finish_reason == "abort"
            self.counters.failed += event.finish_reason == "error"
        assert (event.finish_reason is not None) == (request.status is Status.FINISHED)
        deliver(event)
