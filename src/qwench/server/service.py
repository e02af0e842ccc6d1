"""What every route works with: the engine, the text layer, and the operator's choices about serving."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from qwench import __version__
from qwench.reason.checks import Command
from qwench.server.answer import Answer, Head
from qwench.server.keys import Key
from qwench.text.model import ModelText

if TYPE_CHECKING:
    from qwench.engine.client import EngineClient

MEBIBYTE = 2**20


@dataclass(frozen=True)
class ServerSettings:
    """``names`` the served model answers to, its own name first. ``keepalive`` is in seconds of silence in a stream.
    ``checkers`` are commands that clients may have answers checked with, by name.

    Without ``keys`` everybody is let in who asks for an address of this machine or one of ``hosts``; with several, the
    engine's time is shared equally among them, and each may send ``key_rate`` requests a minute and have
    ``key_running`` at a time. Pages of other ``origins`` than its own and these may not use the server from a browser.
    """

    names: tuple[str, ...]
    keys: tuple[Key, ...] = ()
    key_rate: int | None = None
    key_running: int | None = None
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    max_body_bytes: int = 32 * MEBIBYTE
    keepalive: float = 10.0
    checkers: Mapping[str, Command] = field(default_factory=dict)


@dataclass(frozen=True)
class Service:
    """One model being served."""

    client: EngineClient
    text: ModelText
    settings: ServerSettings
    started: float = field(default_factory=time.time)  # seconds since 1970
    answers: WeakValueDictionary[str, Answer] = field(default_factory=WeakValueDictionary)  # by the response's id

    @property
    def name(self) -> str:
        return self.settings.names[0]

    def head(self, prefix: str) -> Head:
        """The head of a new response; the fingerprint changes when the version or the engine's settings do."""
        made_of = repr((__version__, self.name, self.client.config)).encode()
        return Head(
            id=f"{prefix}-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=self.name,
            fingerprint=f"fp_{hashlib.sha256(made_of).hexdigest()[:10]}",
        )
