"""What every route works with: the engine, the text layer, and the operator's choices about serving."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakValueDictionary

from qwench import __version__
from qwench.errors import Overloaded, RequestError
from qwench.media.fetch import Sources
from qwench.media.pool import MOST_PROCESSES
from qwench.media.reader import MediaReader
from qwench.media.settings import Caps
from qwench.reason.checks import Command
from qwench.server.answer import Answer, Head, Trail, Watch
from qwench.server.considered import answer_to
from qwench.server.keys import Key
from qwench.server.metrics import Metrics
from qwench.server.naming import AnswersTo, Names
from qwench.server.prepare import Prepared
from qwench.server.store import Store
from qwench.text.model import ModelText
from qwench.text.vision import Eyes

if TYPE_CHECKING:
    from qwench.engine.client import EngineClient

MEBIBYTE = 2**20
LOOKING = 64  # requests with pictures that are being prepared or wait for it; more get 429
Result = TypeVar("Result")


@dataclass(frozen=True)
class ServerSettings:
    """``names`` of the served model, its own first, and which others are answered (``answers_to``).
    ``keepalive`` is in seconds of silence in a stream.
    ``response_bytes`` bounds the responses that are stored for clients, 0 stores none.
    ``checkers`` are commands that clients may have answers checked with, by name. ``media`` bounds what is looked at,
    and ``sources`` says from where it may come. ``watches`` are told of every answer that is over,
    and ``store`` keeps files and batches.

    Without ``keys`` everybody is let in who asks for an address of this machine or one of ``hosts``; with several, the
    engine's time is shared equally among them, and each may send ``key_rate`` requests a minute and have
    ``key_running`` at a time; all together have at most ``max_requests``. Pages of other ``origins`` than its own and
    these may not use the server from a browser.
    """

    names: tuple[str, ...]
    answers_to: AnswersTo = "hosted"
    keys: tuple[Key, ...] = ()
    key_rate: int | None = None
    key_running: int | None = None
    max_requests: int | None = None
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    max_body_bytes: int = 32 * MEBIBYTE
    keepalive: float = 10.0
    response_bytes: int = 256 * MEBIBYTE
    checkers: Mapping[str, Command] = field(default_factory=dict)
    media: Caps = field(default_factory=Caps)
    sources: Sources = field(default_factory=Sources)
    watches: tuple[Watch, ...] = ()
    store: Store | None = None


@dataclass(frozen=True)
class Service:
    """One model being served."""

    client: EngineClient
    text: ModelText
    settings: ServerSettings
    started: float = field(default_factory=time.time)  # seconds since 1970
    places: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(LOOKING))
    answers: WeakValueDictionary[str, Answer] = field(default_factory=WeakValueDictionary)  # by the response's id
    metrics: Metrics = field(default_factory=Metrics)

    @cached_property
    def store(self) -> Store:
        """Files and batches; those of a server that was given no store go with it."""
        return self.settings.store or Store()

    @property
    def name(self) -> str:
        return self.settings.names[0]

    @property
    def names(self) -> Names:
        return Names(self.settings.names, self.settings.answers_to)

    @cached_property
    def _reader(self) -> MediaReader | None:
        vision = self.text.vision if self.client.sees else None
        if vision is None:
            return None
        return MediaReader(vision, self.settings.media, self.settings.sources, most=self.client.most_pixels)

    @cached_property
    def _lookers(self) -> ThreadPoolExecutor:
        """Pictures take seconds and wait for one another; text must not wait behind them."""
        return ThreadPoolExecutor(MOST_PROCESSES, "qwench-look")

    @property
    def eyes(self) -> Eyes | None:
        """How what a request shows is looked at; None if the model reads text only."""
        return None if self._reader is None else Eyes(self._reader, self.client.max_model_len)

    async def apart(self, work: Callable[[], Result], *, looks: bool) -> Result:
        """``work`` on a thread; if it ``looks`` at something, on one of a few that do nothing else.

        Raises Overloaded if too many such requests wait.
        """
        if not looks:
            return await asyncio.to_thread(work)
        if not self.places.acquire(blocking=False):
            raise Overloaded("Too many requests with pictures are being prepared; send the request again later.")

        def done() -> Result:
            try:
                return work()
            finally:
                self.places.release()

        return await asyncio.get_running_loop().run_in_executor(self._lookers, copy_context().run, done)

    def answer(self, prepared: Prepared, owner: str = "", trail: Trail | None = None) -> Answer:
        """The answer to ``prepared``, submitted, whose end is told to everybody who watches. Raises what is refused."""
        watches = (self.metrics.note, *self.settings.watches)
        trail = replace(trail or Trail(time.monotonic()), watches=watches)
        try:
            return answer_to(self.client, self.text, prepared, owner, self.settings.checkers, trail)
        except RequestError as error:
            if error.param == "prompt":  # as the engine calls what it is given
                error.param = prepared.place
            raise

    def head(self, prefix: str) -> Head:
        """The head of a new response, whose id begins with ``prefix``; the fingerprint changes when the version or the
        engine's settings do."""
        made_of = repr((__version__, self.name, self.client.config)).encode()
        return Head(
            id=f"{prefix}{uuid.uuid4().hex}",
            created=int(time.time()),
            model=self.name,
            fingerprint=f"fp_{hashlib.sha256(made_of).hexdigest()[:10]}",
        )
