"""Carries one request to whoever the router chose, and to whoever stands in: attempts, retries, fallbacks, checks.

Every attempt is one row of the ledger, however it ends, and the client hears that its answer is complete only after
that row is committed. Until the first word of an answer another option may take over; then there is no way back.
Knows no HTTP towards the client, and leaves choosing to the router.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from qwench.errors import Overloaded, QwenchError
from qwench.gateway.budgets import Budgets
from qwench.gateway.checks import check_answer
from qwench.gateway.conversations import Conversations
from qwench.gateway.faces import Answer
from qwench.gateway.ledger import Ledger, Running
from qwench.gateway.posterior import Outcomes
from qwench.gateway.prices import FREE, Cost, Prices
from qwench.gateway.providers import Dialect, Malformed, ToldFailure, dialect
from qwench.gateway.records import Attempt, Ending, Judge, Kind, Outcome, Receipt, Status, Task, Verdict
from qwench.gateway.router import Decision
from qwench.gateway.tiers import Cascade, Option
from qwench.gateway.upstream import MOST_WAIT, Event, Upstream, UpstreamFailure
from qwench.gateway.usage import NOTHING, SILENT, Unknown, Usage
from qwench.gateway.wanted import Wanted

logger = logging.getLogger(__name__)
Told = TypeVar("Told")
Found = TypeVar("Found")

BACKOFF = 0.25  # seconds before the first retry, at most; doubled each time
SILENCE = 10.0  # seconds until a client is told that somebody is at work
MOST_CHARACTERS = 60  # of one token, on average over an answer; whose usage says more is not believed


@dataclass
class Job:
    """One request on its way. ``ends``: when it must be over, by the loop's clock. The rest fills up as it goes."""

    wanted: Wanted
    decision: Decision
    task: Task
    ends: float
    used: Option
    warnings: list[str] = field(default_factory=list)
    attempts: int = 0
    spent: float = 0.0
    unknown: int = 0  # attempts whose cost nobody knows
    last: str = ""  # the id of the newest attempt

    def receipt(self, currency: str) -> dict[str, Any]:
        """What the response says of how it came about."""
        decision = self.decision
        return {
            "task": self.task.id,
            "tier": self.used.tier.name,
            "option": self.used.name,
            "class": decision.task.task.name,
            "data": str(decision.data.data),
            "because": decision.because,
            "attempts": self.attempts,
            "cost": None if self.unknown else self.spent,
            "currency": currency,
            **({"unknown_costs": self.unknown, "known_cost": self.spent} if self.unknown else {}),
            **({"shadow": decision.shadow} if decision.shadow else {}),
        }


@dataclass(frozen=True)
class Piece:
    """Of a stream: an event in the words of ``spoken`` with its chunks; ``substance``: there is no way back from it."""

    event: Event
    chunks: list[dict[str, Any]]
    dialect: Dialect
    substance: bool = True


@dataclass(frozen=True)
class Books:
    """Where it is written down. ``keeps``: also what was said, apart from the accounts."""

    ledger: Ledger
    prices: Prices
    budgets: Budgets
    outcomes: Outcomes
    conversations: Conversations
    now: Callable[[], float]  # seconds since 1970
    keeps: bool = False


