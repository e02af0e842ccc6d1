"""Engines that the gateway starts: what of their own words is told, and when."""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from qwench.errors import EngineUnavailable
from qwench.gateway import engines
from qwench.gateway.engines import running
from qwench.gateway.tiers import Tier
from tests.gateway.standin import Exchange, standing_in

Say = Callable[[str], None]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Say:
    """In place of every engine a shell runs this."""
    real: Any = subprocess.Popen

    def say(script: str) -> None:
        monkeypatch.setattr(engines.subprocess, "Popen", lambda _, **pipes: real(["sh", "-c", script], **pipes))

    return say


def tier(url: str) -> Tier:
    return Tier("own", "openai", url, frozenset(), "own", "qwen", engine=("nano", "--port", "1"))


def test_an_engine_that_cannot_start_tells_its_last_words(engine: Say) -> None:
    engine("echo 'qwench: no model is called nano' >&2; exit 3")
    with pytest.raises(EngineUnavailable) as raised, running([tier("http://127.0.0.1:1")], offline=False):
        pass
    assert raised.value.message == (
        "The engine of the tier own ended with 3; its last words:\n  no model is called nano"
    )


def test_start_lines_are_kept_back_and_later_ones_told_under_the_tiers_name(
    engine: Say, caplog: pytest.LogCaptureFixture
) -> None:
    async def fine(exchange: Exchange) -> None:
        await exchange.whole({})

    engine("echo 'device cpu' >&2; sleep 0.3; echo 'qwench: slow disk' >&2; exec sleep 9")
    caplog.set_level(logging.INFO, logger="qwench.gateway.engines")
    with standing_in(fine) as ready, running([tier(ready.url)], offline=False):
        until = time.monotonic() + 5
        while len(caplog.records) < 3 and time.monotonic() < until:
            time.sleep(0.02)
    told = [record.getMessage() for record in caplog.records]
    assert told == ["starting the tier own: qwench serve nano --port 1", "the tier own is ready", "own: slow disk"]
