"""Engines that the gateway starts: a ``qwench serve`` process for each such tier, and their end with ours.

An engine's warnings are handed on under the tier's name; its other lines (how it starts, what it was asked) are for
``QWENCH_LOG=debug``.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Thread
from typing import IO

import httpx

from qwench.errors import EngineUnavailable
from qwench.fault import fault
from qwench.gateway.tiers import Tier

logger = logging.getLogger(__name__)

READY_WITHIN = 600.0  # seconds; large models are read from disk
POLL = 0.1
PATIENCE = 10.0  # seconds until it is said that an engine still loads
LAST_SECONDS = 15.0  # what an engine gets to end by itself
LAST_WORDS = 20  # lines of an engine that ended
OURS = "qwench: "  # what lines of a log begin with
LOUD = tuple(f"{OURS}{level}: " for level in ("warning", "error", "critical"))


@contextmanager
def running(tiers: Iterable[Tier], *, offline: bool) -> Iterator[None]:
    """All engines of ``tiers`` that are ours to start, ready; they end with the block. Raises EngineUnavailable."""
    with ExitStack() as stack:
        started = [(tier, stack.enter_context(_process(tier, offline=offline))) for tier in tiers if tier.engine]
        for tier, process, voice in [(tier, *each) for tier, each in started]:
            _wait(tier, process, voice)
        yield


class Voice:
    """What an engine says, line by line. Its warnings are handed on; its last words where it ends while ``needed``."""

    def __init__(self, name: str, stream: IO[bytes]) -> None:
        self._name, self._stream = name, stream
        self.needed = False
        self._kept: deque[str] = deque(maxlen=LAST_WORDS)
        self._thread = Thread(target=self._listen, name=f"voice of {name}", daemon=True)
        self._thread.start()

    def last_words(self) -> str:
        """Of an engine that ended. Who else holds its end of the pipe is not waited for."""
        self._thread.join(1.0)
        return self._last()

    def _last(self) -> str:
        return "".join(f"\n  {line}" for line in self._kept)

    def _listen(self) -> None:
        loud = False
        with self._stream:
            for raw in self._stream:
                line = raw.decode("utf-8", "replace").rstrip()
                loud = line.startswith(LOUD) or (loud and not line.startswith(OURS))  # a traceback goes with its error
                self._kept.append(line.removeprefix(OURS))
                logger.log(logging.WARNING if loud else logging.DEBUG, "%s: %s", self._name, self._kept[-1])
        if self.needed:
            logger.error("the engine of the tier %s has ended; its last words:%s", self._name, self._last())


@contextmanager
def _process(tier: Tier, *, offline: bool) -> Iterator[tuple[subprocess.Popen[bytes], Voice]]:
    words = [sys.executable, "-m", "qwench", "serve", *tier.engine, *(["--offline"] if offline else [])]
    logger.info("starting the tier %s: qwench serve %s", tier.name, " ".join(tier.engine))
    try:
        fault("start.engine")
        nothing, heard = subprocess.DEVNULL, subprocess.PIPE
        process = subprocess.Popen(words, stdin=nothing, stdout=nothing, stderr=heard)
    except OSError as error:
        raise EngineUnavailable(f"The engine of the tier {tier.name} cannot be started: {error.strerror}.") from None
    assert process.stderr is not None
    voice = Voice(tier.name, process.stderr)
    try:
        yield process, voice
    finally:
        voice.needed = False
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LAST_SECONDS)
        process.kill()
        process.wait()
        voice.last_words()


def _wait(tier: Tier, process: subprocess.Popen[bytes], voice: Voice) -> None:
    began, told = time.monotonic(), False
    with httpx.Client(trust_env=False, timeout=5) as client:
        while (waited := time.monotonic() - began) < READY_WITHIN:
            if process.poll() is not None:
                reason = f"ended with {process.returncode}; its last words:{voice.last_words()}"
                raise EngineUnavailable(f"The engine of the tier {tier.name} {reason}")
            with contextlib.suppress(httpx.HTTPError):
                if client.get(f"{tier.url}/health").status_code == 200:
                    voice.needed = True
                    logger.info("the tier %s is ready", tier.name)
                    return
            if waited > PATIENCE and not told:
                told = True
                logger.info("the tier %s is loading; %s/health shows the progress", tier.name, tier.url)
            time.sleep(POLL)
    raise EngineUnavailable(f"The engine of the tier {tier.name} was not ready within {READY_WITHIN:g} s.")