class Courier:
    def __init__(self, upstreams: Mapping[str, Upstream], books: Books, rng: random.Random) -> None:
        self._upstreams, self._books, self._rng = upstreams, books, rng

    async def whole(self, job: Job) -> Answer:
        """The answer, after it was checked where the decision wants that. Raises what the last attempt failed with."""
        cascade = job.decision.cascade
        answer = await self._anyone(job)
        if cascade is None or job.used != cascade.first or await self._accepted(job, cascade, answer):
            return answer
        job.decision = replace(job.decision, option=cascade.then, cascade=None, fallbacks=())
        try:
            second = await self._anyone(job)
        except UpstreamFailure:
            job.used = cascade.first
            job.warnings.append(f"the check refused this answer, and {cascade.then.name} could not give another")
            return answer
        await self._accepted(job, cascade, second)
        return second

    async def _accepted(self, job: Job, cascade: Cascade, answer: Answer) -> bool:
        """What the check says of the newest attempt; the ledger hears of it."""
        attempt, kind = job.last, cascade.check.partition(":")[0]
        judged = kind == "judge"
        accepted = (
            await self._judged(job, cascade, answer) if judged else check_answer(cascade.check, answer.completion)
        )
        verdict = Verdict.ACCEPTED if accepted else Verdict.REJECTED
        judge = Judge.JUDGE if judged else Judge.VERIFIER
        self._books.ledger.outcome(Outcome(job.task.id, verdict, judge, attempt, kind))
        return accepted

    async def _anyone(self, job: Job) -> Answer:
        async def once(option: Option) -> AsyncGenerator[Answer]:
            yield await self._once(job, option, job.wanted)

        async with aclosing(self._tried(job, once)) as answers:
            async for answer in answers:
                return answer
        raise AssertionError("an attempt ends with an answer or a failure")

    async def stream(self, job: Job) -> AsyncGenerator[Piece]:
        """The pieces as they come; the last attempt's row is committed when it ends. Raises UpstreamFailure."""
        async with aclosing(self._tried(job, lambda option: self._flow(job, option))) as pieces:
            async for piece in pieces:
                yield piece

    async def _tried(self, job: Job, go: Callable[[Option], AsyncGenerator[Told]]) -> AsyncGenerator[Told]:
        """What the first option yields that yields anything; retries, then the others.

        Raises the last failure, unless one upstream said what is wrong with the request: that helps more.
        """
        failure: UpstreamFailure | None = None
        refusal: UpstreamFailure | None = None
        for option in (job.decision.option, *job.decision.fallbacks):
            upstream = self._upstreams[option.tier.name]
            for turn in range(1 + option.tier.patience.retries):
                if turn and not await self._waited(turn, failure, job.ends):
                    break
                if turn and upstream.breaker.resting:
                    break
                job.used, begun = option, False
                try:
                    async with aclosing(go(option)) as told:
                        async for each in told:
                            begun = True
                            yield each
                    return
                except UpstreamFailure as error:
                    failure = error
                    refusal = error if error.status == 400 else refusal
                    logger.info("%s: %s", option.name, error.message)
                    if begun or asyncio.get_running_loop().time() >= job.ends:
                        raise
                    if not error.again:
                        break
        assert failure is not None
        raise _final(refusal or failure)

    async def _waited(self, turn: int, failure: UpstreamFailure | None, ends: float) -> bool:
        """Between two tries: some time, drawn anew for each so that clients do not come back together."""
        wait = self._rng.random() * BACKOFF * 2 ** (turn - 1)
        if failure is not None and failure.wait is not None:
            if failure.wait > MOST_WAIT:
                return False
            wait += failure.wait
        if asyncio.get_running_loop().time() + wait >= ends:
            return False
        await asyncio.sleep(wait)
        return True

    async def _once(self, job: Job, option: Option, wanted: Wanted, kind: Kind = Kind.GENERATE) -> Answer:
        """One attempt at a whole answer."""
        upstream, speaks = self._upstreams[option.tier.name], dialect(option, keeps=self._books.keeps)
        with self._attempt(job, option, kind, speaks) as running:
            call, warnings = speaks.call(option, wanted, self._ends(job, option))
            told = await upstream.whole(call)
            completion = self._read(upstream, speaks.completion, told)
            done = running.finish(wanted)
        job.warnings += warnings
        await asyncio.wrap_future(done)
        return Answer(told, speaks.face, completion)

    async def _flow(self, job: Job, option: Option) -> AsyncGenerator[Piece]:
        """One attempt as a stream. What has no substance is held back until something has, or the silence is long."""
        upstream, speaks = self._upstreams[option.tier.name], dialect(option, keeps=self._books.keeps)
        clock = asyncio.get_running_loop().time
        with self._attempt(job, option, Kind.GENERATE, speaks) as running:
            call, warnings = speaks.call(option, job.wanted, self._ends(job, option))
            held: list[Piece] = []
            patient_until, open_ = clock() + SILENCE, False
            async with aclosing(upstream.events(call)) as events:
                async for event in events:
                    chunks = self._read(upstream, speaks.chunks, event)
                    piece = Piece(event, chunks, speaks, speaks.reading.begun)
                    running.heard()
                    if open_ or piece.substance or clock() > patient_until:
                        for each in (*held, piece):
                            yield each
                        held, open_ = [], True
                        job.warnings += warnings
                        warnings = []
                    elif event.name != "comment":
                        held.append(piece)
            if not speaks.reading.whole:
                raise upstream.failure("stopped in the middle", "half_an_answer", again=True)
            done = running.finish(job.wanted)
        await asyncio.wrap_future(done)

    async def _judged(self, job: Job, cascade: Cascade, answer: Answer) -> bool:
        """Whether another model finds the answer right. What it costs is the task's; no verdict is no acceptance."""
        judge = next(each for each in job.decision.checked if each.cascade == cascade).judge
        assert judge is not None
        wanted = _question(job.wanted, answer.completion)
        try:
            told = await self._once(job, judge, wanted, Kind.JUDGE)
        except UpstreamFailure:
            return False
        said = str(((told.completion["choices"][0].get("message") or {}).get("content")) or "")
        return said.strip().lower().startswith("yes")

    @staticmethod
    def _ends(job: Job, option: Option) -> float:
        return min(job.ends, asyncio.get_running_loop().time() + option.tier.patience.total)

    @staticmethod
    def _read(upstream: Upstream, read: Callable[[Told], Found], told: Told) -> Found:
        try:
            return read(told)
        except Malformed:
            raise upstream.failure("sent what is no answer", "malformed", again=True) from None
        except ToldFailure as error:
            reason = upstream.clean(str(error)).rstrip(".")
            raise upstream.failure(f"failed: {reason}", "told_failure", again=True) from None

    @contextmanager
    def _attempt(self, job: Job, option: Option, kind: Kind, speaks: Dialect) -> Iterator[_Clocked]:
        """Around one attempt: whatever happens inside, exactly one row says how it ended."""
        decision = job.decision
        attempt = Attempt(
            kind,
            option.tier.name,
            option.tier.provider,
            option.model,
            option.told,
            option.recipe,
            job.last,
            {} if job.attempts else brief(decision),
        )
        job.attempts, job.last = job.attempts + 1, attempt.id
        breaker = self._upstreams[option.tier.name].breaker
        with self._books.ledger.attempt(job.task, attempt) as running:
            clocked = _Clocked(self, job, option, speaks, running)
            try:
                yield clocked
            except UpstreamFailure as error:
                # Who says that a request is wrong, or that it has too much to do, is well.
                breaker.note(ok=error.status in (400, 429))
                clocked.fail(Status.FAILED, error.kind, reached=error.reached)
                raise
            except (asyncio.CancelledError, GeneratorExit):
                clocked.fail(Status.CANCELLED, "cancelled")
                raise
            breaker.note(ok=True)
            if kind is Kind.GENERATE:
                self._books.conversations.note(job.wanted.signals, option.name, decision.task.task.name)

    def settle(self, job: Job, option: Option, ending: Ending, running: Running) -> Future[Receipt]:
        """Write the row, and count what it cost. Returns the ledger's future."""
        cost = ending.cost.amount
        known = not isinstance(cost, Unknown)
        if known:
            job.spent += float(cost)
        else:
            job.unknown += 1
        self._books.budgets.spend(job.task.key, float(cost) if known else None)
        if ending.status is Status.COMPLETED:
            output = ending.usage.output
            tokens = None if isinstance(output, Unknown) else float(output)
            self._books.outcomes.note(job.decision.task.task.name, option, tokens, ending.took or 0.0)
        return running.end(ending)

    def contents(self, wanted: Wanted, words: Mapping[str, list[str]]) -> dict[str, str]:
        """What is kept of a request and its answer, where anything is."""
        if not self._books.keeps:
            return {}
        asked = json.dumps(wanted.body, ensure_ascii=False)
        return {"request": asked, **{kind: "".join(said) for kind, said in words.items()}}

    def charge(self, option: Option, usage: Usage) -> Cost:
        return self._books.prices.charge(option.tier.provider, option.model, usage, self._books.now())


