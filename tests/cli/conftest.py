"""Models for the commands: a real engine's checkpoint, and a scripted engine in place of the real one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import pytest

from qwench.engine.client import EngineStatus
from qwench.engine.request import SamplingParams, Vocabulary
from tests.server import scripted as engines
from tests.server.scripted import ScriptedEngine
from tests.server.tiny import write_checkpoint, write_text


class Scripted(ScriptedEngine):
    """A scripted engine that is loaded from the beginning."""

    def start(self, vocabulary: Vocabulary | None = None) -> None:
        assert vocabulary is not None
        self.become(EngineStatus("ready", 1.0))

    def wait_ready(self, timeout: float | None = None) -> None:
        self._require_ready()


class Install(Protocol):
    """Puts an engine with this script (a fixed answer, or what a prompt is answered with) behind every command."""

    def __call__(self, script: str | Callable[[str, SamplingParams], Iterable[Any]]) -> Scripted: ...


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without weights."""
    return write_text(tmp_path_factory.mktemp("commands") / "text")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("commands") / "whole")


@pytest.fixture
def scripted(text_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    def install(script: str | Callable[[str, SamplingParams], Iterable[Any]]) -> Scripted:
        engine = Scripted(text_folder, lambda _prompt, sampling: engine.spell(str(script), sampling))
        if not isinstance(script, str):
            engine.script = script
        engines.install(monkeypatch, lambda _config: engine)
        return engine

    return install
