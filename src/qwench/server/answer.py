"""The answer to one request: the engine's token events of all its choices, turned into one stream of deltas.

Every shape of response (one JSON body or a stream of chunks, chat or completion) is folded from this stream, so
streaming and not streaming cannot differ. Knows no HTTP and no response format.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from qwench.engine.request import TokenEvent, TokenLogprob
from qwench.errors import EngineUnavailable, QwenchError
from qwench.media.patches import Media
from qwench.server.errors import error_body
from qwench.server.prepare import Prepared, Prompt
from qwench.text.model import ModelText
from qwench.text.reading import EndReason, Reading, named_failure
from qwench.text.stream import TOOL_CALL, Call, Piece

if TYPE_CHECKING:
    from qwench.engine.client import EngineClient, Generation

logger = logging.getLogger(__name__)
Clock = Callable[[], float]
Watch = Callable[["Answer", BaseException | None], None]


@dataclass(frozen=True)
class Trail:
    """How an answer came to be asked for: when its request ``arrived`` by the clock, which trace that belongs to (its
    ``traceparent`` header), and the ``id`` of the response. Every one of ``watches`` is told when the answer is over,
    and of what it failed with, if it did.
    """

    arrived: float
    traceparent: str = ""
    id: str = ""
    watches: tuple[Watch, ...] = ()


@dataclass(frozen=True)
class Delta:
    """What was added to choice ``index``. An ``echo`` is the prompt itself; ``end`` carries the finish reason. Of a
    ``tool_call``, ``text`` is part of its arguments.

    ``logprobs`` belong to the content tokens whose text this delta completes (to the prompt's, in an ``echo``).
    ``details`` come with the end: how the thinking went.
    """

    index: int
    kind: Literal["echo", "reasoning", "content", "tool_call", "end"]
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: EndReason | None = None
    details: Mapping[str, object] | None = None
    call: Call | None = None


class Choice:
    """One choice: reads its generation's events and tells what they add."""

    def __init__(self, index: int, prompt: Prompt, text: ModelText, prepared: Prepared, generation: Generation) -> None:
        self.index = index
        self.prompt = prompt
        self.generation = generation
        self.reading = Reading(
            text.tokenizer,
            prepared.sampling,
            thinking_open=prepared.thinking_open,
            split_thinking=prepared.split_thinking,
            tools=prepared.tools,
            call_id=None if prepared.guide is None else text.tokenizer.id_of(TOOL_CALL),
        )
        self.begun: float | None = None  # by the answer's clock: when the engine had read the first of its prompt
        self.first: float | None = None  # its first token
        self.last: float | None = None
        self._tokenizer = text.tokenizer
        self._show_reasoning = prepared.show_reasoning
        self._silent = prepared.silent
        self._echo_due = prompt.echo is not None

    @property
    def finished(self) -> bool:
        return self.reading.finish_reason is not None

    @property
    def prompt_text(self) -> str:
        """The prompt as the model reads it."""
        return self._tokenizer.decode(self.prompt.token_ids, skip_special_tokens=False)

    @property
    def num_tokens(self) -> int:
        """How many tokens are told."""
        return 0 if self._silent else self.reading.num_tokens

    def note(self, event: TokenEvent, now: float) -> None:
        """Remember when what came."""
        if event.reuse is not None:
            self.begun = self.begun or now
        if event.token_ids:
            self.first, self.last = self.first or now, now

    def take(self, event: TokenEvent) -> list[Delta]:
        """What ``event`` adds. Raises QwenchError when the engine gave this choice up."""
        if event.finish_reason == "error":
            logger.error("the engine failed on a request: %s", event.error)
            told = "The engine failed on this request and dropped it; the server's log says why."
            raise named_failure(event) or QwenchError(told)
        if event.finish_reason == "abort":
            raise EngineUnavailable("The engine stopped before the answer was complete; send the request again.")
        reading, deltas = self.reading, list[Delta]()
        pieces = reading.take(event)
        if self._echo_due and (event.token_ids or self.finished):
            self._echo_due = False
            deltas.append(Delta(self.index, "echo", self.prompt.echo or "", tuple(reading.prompt_logprobs)))
        return deltas + self._deltas(pieces)

    def give_up(self) -> list[Delta]:
        """The call that could not be read is content."""
        return self._deltas(self.reading.give_up())

    def _deltas(self, pieces: Iterable[Piece]) -> list[Delta]:
        reading, deltas = self.reading, list[Delta]()
        for piece in () if self._silent else pieces:
            if piece.kind != "reasoning" or self._show_reasoning:
                deltas.append(Delta(self.index, piece.kind, piece.text, piece.logprobs, call=piece.call))
        if self._silent and reading.finish_reason is not None:
            return [*deltas, Delta(self.index, "end", finish_reason="length")]
        if reading.finish_reason is not None:
            details = finish_details(reading.reasoning_tokens, reading.closed_by, repeats=reading.repeats)
            if reading.warnings:
                logger.warning("a tool call was mended or given up: %s", "; ".join(reading.warnings))
                details["warnings"] = list(reading.warnings)
            deltas.append(Delta(self.index, "end", "", tuple(reading.untold), reading.finish_reason, details))
        return deltas


def finish_details(thinking_tokens: int, closed_by: str | None, *, repeats: bool) -> dict[str, object]:
    """How the thinking of an answer went, as the response tells it."""
    return {"thinking_tokens": thinking_tokens, "closed_by": closed_by, "answer_repeats": repeats}


class Answer:
    """All choices of one request, submitted on construction: choice ``p * n + i`` is answer i to prompt p.

    Raises what the engine's ``submit`` raises, with nothing left running. Whoever holds an Answer calls ``abort``
    when done with it, in whatever way it ended.
    """

    def __init__(
        self,
        client: EngineClient,
        text: ModelText,
        prepared: Prepared,
        owner: str = "",
        clock: Clock = time.monotonic,
        trail: Trail | None = None,
    ) -> None:
        self.prepared = prepared
        self.choices: list[Choice] = []
        self.reuse: list[str] = []  # one sentence for each prompt, once it is known
        self.clock = clock
        self.started = clock()
        self.trail = trail or Trail(self.started)
        self._client = client
        self.owner = owner
        sampling = prepared.sampling
        try:
            for prompt in prepared.prompts:
                each = [sampling.for_choice(number) for number in range(sampling.n)]
                generations = client.submit_choices(
                    prompt.token_ids,
                    each,
                    thinking=prepared.rules,
                    marks=prompt.layout.marks,
                    background=prepared.background,
                    owner=owner,
                    media=prompt.media,
                    guide=prepared.guide,
                )
                for generation in generations:
                    self.choices.append(Choice(len(self.choices), prompt, text, prepared, generation))
        except QwenchError:
            self.abort()
            raise

    def abort(self) -> None:
        """Free everything the engine still holds for this answer; harmless when it is complete."""
        for choice in self.choices:
            choice.generation.abort()

    def end_thinking(self) -> bool:
        """Have every choice that still runs stop thinking and answer. False if none runs any more."""
        running = [choice for choice in self.choices if not choice.finished]
        for choice in running:
            choice.generation.end_thinking()
        return bool(running)

    def prompt_progress(self) -> tuple[int, int]:
        """How many prompt tokens are read (or were known) by now, and how many there are."""
        done, n = 0, self.prepared.sampling.n
        for first in range(0, len(self.choices), n):  # one of the answers to a prompt reads it for all
            done += max(choice.generation.prompt_done for choice in self.choices[first : first + n])
        return done, sum(len(prompt.token_ids) for prompt in self.prepared.prompts)

    async def deltas(self, silence: float | None = None) -> AsyncGenerator[Delta | None]:
        """The deltas of all choices as they come; None whenever ``silence`` seconds passed without one."""
        failure: BaseException | None = None
        try:
            async with aclosing(self._deltas(silence)) as deltas:
                async for delta in deltas:
                    yield delta
        except BaseException as error:
            failure = error
            raise
        finally:
            for watch in self.trail.watches:
                watch(self, failure)

    async def _deltas(self, silence: float | None) -> AsyncGenerator[Delta | None]:
        queue: asyncio.Queue[Delta | asyncio.Task[None]] = asyncio.Queue()
        pumps = [asyncio.create_task(self._pump(choice, queue)) for choice in self.choices]
        for pump in pumps:
            pump.add_done_callback(queue.put_nowait)
        running = len(pumps)
        try:
            while running:
                try:
                    async with asyncio.timeout(silence):
                        item = await queue.get()
                except TimeoutError:
                    yield None
                    continue
                if isinstance(item, Delta):
                    yield item
                else:
                    running -= 1
                    item.result()  # a failed choice fails the whole answer
        finally:
            self.abort()
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, choice: Choice, queue: asyncio.Queue[Delta | asyncio.Task[None]]) -> None:
        while await self._follow(choice, queue):
            pass

    async def _follow(self, choice: Choice, queue: asyncio.Queue[Delta | asyncio.Task[None]]) -> bool:
        """Read the choice's generation to its end; True if another one goes on from it."""
        async for event in choice.generation:
            choice.note(event, self.clock())
            first = choice.reading.reuse is None and choice.index % self.prepared.sampling.n == 0
            if event.reuse is not None and first:
                self.reuse.append(choice.prompt.layout.told(event.reuse))
                logger.info("%s", self.reuse[-1])
            if event.finish_reason == "error" and self._client.status().state != "ready":
                break
            for delta in choice.take(event):
                queue.put_nowait(delta)
            if choice.reading.lost:
                if event.finish_reason != "length" and self._write_again(choice):  # cut short, it was no mistake
                    return True
                for delta in choice.give_up():
                    queue.put_nowait(delta)
            if choice.finished:
                choice.generation.abort()  # a stop string is our finding; the engine would go on
                return False
        raise EngineUnavailable("The engine stopped before the answer was complete; send the request again.")

    def _write_again(self, choice: Choice) -> bool:
        """Have the call that could not be read written anew, by the grammar from its first token on, if that can be."""
        prepared, begun = self.prepared, choice.reading.anew()
        sampling, guide = prepared.sampling.for_choice(choice.index % prepared.sampling.n), copy(prepared.guide)
        left = None if sampling.max_tokens is None else sampling.max_tokens - len(begun)
        if guide is None or guide.accept(begun[-1:]) or guide.mask is None or (left is not None and left < 1):
            return False
        try:
            again = self._client.submit(
                (*choice.prompt.token_ids, *begun),
                replace(sampling, max_tokens=left, min_tokens=0),
                marks=choice.prompt.layout.marks,
                background=prepared.background,
                owner=self.owner,
                media=choice.prompt.media,
                guide=guide,
            )
        except QwenchError as error:
            logger.info("a call that could not be read is not tried again: %s", error)
            return False
        choice.generation.abort()
        choice.generation = again
        choice.reading.write_again()
        return True

    @property
    def first_token(self) -> float | None:
        """When the first token of any choice came."""
        return min((choice.first for choice in self.choices if choice.first is not None), default=None)

    @property
    def last_token(self) -> float | None:
        return max((choice.last for choice in self.choices if choice.last is not None), default=None)

    def usage(self) -> dict[str, object]:
        """OpenAI's ``usage``: each prompt counts once, whatever n; end-of-answer ids are not counted."""
        prompt_tokens = sum(len(prompt.token_ids) for prompt in self.prepared.prompts)
        completion_tokens = sum(choice.num_tokens for choice in self.choices)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens(), **seen_tokens(self.prepared)},
            "completion_tokens_details": {
                "reasoning_tokens": sum(choice.reading.reasoning_tokens for choice in self.choices)
            },
        }

    def timings(self) -> dict[str, object]:
        """Under llama.cpp's names: counts, milliseconds, rates. Prompt time runs from submission to the first token."""
        cached = self.cached_tokens()
        read = sum(len(prompt.token_ids) for prompt in self.prepared.prompts) - cached
        told = sum(choice.num_tokens for choice in self.choices)
        first, last = self.first_token or self.started, self.last_token or self.started
        reading, telling = 1000 * (first - self.started), 1000 * (last - first)
        return {
            "cache_n": cached,
            "prompt_n": read,
            "prompt_ms": round(reading, 3),
            "prompt_per_second": _rate(read, reading),
            "predicted_n": told,
            "predicted_ms": round(telling, 3),
            "predicted_per_second": _rate(told - 1, telling),  # the first token came with the prompt
        }

    def extension(self) -> dict[str, object]:
        """What the response tells beyond OpenAI's fields: how what was shown came to be seen."""
        seen = [span.media for prompt in self.prepared.prompts for span in prompt.media]
        return {"media": [told_of(media) for media in seen]} if seen else {}

    def cached_tokens(self) -> int:
        """Prompt tokens that were known already."""
        return sum(choice.reading.cached_tokens for choice in self.choices[:: self.prepared.sampling.n])

    def written_tokens(self) -> int:
        """Prompt tokens that were read anew and are kept because the client marked their end."""
        firsts = self.choices[:: self.prepared.sampling.n]
        return sum(max(0, max(first.prompt.layout.orders, default=0) - first.reading.cached_tokens) for first in firsts)