class _Clocked:
    """A running attempt with its times."""

    def __init__(self, courier: Courier, job: Job, option: Option, speaks: Dialect, running: Running) -> None:
        self._courier, self._job, self._option, self._speaks, self._running = courier, job, option, speaks, running
        self._clock = asyncio.get_running_loop().time
        self._began = self._clock()
        self._first: float | None = None

    def heard(self) -> None:
        if self._first is None and self._speaks.reading.begun:
            self._first = self._clock() - self._began

    def finish(self, wanted: Wanted) -> Future[Receipt]:
        reading = self._speaks.reading
        usage = believed(self._speaks.usage(), reading.characters)
        cost = self._courier.charge(self._option, usage)
        ending = Ending(
            Status.COMPLETED,
            usage,
            cost,
            reading.stop,
            first=self._first,
            took=self._clock() - self._began,
            contents=self._courier.contents(wanted, reading.words),
        )
        return self._courier.settle(self._job, self._option, ending, self._running)

    def fail(self, status: Status, kind: str, *, reached: bool = True) -> None:
        """What a model may have worked for may cost something that nobody tells."""
        usage, cost = (SILENT, self._courier.charge(self._option, SILENT)) if reached else (NOTHING, FREE)
        took = self._clock() - self._began
        ending = Ending(status, usage, cost, error=kind, first=self._first, took=took)
        self._courier.settle(self._job, self._option, ending, self._running)


