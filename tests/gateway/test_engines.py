"""Engines that the gateway starts: what of their own words is told, and when."""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from qwench.errors import EngineUnavailable
from qwench.gateway.engines import running
from qwench.gateway.tiers import Tier
from tests.gateway.standin import Exchange, standing_in

Say = Callable[[str], None]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Say:
    """In place of every engine a shell runs this."""
    real: Any = subprocess.Popen

    def say(script: str) -> None:
        monkeypatch.setattr(subprocess, "Popen", lambda _, **pipes: real(["sh", "-c", script], **pipes))

    return say


def tier(url: str) -> Tier:
    return Tier("own", "openai", url, frozenset(), "own", "qwen", engine=("nano", "--port", "1"))


def test_an_engine_that_cannot_start_tells_its_last_words(engine: Say, caplog: pytest.LogCaptureFixture) -> None:
    engine("echo 'qwench: no model is called nano' >&2; exit 3")
    with pytest.raises(EngineUnavailable) as raised, running([tier("http://127.0.0.1:1")], offline=False):
        pass
    assert raised.value.message == (
        "The engine of the tier own ended with 3; its last words:\n  no model is called nano"
    )
    assert not caplog.records, "once is enough"


def test_only_an_engines_warnings_are_handed_on_and_its_end(engine: Say, caplog: pytest.LogCaptureFixture) -> None:
    async def fine(exchange: Exchange) -> None:
        await exchange.whole({})

    lines = (
        "device cpu",
        "qwench: warning: slow disk",
        "qwench: POST: 200",
        "qwench: error: no",
        "Traceback",
        "qwench: x",
    )
    engine("".join(f"echo '{line}' >&2; " for line in lines) + "sleep 0.3")
    caplog.set_level(logging.INFO, logger="qwench.gateway.engines")
    with standing_in(fine) as ready, running([tier(ready.url)], offline=False):
        until = time.monotonic() + 5
        while len(caplog.records) < 6 and time.monotonic() < until:
            time.sleep(0.02)
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == "starting the tier own: qwench serve nano --port 1"
    assert [each for each in told if each.startswith("own: ")] == [
        "own: warning: slow disk",
        "own: error: no",
        "own: Traceback",
    ]
    assert told[-1] == (
        "the engine of the tier own has ended; its last words:\n  device cpu\n  warning: slow disk\n  POST: 200\n"
        "  error: no\n  Traceback\n  x"
    )


def test_an_end_that_is_wanted_is_not_told(engine: Say, caplog: pytest.LogCaptureFixture) -> None:
    async def fine(exchange: Exchange) -> None:
        await exchange.whole({})

    engine("exec sleep 9")
    caplog.set_level(logging.INFO, logger="qwench.gateway.engines")
    with standing_in(fine) as ready, running([tier(ready.url)], offline=False):
        pass
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