def seen_tokens(prepared: Prepared) -> dict[str, int]:
    """How many of the prompts' tokens are pictures and videos, if any are."""
    seen = [span.media for prompt in prepared.prompts for span in prompt.media]
    tokens = {kind: sum(media.tokens for media in seen if media.kind == kind) for kind in ("image", "video")}
    return {f"{kind}_tokens": number for kind, number in tokens.items() if seen}


def told_of(media: Media) -> dict[str, object]:
    """What became of one picture or video: sizes are width and height in pixels."""
    told: dict[str, object] = {"kind": media.kind, "tokens": media.tokens}
    told |= {"original_size": list(media.original), "seen_size": list(media.size)}
    return told | ({"seconds": list(media.seconds)} if media.kind == "video" else {})


def _rate(count: int, milliseconds: float) -> float:
    return round(1000 * count / milliseconds, 3) if count > 0 and milliseconds > 0 else 0.0


@dataclass(frozen=True)
class Head:
    """What every body and chunk of one response repeats; ``created`` is in seconds since 1970."""

    id: str
    created: int
    model: str
    fingerprint: str


class Format(ABC):
    """How a kind of response is written: chunk by chunk, or as one body folded from the same deltas.

    ``named``: each event of a stream bears its type as its name; ``done``: a last line says that nothing follows.
    ``framed``: a stream is of events, else of lines.
    """

    named = False
    done = True
    framed = True

    def opening(self) -> list[dict[str, object]]:
        """What a stream begins with, when nothing of the answer is known yet."""
        return []

    @abstractmethod
    def chunks(self, delta: Delta) -> list[dict[str, object]]: ...

    def pulse(self) -> list[dict[str, object]]:
        """What keeps a silent stream alive, for clients whose patience comments do not reset."""
        return []

    def closing(self) -> list[dict[str, object]]:
        return []

    def failure(self, error: QwenchError) -> list[dict[str, object]]:
        """How a stream that has begun tells that its answer will not be complete."""
        return [error_body(error)]

    @abstractmethod
    def add(self, delta: Delta) -> None: ...

    @abstractmethod
    def body(self) -> dict[str, object]: ...


async def whole(answer: Answer, form: Format) -> dict[str, object]:
    """The complete answer as one body. Raises QwenchError."""
    async with aclosing(answer.deltas()) as deltas:
        async for delta in deltas:
            if delta is not None:
                form.add(delta)
    return form.body()
