"""An answer that is chosen from many samples: nothing is told before all is known, then it comes like any other.

The response tells in ``reasoning_strategy`` how it was chosen, and ``usage`` counts every sample. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from qwench.reason.checks import Command, read_check
from qwench.reason.course import Outcome
from qwench.reason.recipes import question, reason
from qwench.server.answer import Answer, Delta, Trail, finish_details, seen_tokens
from qwench.server.prepare import Considering, Prepared
from qwench.text.model import ModelText

if TYPE_CHECKING:
    from qwench.engine.client import EngineClient


class Considered(Answer):
    """Raises what the engine and the check refuse on construction; samples are drawn while ``deltas`` is read."""

    def __init__(
        self,
        client: EngineClient,
        text: ModelText,
        prepared: Prepared,
        considering: Considering,
        owner: str,
        checkers: Mapping[str, Command],
        trail: Trail | None = None,
    ) -> None:
        super().__init__(client, text, replace(prepared, prompts=()), owner, trail=trail)  # nothing is submitted yet
        self.prepared = prepared
        self._tokenizer = text.tokenizer
        task, wanted = considering.task, considering.check
        check = None if wanted is None else read_check(wanted, question(task.messages), checkers)
        self._task = replace(task, check=check, owner=owner)
        self._limit = self._task.limit(client)
        self._outcome: Outcome | None = None
        self._known = self.started

    async def _deltas(self, silence: float | None) -> AsyncGenerator[Delta | None]:
        """None whenever ``silence`` seconds have passed, then the whole answer at once."""
        work = asyncio.create_task(reason(self._client, self._tokenizer, self._task, self._limit))
        try:
            while not (await asyncio.wait({work}, timeout=silence))[0]:
                yield None
            self._outcome = work.result()
            self._known = self.clock()
            sample = self._outcome.sample
            if sample.reasoning and self.prepared.show_reasoning:
                yield Delta(0, "reasoning", sample.reasoning)
            if sample.content:
                yield Delta(0, "content", sample.content)
            details = finish_details(sample.reasoning_tokens, sample.closed_by, repeats=sample.repeats)
            yield Delta(0, "end", finish_reason=self._outcome.finish_reason, details=details)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    def usage(self) -> dict[str, object]:
        """Every token of every sample; prompts that samples share are counted once."""
        tokens, samples = self._told()["tokens"], self._told()["samples"]
        return {
            "prompt_tokens": tokens["prompt"],
            "completion_tokens": tokens["used"],
            "total_tokens": tokens["prompt"] + tokens["used"],
            "prompt_tokens_details": {"cached_tokens": tokens["cached"], **seen_tokens(self.prepared)},
            "completion_tokens_details": {"reasoning_tokens": sum(sample["reasoning_tokens"] for sample in samples)},
        }

    def timings(self) -> dict[str, object]:
        """Counts over all samples; there is no first token to tell reading from writing by."""
        tokens, seconds = self._told()["tokens"], self._known - self.started
        return {
            "cache_n": tokens["cached"],
            "prompt_n": tokens["prompt"] - tokens["cached"],
            "predicted_n": tokens["used"],
            "predicted_ms": round(1000 * seconds, 3),
            "predicted_per_second": round(tokens["used"] / seconds, 3) if seconds > 0 else 0.0,
        }

    def extension(self) -> dict[str, object]:
        return {**super().extension(), "reasoning_strategy": self._told()}

    def _told(self) -> dict[str, Any]:
        assert self._outcome is not None, "told before it was known"
        return self._outcome.report


def answer_to(
    client: EngineClient,
    text: ModelText,
    prepared: Prepared,
    owner: str = "",
    checkers: Mapping[str, Command] = MappingProxyType({}),
    trail: Trail | None = None,
) -> Answer:
    """The answer, submitted or ready to be considered. Blocks while a checker is tried. Raises what is refused."""
    if prepared.considering is None:
        return Answer(client, text, prepared, owner, trail=trail)
    return Considered(client, text, prepared, prepared.considering, owner, checkers, trail)
