"""The engine's face for every thread and event loop: start, submit, abort, iterate. The only place threads meet.

Importing this file loads nothing heavy; ``start`` does, on the engine's own thread. Token ids only.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextvars import copy_context
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Literal

from qwench.config import EngineConfig
from qwench.device import available_memory, resident_bytes
from qwench.engine.request import Guide, Marks, MediaSpan, Request, SamplingParams, Saved, TokenEvent, Vocabulary
from qwench.engine.sight import NOTHING, Sight
from qwench.engine.thinking import ThinkingRules, Thought
from qwench.errors import ContextLengthExceeded, EngineUnavailable, Overloaded, QwenchError, RequestError
from qwench.files import open_files, read_config
from qwench.footprint import largest_picture
from qwench.weights.locate import locate

if TYPE_CHECKING:
    from qwench.engine.core import Engine
    from qwench.engine.resolve import Resolved
    from qwench.ops.loading import Loading

STUCK_SECONDS = 10.0  # without a step though there is work; ten times the last step where that was slow
OWNER_SHARE = 3  # an API key may have this many requests for each place that is still free: others always find some

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineStatus:
    """``loaded`` is the share of the weights that is in memory, 0 to 1; ``message`` says why a state is "failed"."""

    state: Literal["loading", "ready", "failed", "stopped"]
    loaded: float = 0.0
    message: str = ""


@dataclass(frozen=True)
class EngineStats:
    """Counters since the start and gauges of now."""

    running: int
    waiting: int
    pages_used: int
    pages_total: int
    slots_used: int
    slots_total: int
    steps: int
    preemptions: int
    prompt_tokens: int
    cached_tokens: int
    disk_tokens: int
    disk_entries: int
    disk_bytes: int
    snapshots: int
    snapshots_total: int
    evictions: int
    generated_tokens: int
    finished: int
    aborted: int
    failed: int
    resident_bytes: int


class Generation:
    """One running request. Iterate it, blocking or ``async``, once; leaving early aborts it."""

    def __init__(
        self, request: Request, on_abort: Callable[[int], None], on_end_thinking: Callable[[int], None]
    ) -> None:
        self.id = request.id
        self.prompt_len = request.prompt_len
        self._on_abort = on_abort
        self._on_end_thinking = on_end_thinking
        self._request = request
        self._events: deque[TokenEvent] = deque()
        self._changed = threading.Condition()
        self._wake: Callable[[], None] | None = None
        self._finished = False

    @property
    def prompt_done(self) -> int:
        """Prompt tokens that are computed or were known, as of the last step; for any thread, without waiting."""
        return self.prompt_len if self._finished else min(self._request.computed, self.prompt_len)

    def abort(self) -> None:
        """End the request and free what it holds. Safe to call from any thread, and again."""
        if not self._finished:
            self._on_abort(self.id)

    def end_thinking(self) -> None:
        """Have the model stop thinking and answer. Safe to call from any thread, and again."""
        if not self._finished:
            self._on_end_thinking(self.id)

    def deliver(self, event: TokenEvent) -> None:
        """Called by the engine's thread."""
        with self._changed:
            self._events.append(event)
            self._finished = event.finish_reason is not None
            self._changed.notify_all()
            if self._wake is not None:
                self._wake()

    def __iter__(self) -> Iterator[TokenEvent]:
        event = TokenEvent()
        try:
            while event.finish_reason is None:
                with self._changed:
                    while not self._events:
                        self._changed.wait()
                    event = self._events.popleft()
                yield event
        finally:
            self.abort()

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(ready.set)

        event = TokenEvent()
        try:
            with self._changed:
                self._wake = wake
            while event.finish_reason is None:
                while not self._events:
                    ready.clear()
                    if not self._events:  # an event may have come between the look and the clearing
                        await ready.wait()
                event = self._events.popleft()
                yield event
        finally:
            with self._changed:
                self._wake = None
            self.abort()


