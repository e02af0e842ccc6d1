"""Course: one question on its way through a strategy. Draws samples within the budget, has them checked, counts votes.

What the recipes share; each of them is only an order in which to draw. ``report`` is what is told of it afterwards.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

from qwench.reason.answers import answer_key
from qwench.reason.checks import Check, Verdict
from qwench.reason.samples import Ask, Drawing, Message, Sample, Sampler
from qwench.reason.strategy import Strategy
from qwench.reason.vote import Ballot, Tally, count, stays

CHECKERS = 4  # checks that run at once
Stopped = Literal["agreed", "passed", "samples", "budget"]


class Budget:
    """Tokens of all samples together. What a sample may take is set aside before it begins."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.spent = 0
        self.reserved = 0

    @property
    def left(self) -> int:
        return self.total - self.spent - self.reserved

    def shares(self, limits: Sequence[int], least: int) -> list[int]:
        """What each of as many as possible may take: its limit or an equal share, but no less than ``least`` unless
        its limit is. Fewer begin rather than all too short."""
        for number in range(len(limits), 0, -1):
            share = self.left // number
            if all(share >= min(limit, least) for limit in limits[:number]):
                granted = [min(limit, share) for limit in limits[:number]]
                self.reserved += sum(granted)
                return granted
        return []

    def settle(self, granted: int, spent: int) -> None:
        assert 0 <= spent <= granted <= self.reserved, f"{spent} tokens were spent where {granted} were set aside"
        self.reserved -= granted
        self.spent += spent


@dataclass(frozen=True)
class Outcome:
    """The answer that was chosen, and how: the report is JSON."""

    sample: Sample
    report: dict[str, Any]

    @property
    def finish_reason(self) -> Literal["stop", "length"]:
        return "stop" if self.sample.finish_reason == "stop" else "length"


class Course:
    """One run of a strategy. ``stopped`` is why no more was drawn, ``floor`` the confidence below which none votes."""

    def __init__(
        self, sampler: Sampler, strategy: Strategy, messages: Sequence[Message], limit: int, check: Check | None
    ) -> None:
        self.sampler = sampler
        self.strategy = strategy
        self.messages = messages
        self.limit = limit
        self.at_most = strategy.at_most(limit)
        self.budget = Budget(self.at_most)
        self.check = check
        self.samples: list[Sample] = []
        self.verdicts: dict[int, Verdict] = {}
        self.replaced: set[int] = set()  # answers that were corrected
        self.floor = -math.inf
        self.stopped: Stopped = "samples"
        self._pool = ThreadPoolExecutor(CHECKERS, "qwench-check")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def draw(self, asks: Sequence[Ask], *, until_passed: bool = False) -> list[Sample]:
        """Samples of ``asks``, fewer or shorter where the budget ends; each complete one is checked as it comes.

        With ``until_passed`` the others stop as soon as one has passed.
        """
        limits = [ask.limit for ask in asks]
        granted = self.budget.shares(limits, self._least())
        if not granted and not self.samples:  # too little for one as long as it may be: one as long as there is
            granted = self.budget.shares(limits[:1], 1)
        if not granted:
            self.stopped = "budget"
            return []
        asks = [replace(ask, limit=limit) for ask, limit in zip(asks, granted, strict=False)]
        drawings: list[Drawing] = []
        try:
            drawings = await self.sampler.begin(asks)

            async def finish(drawing: Drawing) -> None:
                sample = await drawing.read()
                if self.check and sample.whole and (await self._verdict(sample)).passed and until_passed:
                    for other in drawings:
                        other.stop()

            await _all([finish(drawing) for drawing in drawings])
        finally:
            for drawing in drawings:
                drawing.stop()
            self.budget.settle(sum(granted), sum(drawing.sample.tokens for drawing in drawings))
        samples = [drawing.sample for drawing in drawings]
        self.samples += samples
        return samples

    async def _verdict(self, sample: Sample) -> Verdict:
        assert self.check is not None
        loop = asyncio.get_running_loop()
        self.verdicts[sample.index] = verdict = await loop.run_in_executor(self._pool, self.check, sample.content)
        return verdict

    def passed(self, sample: Sample) -> bool:
        """Whether nothing speaks against ``sample``: it is complete and, where there is a check, passed it."""
        return sample.whole and (self.check is None or self.verdicts[sample.index].passed)

    def ballots(self) -> list[Ballot]:
        """One per sample; those that are unsure, cut, failed or corrected abstain."""
        return [Ballot(self.key(sample) if self.counts(sample) else None, sample.mean) for sample in self.samples]

    def counts(self, sample: Sample) -> bool:
        return self.passed(sample) and sample.confidence >= self.floor and sample.index not in self.replaced

    def key(self, sample: Sample) -> str | None:
        return answer_key(sample.content, self.strategy.answer)

    def tallies(self) -> list[Tally]:
        return count(self.ballots())

    def outcome(self) -> Outcome:
        """The leader's surest sample; without votes the surest that is complete."""
        tallies = self.tallies()
        agreed = [s for s in self.samples if self.counts(s) and tallies and self.key(s) == tallies[0].key]
        whole = [sample for sample in self.samples if sample.whole]
        if agreed or whole:
            chosen = max(agreed or whole, key=lambda sample: sample.mean)
        else:  # what came farthest
            chosen = max(self.samples, key=lambda sample: (bool(sample.content.strip()), len(sample.token_ids)))
        return Outcome(chosen, self._report(chosen, tallies))

    def _report(self, chosen: Sample, tallies: Sequence[Tally]) -> dict[str, Any]:
        remaining = max(0, self.strategy.samples - len(self.samples)) if self.stopped == "agreed" else 0
        report: dict[str, Any] = {
            "method": self.strategy.method,
            "stopped": self.stopped,
            "chosen": chosen.index,
            "answer": self.key(chosen),
            "passed": self.passed(chosen) if self.check else None,
            "votes": [{"answer": tally.key, "votes": tally.count} for tally in tallies],
            "samples": [self._entry(sample) for sample in self.samples],
            "tokens": {
                "at_most": self.at_most,
                "used": self.budget.spent,
                "prompt": self.sampler.prompt_tokens,
                "cached": self.sampler.cached_tokens,
            },
        }
        if self.strategy.method == "vote":
            report["stays"] = round(stays([tally.count for tally in tallies], remaining), 4)
        return report

    def _entry(self, sample: Sample) -> dict[str, Any]:
        verdict = self.verdicts.get(sample.index)
        return {
            "index": sample.index,
            "tokens": sample.tokens,
            "reasoning_tokens": sample.reasoning_tokens,
            "finish_reason": sample.finish_reason,
            "answer": self.key(sample) if sample.content else None,
            "confidence": round(sample.confidence, 4) if math.isfinite(sample.confidence) else None,
            "counted": self.counts(sample),
            "check": None if verdict is None else {"passed": verdict.passed, "output": verdict.words[-500:]},
        }

    def _least(self) -> int:
        """A share below this is not worth beginning: twice the longest complete answer, since thoughts are cut in time
        to leave room for what follows. While there is none, the whole of what an answer may take."""
        return 2 * max((len(sample.token_ids) for sample in self.samples if sample.whole), default=self.limit)


async def _all(work: Sequence[Awaitable[None]]) -> None:
    """All of ``work``; the first failure ends the rest and is raised."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


Recipe = Callable[[Course], Awaitable[None]]