def believed(usage: Usage, characters: int) -> Usage:
    """``usage``, unless the answer itself contradicts it: then its counts are as good as not reported."""
    output = usage.output
    if not isinstance(output, Unknown) and characters > MOST_CHARACTERS * max(output, 1):
        return replace(usage, input=Unknown.NOT_REPORTED, output=Unknown.NOT_REPORTED)
    return usage


def brief(decision: Decision) -> dict[str, Any]:
    """A decision as the ledger keeps it: numbers and names, no words of the prompt."""
    return {
        "option": decision.option.name,
        "because": decision.because,
        "class": decision.task.task.name,
        **({"shares": _rounded(decision)} if decision.task.shares else {}),
        "data": str(decision.data.data),
        "value": decision.value,
        "weighed": {
            each.option.name: [round(each.chance.mean, 4), each.chance.seen, each.cost, each.gain]
            for each in decision.weighed
        },
        "shut": {each.option.name: each.gate for each in decision.shut},
        **({"cascade": decision.cascade.name} if decision.cascade else {}),
        **({"shadow": decision.shadow} if decision.shadow else {}),
    }


def _rounded(decision: Decision) -> dict[str, float]:
    return {task.name: round(share, 4) for task, share in decision.task.shares}


def _question(wanted: Wanted, completion: Mapping[str, Any]) -> Wanted:
    said = str((completion["choices"][0].get("message") or {}).get("content") or "")
    asked = (
        "Is the answer below right and complete? Reply with yes or no.\n\n"
        f"Request:\n{wanted.signals.said}\n\nAnswer:\n{said}"
    )
    chat = {"messages": [{"role": "user", "content": asked}], "max_tokens": 16}
    return Wanted("openai", chat, chat, replace(wanted.signals, stream=False, asked=None))


def _final(failure: UpstreamFailure) -> QwenchError:
    """The last failure as the client hears it: what is only busy may be asked again."""
    if failure.status == 429:
        return Overloaded(failure.message, retry_after=failure.wait or 0.0, code="upstream_busy")
    return failure