class EngineClient:
    """Locates the model and reads its configuration at once (raising what is wrong); loads it when started."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.name = config.model
        self.files = open_files(locate(config.model, offline=config.offline))
        self.model = read_config(self.files)
        self.vocabulary = Vocabulary(self.model.vocab_size, frozenset(self.model.eos_token_ids))
        self._ids = count()
        self._seeds = random.Random(config.seed)
        self._commands: SimpleQueue[Callable[[Engine], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._unfinished = Counter[str]()  # by owner
        self._status = EngineStatus("loading")
        self._settled = threading.Event()  # loaded or failed
        self._closing = threading.Event()
        self._failure: BaseException | None = None
        self._engine: Engine | None = None
        self._resolved: Resolved | None = None
        self._thread: threading.Thread | None = None
        self._begun: Loading | None = None
        self._turned: float | None = None  # when the loop last came round; None while it waits for work

    def prepare(self) -> None:
        """Begin to load what can be begun: worth calling as soon as it is clear that ``start`` will follow."""
        from qwench.engine.ahead import begin

        if self._begun is None:
            self._begun = begin(self.config, self.model, self.files)

    def start(self, vocabulary: Vocabulary | None = None) -> None:
        """Begin loading in the background. ``vocabulary`` is the tokenizer's; without it padding is not known."""
        assert self._thread is None, "the engine was started already"
        if vocabulary is not None:
            self.vocabulary = vocabulary
        self.prepare()
        self._thread = threading.Thread(target=copy_context().run, args=(self._run,), name="qwench-engine", daemon=True)
        self._thread.start()

    def wait_ready(self, timeout: float | None = None) -> None:
        """Block until the engine serves.

        Raises what made loading fail, or EngineUnavailable after ``timeout`` seconds.
        """
        if not self._settled.wait(timeout):
            raise EngineUnavailable(f"the model was not loaded within {timeout:g} seconds; wait longer.")
        if self._failure is not None:
            raise self._failure

    def status(self) -> EngineStatus:
        return self._status

    @property
    def stuck_for(self) -> float:
        """Seconds since the engine's loop last came round, if it has work and they are too many; else 0."""
        turned, engine = self._turned, self._engine
        if turned is None or engine is None:
            return 0.0
        still = time.monotonic() - turned
        return still if still > max(STUCK_SECONDS, 10 * engine.lasted) else 0.0

    @property
    def max_model_len(self) -> int:
        """The window in tokens; before the engine is ready, what is known of it."""
        if self._resolved is not None:
            return self._resolved.max_model_len
        return self.config.max_model_len or self.model.max_positions

    @property
    def device(self) -> str:
        """What computes; before the engine is ready, what was asked for."""
        return self.config.device if self._resolved is None else self._resolved.device

    @property
    def sees(self) -> bool:
        """Whether pictures can be shown to the model; before the engine is ready, as far as its configuration tells."""
        if self._engine is not None:
            return self._engine.eyes is not None
        return self.model.vision is not None

    @cached_property
    def most_pixels(self) -> int | None:
        """Of the largest picture that is looked at unless the operator says another number; None for who cannot see."""
        vision = self.model.vision
        return None if vision is None else largest_picture(vision, self.max_model_len, available_memory())

    def banner(self) -> list[str]:
        """One line per resolved setting with its reason; empty before the engine is ready."""
        return [str(choice) for choice in self._resolved.choices] if self._resolved else []

    def submit(
        self,
        prompt_token_ids: Sequence[int],
        sampling: SamplingParams,
        *,
        thinking: ThinkingRules | None = None,
        marks: Marks = Marks(),  # noqa: B008 - it is frozen
        background: bool = False,
        owner: str = "",
        media: Sequence[MediaSpan] = (),
        guide: Guide | None = None,
    ) -> Generation:
        """Queue one sequence (``n`` is 1) for ``owner``, such as an API key, and hold its answer to the rules of
        ``thinking`` and to what ``guide`` lets it say. ``media``: what it shows in place of some tokens.

        Raises before anything runs: RequestError, ContextLengthExceeded with both numbers, Overloaded when too many
        requests are unfinished, EngineUnavailable while there is no engine.
        """
        asked = self.submit_choices(
            prompt_token_ids,
            [sampling],
            thinking=thinking,
            marks=marks,
            background=background,
            owner=owner,
            media=media,
            guide=guide,
        )
        return asked[0]

    def submit_choices(
        self,
        prompt_token_ids: Sequence[int],
        choices: Sequence[SamplingParams],
        *,
        thinking: ThinkingRules | None = None,
        marks: Marks = Marks(),  # noqa: B008 - it is frozen
        background: bool = False,
        owner: str = "",
        media: Sequence[MediaSpan] = (),
        guide: Guide | None = None,
    ) -> list[Generation]:
        """Queue several answers to one prompt, which is computed once and shared. Raises as ``submit``."""
        requests = []
        sight = self._sight(prompt_token_ids, media) if media else NOTHING
        seams = tuple(seam for seam in sight.seams if seam < len(prompt_token_ids))
        marks = replace(marks, ends=(*marks.ends, *seams), orders=(*marks.orders, *seams[-1:]))
        for sampling in choices:
            self.check(prompt_token_ids, sampling)
            request = self._request(len(prompt_token_ids), prompt_token_ids, sampling)
            request.marks, request.background, request.owner = marks, background, owner
            request.sight, request.looked = sight, not sight.spans
            request.guide = copy(guide)
            if thinking is not None:
                rules = replace(thinking, end_ids=frozenset(), begun=True) if sampling.ignore_eos else thinking
                request.thought = Thought(rules, request.max_total - request.prompt_len)
            requests.append(request)
        return self._queue(requests)

    def save(self, generation: Generation) -> Saved | None:
        """The running sequence as it is at this moment, to continue from as often as wanted; None if it is over.

        What is kept for it stays until ``release``.
        """
        found: Future[Saved | None] = Future()

        def save(engine: Engine) -> None:
            found.set_result(engine.save(generation.id))

        with self._lock:
            self._require_ready()
            self._commands.put(save)
        return found.result()

    def release(self, saved: Saved) -> None:
        """Nothing will be continued from ``saved`` any more."""
        self._commands.put(lambda engine: engine.release(saved))

    def restore(self, saved: Saved, sampling: SamplingParams, more: Sequence[int] = ()) -> Generation:
        """Continue ``saved``: with the same parameters and seed as the original would, bit for bit.

        ``max_tokens`` counts from here; ``more`` are tokens put before them. Raises as ``submit``.
        """
        return self.fork(saved, [sampling], more)[0]

    def fork(self, saved: Saved, choices: Sequence[SamplingParams], more: Sequence[int] = ()) -> list[Generation]:
        """Continue ``saved`` several times over, each on its own; they share what was computed. Raises like submit."""
        token_ids = (*saved.token_ids, *more)
        for sampling in choices:
            self.check(token_ids, sampling)
        requests = [self._request(saved.prompt_len, token_ids, sampling) for sampling in choices]
        for request in requests:
            request.thought, request.guide = copy(saved.thought), copy(saved.guide)
            request.sight, request.looked = saved.sight, not saved.sight.spans
            if request.guide is not None and (failure := request.guide.accept(more)):
                raise RequestError(f"the answer cannot go on from these tokens: {failure}.", param="prompt")
            if request.thought is not None:
                request.thought.go_on(request.max_total - request.prompt_len, more)
        return self._queue(requests)

    def check(self, prompt_token_ids: Sequence[int], sampling: SamplingParams) -> None:
        """Raise what ``submit`` would raise for this prompt, and run nothing."""
        self._require_ready()
        self._check_ids(prompt_token_ids, sampling)
        self._max_total(len(prompt_token_ids), sampling)

    def _request(self, prompt_len: int, token_ids: Sequence[int], sampling: SamplingParams) -> Request:
        assert sampling.n == 1, "the faces submit each choice by itself"
        end_ids = frozenset() if sampling.ignore_eos else self.vocabulary.end_ids
        return Request(
            id=next(self._ids),
            prompt_len=prompt_len,
            token_ids=list(token_ids),
            sampling=sampling,
            stop_token_ids=end_ids | frozenset(sampling.stop_token_ids or ()),
            seed=0 if sampling.seed is None else sampling.seed,
            max_total=self._max_total(len(token_ids), sampling),
        )

    def _queue(self, requests: Sequence[Request]) -> list[Generation]:
        """Hand requests with the same tokens to the engine, all or none."""
        generations = [Generation(each, self._abort, self._end_thinking) for each in requests]
        owner = requests[0].owner

        def listener(generation: Generation) -> Callable[[TokenEvent], None]:
            def deliver(event: TokenEvent) -> None:
                if event.finish_reason is not None:
                    with self._lock:
                        self._unfinished[owner] -= 1
                generation.deliver(event)

            return deliver

        listeners = [listener(generation) for generation in generations]
        with self._lock:  # the engine stops under the same lock: nothing is queued behind its back
            self._require_ready()
            self._check_room(owner, len(requests))
            self._unfinished[owner] += len(requests)
            for request in requests:
                if request.sampling.seed is None:
                    request.seed = self._seeds.getrandbits(64)
            self._commands.put(lambda engine: engine.add(requests, listeners))
        return generations

    def stats(self) -> EngineStats:
        engine = self._engine
        if engine is None:
            raise EngineUnavailable(f"the engine is {self._status.state}; there is nothing to count.")
        scheduler, counters = engine.scheduler, engine.counters
        return EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            pages_used=scheduler.pages.num_used,
            pages_total=scheduler.pages.size,
            slots_used=scheduler.slots.num_used,
            slots_total=scheduler.slots.size,
            preemptions=scheduler.num_preemptions,
            snapshots=len(scheduler.cache),
            snapshots_total=scheduler.cache.policy.limit,
            evictions=scheduler.cache.evictions,
            disk_entries=len(engine.shelf.disk) if engine.shelf else 0,
            disk_bytes=engine.shelf.disk.held if engine.shelf else 0,
            resident_bytes=resident_bytes(),
            **vars(counters),
        )

    def close(self) -> None:
        """Stop the engine, also while it loads; unfinished requests end with an error. Safe to call again."""
        self._closing.set()
        if self._thread is None and self._begun is not None:
            self._begun.close()
        if self._thread is not None and self._thread.is_alive():
            self._commands.put(None)
            self._thread.join()

    def _require_ready(self) -> None:
        status = self._status
        if status.state != "ready":
            detail = f": {status.message}" if status.message else ""
            raise EngineUnavailable(f"the engine is {status.state}{detail}; try again when it is ready.")

    def _check_room(self, owner: str, count: int) -> None:
        """Raise Overloaded where ``count`` more requests of ``owner`` are too many."""
        limit, unfinished, own = self.config.max_queue, self._unfinished.total(), self._unfinished[owner]
        free = limit - unfinished - count
        if free >= 0 and (not owner or own + count <= OWNER_SHARE * (free + 1)):
            return
        reason = f"{unfinished} requests are unfinished, and the server takes {limit}"
        if free >= 0:
            reason = f"this key has {own} unfinished requests, and the rest of the server's {limit} are for others"
        each = self._engine.scheduler.turns.pace.seconds_per_answer if self._engine is not None else 0.0
        # When half of them are done there is room again, also for the others that are told so now.
        raise Overloaded(f"{reason}; try again later.", retry_after=each * unfinished / 2)

    def _check_ids(self, prompt_token_ids: Sequence[int], sampling: SamplingParams) -> None:
        if not prompt_token_ids:
            raise RequestError("the prompt is empty; give at least one token.", param="prompt")
        size = self.vocabulary.size
        for name, ids in (
            ("prompt", prompt_token_ids),
            ("stop_token_ids", sampling.stop_token_ids or ()),
            ("logit_bias", sampling.logit_bias or ()),
        ):
            wrong = next((token for token in ids if not 0 <= token < size), None)
            if wrong is not None:
                raise RequestError(f"{name} holds token id {wrong}; this model's ids are 0 to {size - 1}.", param=name)

    def _sight(self, prompt_token_ids: Sequence[int], media: Sequence[MediaSpan]) -> Sight:
        if not self.sees or self.model.vision is None:
            raise RequestError(
                "this model cannot see: it has no vision tower; send text only, or run a checkpoint that has one.",
                param="messages",
            )
        return Sight.of(prompt_token_ids, media, self.model.vision.spatial_merge_size)

    def _max_total(self, prompt_len: int, sampling: SamplingParams) -> int:
        window = self.max_model_len
        if prompt_len >= window:
            raise ContextLengthExceeded(
                f"the prompt has {prompt_len} tokens, but the window is {window} tokens and the answer needs at least "
                "one; shorten the prompt.",
                param="prompt",
                tokens=prompt_len,
                window=window,
            )
        if prompt_len + sampling.min_tokens > window:
            raise RequestError(
                f"min_tokens is {sampling.min_tokens}, but the window has room for {window - prompt_len}; lower it.",
                param="min_tokens",
            )
        if sampling.max_tokens is None:
            return window
        if prompt_len + sampling.max_tokens > window:
            raise ContextLengthExceeded(
                f"the prompt has {prompt_len} tokens and max_tokens is {sampling.max_tokens}, together more than the "
                f"window of {window} tokens; shorten the prompt or ask for at most {window - prompt_len}.",
                param="max_tokens",
            )
        return prompt_len + sampling.max_tokens

    def _abort(self, request_id: int) -> None:
        self._commands.put(lambda engine: engine.abort(request_id))

    def _end_thinking(self, request_id: int) -> None:
        self._commands.put(lambda engine: engine.end_thinking(request_id))

    def _run(self) -> None:
        """The engine's thread: load, then serve until closed or broken."""
        try:
            self._load()
        except Exception as error:  # told to whoever waits; a bug keeps its traceback
            if not isinstance(error, QwenchError):
                logger.exception("loading failed")
            self._failure = error
            self._status = EngineStatus("failed", message=str(error))
            self._settled.set()
            return
        assert self._engine is not None
        with self._lock:
            self._status = EngineStatus("ready", loaded=1.0)
        self._settled.set()
        state: Literal["failed", "stopped"] = "failed"
        reason = "the engine failed in several steps in a row"
        try:
            if self._serve(self._engine):
                state, reason = "stopped", "the engine was closed"
        except Exception as error:
            logger.error("the engine's loop failed", exc_info=error)
            reason = f"the engine's loop failed ({type(error).__name__}: {error})"
        with self._lock:
            self._status = EngineStatus(state, loaded=1.0, message=reason)
        self._obey_rest(self._engine)
        self._engine.fail_all(reason)
        self._engine.close()

    def _serve(self, engine: Engine) -> bool:
        """Commands and steps in turn. True once it was closed, False if the engine is broken."""
        while not engine.broken:
            if not self._obey(engine):
                return True
            while engine.step() and self._commands.empty() and not engine.broken:
                self._turned = time.monotonic()
        return False

    def _load(self) -> None:
        from qwench.engine.start import load_engine

        try:
            self._engine, self._resolved = load_engine(
                self.config, self.model, self.files, self.vocabulary, self._told, self._begun
            )
        finally:
            if self._begun is not None:
                self._begun.close()
                self._begun = None  # the weights keep what they need of it

    def _told(self, done: int, total: int) -> None:
        """The loader's progress; the way out of a long load."""
        if self._closing.is_set():
            raise EngineUnavailable("the engine was closed while it was loading.")
        self._status = EngineStatus("loading", loaded=done / max(total, 1))

    def _obey(self, engine: Engine) -> bool:
        """Carry out all commands that are there; wait for one when the engine is idle. False once it is to stop."""
        wait = engine.scheduler.is_idle()
        self._turned = None if wait else time.monotonic()
        while True:
            try:
                command = self._commands.get(block=wait)
            except Empty:
                return True
            self._turned = time.monotonic()
            if command is None:
                return False
            command(engine)
            wait = False

    def _obey_rest(self, engine: Engine) -> None:
        """Requests that slipped in while the engine stopped still get their last event."""
        while True:
            try:
                command = self._commands.get_nowait()
            except Empty:
                return
            if command is not None:
                command(engine)
