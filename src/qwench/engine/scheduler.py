"""The scheduler: arithmetic on two counters per request. No phases, no torch, no clock, no input or output.

Every step spends a budget of tokens on closing *known - computed*, running requests before waiting ones, each in
order of arrival. Requests that miss one token (they are generating) come before prompt chunks. When pages run out the
youngest running request gives everything back and waits at the front of the queue; its tokens are kept and computed
again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qwench.cache.pool import Pool
from qwench.engine.request import FinishReason, Request, Status, TokenEvent, TokenLogprob


@dataclass(frozen=True)
class StepRow:
    """Compute ``count`` tokens of ``request`` from ``start`` on. ``samples``: the last of them asks for a new token."""

    request: Request
    start: int
    count: int

    @property
    def samples(self) -> bool:
        return self.start + self.count == len(self.request.token_ids)

    @property
    def prompt_targets(self) -> range:
        """Places in ``token_ids`` whose log-probability this row owes: prompt tokens that follow one of its tokens."""
        request = self.request
        if request.sampling.prompt_logprobs is None:
            return range(0)
        first = max(self.start + 1, request.prompt_logprobs_told, 1)
        return range(first, min(self.start + self.count + 1, request.prompt_len))


@dataclass(frozen=True)
class Step:
    """Rows in the order the batch wants them (single tokens first); ``fresh_slots`` must be zeroed before the step."""

    rows: tuple[StepRow, ...]
    fresh_slots: tuple[int, ...]


@dataclass(frozen=True)
class RowResult:
    """What the runner found for one row: the drawn token if it samples, and log-probabilities where asked for.

    ``error`` says why this row alone cannot go on. ``rank`` is that of the token that closes thinking, where the
    request's thought asked for it and it is among the likeliest.
    """

    token_id: int | None = None
    logprob: TokenLogprob | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    error: str | None = None
    rank: int | None = None


class Scheduler:
    """Owns the counters and status of every request, and decides who holds which page and slot."""

    def __init__(self, pages: Pool, slots: Pool, *, page_size: int, max_step_tokens: int) -> None:
        self.pages = pages
        self.slots = slots
        self.page_size = page_size
        self.max_step_tokens = max_step_tokens
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # in order of arrival
        self.num_preemptions = 0

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def abort(self, request: Request) -> None:
        """Take the request out, whatever it is doing, and free what it holds."""
        if request.status is Status.RUNNING:
            self.running.remove(request)
        elif request.status is Status.WAITING:
            self.waiting.remove(request)
        self._release(request)
        request.status = Status.FINISHED

    def end_thinking(self, request: Request) -> None:
        """Have the request's thinking closed with its next token."""
        if request.thought is not None:
            request.thought.end()

    def is_idle(self) -> bool:
        return not self.running and not self.waiting

    def schedule(self) -> Step:
        """The next step; empty only if there is nothing to do."""
        budget = self.max_step_tokens
        rows: list[StepRow] = []
        fresh: list[int] = []
        for request in self._generating_first():
            # An older row's growth may have preempted this one.
            if request.status is not Status.RUNNING or budget == 0:
                continue
            count = min(request.missing, budget)
            if self._grow(request, request.computed + count):
                rows.append(StepRow(request, request.computed, count))
                budget -= count
        rows = [row for row in rows if row.request.status is Status.RUNNING]
        while self.waiting and budget > 0:
            request = self.waiting[0]
            if not self._admit(request):
                break
            self.waiting.popleft()
            assert request.state_slot is not None
            fresh.append(request.state_slot)
            count = min(request.missing, budget)
            rows.append(StepRow(request, 0, count))
            budget -= count
        rows.sort(key=lambda row: row.count > 1)  # stable: order of arrival within each kind
        return Step(tuple(rows), tuple(fresh))

    def commit(self, step: Step, results: Sequence[RowResult]) -> Iterator[tuple[Request, TokenEvent]]:
        """Write the step's outcome into its requests, finish those that are done, and tell what happened."""
        for row, result in zip(step.rows, results, strict=True):
            request = row.request
            request.computed += row.count
            request.prompt_logprobs_told = max(request.prompt_logprobs_told, row.prompt_targets.stop)
            if result.error is not None:
                self._finish(request)
                yield request, TokenEvent(finish_reason="error", error=result.error)
                continue
            if result.token_id is None:
                if result.prompt_logprobs:
                    yield request, TokenEvent(prompt_logprobs=result.prompt_logprobs)
                continue
            token_id, thought = result.token_id, request.thought
            known = (token_id,) if thought is None else thought.take(token_id, result.rank)
            drawn = known == (token_id,)  # else thinking was closed in its place
            stops = drawn and not (thought and thought.is_open) and token_id in request.stop_token_ids
            stops = stops and request.num_generated >= request.sampling.min_tokens
            request.token_ids += known
            reason: FinishReason | None = None
            if stops:
                reason = "stop"
            elif len(request.token_ids) >= request.max_total:
                reason = "length"
            if reason is not None:
                self._finish(request)
            yield (
                request,
                TokenEvent(
                    token_ids=() if stops else known,
                    logprobs=() if result.logprob is None else (result.logprob,) if drawn else (None,) * len(known),
                    prompt_logprobs=result.prompt_logprobs,
                    finish_reason=reason,
                    stop_token_id=token_id if stops else None,
                    closed_by=thought.closed_by if thought else None,
                    repeats=thought is not None and thought.repeats,
                ),
            )

    def check(self) -> None:
        """Assert that the books of pages and slots match what the requests hold; run whenever the engine idles."""
        assert all(not request.pages and request.state_slot is None for request in self.waiting)
        self.pages.check(page for request in self.running for page in request.pages)
        self.slots.check(request.state_slot for request in self.running if request.state_slot is not None)

    def _generating_first(self) -> list[Request]:
        return sorted(self.running, key=lambda request: request.missing > 1)

    def _admit(self, request: Request) -> bool:
        """Start a waiting request if a slot and the pages of all its known tokens are free; never by preempting."""
        pages = self.pages.allocate(self._pages_for(len(request.token_ids)))
        if pages is None:
            return False
        slot = self.slots.allocate(1)
        if slot is None:
            self.pages.release(pages)
            return False
        request.pages, request.state_slot = pages, slot[0]
        request.status = Status.RUNNING
        self.running.append(request)
        return True

    def _grow(self, request: Request, tokens: int) -> bool:
        """Give the request pages for ``tokens`` tokens, preempting the youngest until they are there.

        False if the request itself was the youngest.
        """
        needed = self._pages_for(tokens) - len(request.pages)
        while needed > 0:
            pages = self.pages.allocate(needed)
            if pages is not None:
                request.pages += pages
                break
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is request:
                return False
        return True

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._release(request)
        request.status = Status.WAITING
        request.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.appendleft(request)

    def _finish(self, request: Request) -> None:
        self.running.remove(request)
        self._release(request)
        request.status = Status.FINISHED

    def _release(self, request: Request) -> None:
        self.pages.release(request.pages)
        request.pages = []
        if request.state_slot is not None:
            self.slots.release([request.state_slot])
            request.state_slot = None
        request.computed = 0
