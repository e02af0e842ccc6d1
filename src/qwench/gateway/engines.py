"""Engines that the gateway starts: a ``qwench serve`` process for each such tier, and their end with ours."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import httpx

from qwench.errors import EngineUnavailable
from qwench.fault import fault
from qwench.gateway.tiers import Tier

logger = logging.getLogger(__name__)

READY_WITHIN = 600.0  # seconds; large models are read from disk
POLL = 0.1
LAST_SECONDS = 15.0  # what an engine gets to end by itself


@contextmanager
def running(tiers: Iterable[Tier], *, offline: bool) -> Iterator[None]:
    """All engines of ``tiers`` that are ours to start, ready; they end with the block. Raises EngineUnavailable."""
    with ExitStack() as stack:
        started = [(tier, stack.enter_context(_process(tier, offline=offline))) for tier in tiers if tier.engine]
        for tier, process in started:
            _wait(tier, process)
        yield


@contextmanager
def _process(tier: Tier, *, offline: bool) -> Iterator[subprocess.Popen[bytes]]:
    words = [sys.executable, "-m", "qwench", "serve", *tier.engine, *(["--offline"] if offline else [])]
    logger.info("starting the tier %s: qwench serve %s", tier.name, " ".join(tier.engine))
    try:
        fault("start.engine")
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    except OSError as error:
        raise EngineUnavailable(f"The engine of the tier {tier.name} cannot be started: {error.strerror}.") from None
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LAST_SECONDS)
        process.kill()
        process.wait()


def _wait(tier: Tier, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + READY_WITHIN
    with httpx.Client(trust_env=False, timeout=5) as client:
        while time.monotonic() < until:
            if process.poll() is not None:
                told = f"ended with {process.returncode}; its own message stands above"
                raise EngineUnavailable(f"The engine of the tier {tier.name} {told}.")
            with contextlib.suppress(httpx.HTTPError):
                if client.get(f"{tier.url}/health").status_code == 200:
                    logger.info("the tier %s is ready", tier.name)
                    return
            time.sleep(POLL)
    raise EngineUnavailable(f"The engine of the tier {tier.name} was not ready within {READY_WITHIN:g} s.")
