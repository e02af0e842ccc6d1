"""A client that leaves while its prompt is read, over HTTP and the real engine: it is noticed then, not at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwench.config import EngineConfig
from qwench.engine.client import EngineClient
from qwench.engine.scheduler import RowResult, Step
from qwench.server.service import ServerSettings
from qwench.text.model import ModelText
from tests.server.conftest import NAME, running, wait_until

STEP_TOKENS, STEP_SECONDS = 16, 0.05
BODY: dict[str, Any] = {
    "model": NAME,
    "messages": [{"role": "user", "content": "a long letter " * 25}],
    "max_tokens": 1,
    "ignore_eos": True,
}


@contextmanager
def slow_server(checkpoint: Path, policy: str) -> Iterator[tuple[EngineClient, str]]:
    """A server whose engine reads a few tokens in each step and takes its time over them."""
    config = EngineConfig(
        model=str(checkpoint), dtype="float32", device="cpu", max_step_tokens=STEP_TOKENS, on_disconnect=policy
    )
    client = EngineClient(config)
    text = ModelText(client.files, client.model)
    client.start(text.vocabulary)
    client.wait_ready(60)
    assert client._engine is not None
    runner = client._engine.runner
    run = runner.run

    def slow(step: Step) -> list[RowResult]:
        time.sleep(STEP_SECONDS)
        return run(step)

    runner.run = slow  # type: ignore[method-assign]
    with running(client, text, ServerSettings(names=(NAME,))) as address:
        yield client, address
    client.close()


def leave(address: str, *, stream: bool) -> None:
    timeout = httpx.Timeout(20, read=4 * STEP_SECONDS)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{address}/v1/chat/completions", json=BODY | {"stream": stream}, timeout=timeout)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("policy", ["stop", "finish"])
def test_who_leaves_while_the_prompt_is_read(checkpoint: Path, policy: str, stream: bool) -> None:
    with slow_server(checkpoint, policy) as (client, address):
        leave(address, stream=stream)
        wait_until(lambda: client.stats().running == client.stats().waiting == 0)
        stats = client.stats()
        assert (stats.aborted, stats.slots_used) == (1, stats.snapshots)
        again = httpx.post(f"{address}/v1/chat/completions", json=BODY, timeout=60).json()["usage"]
        prompt, cached = again["prompt_tokens"], again["prompt_tokens_details"]["cached_tokens"]
        if policy == "finish":
            assert stats.prompt_tokens >= prompt - 1
            assert cached == prompt - 1
        else:
            assert stats.prompt_tokens < prompt - 4 * STEP_TOKENS
            assert cached == stats.prompt_tokens  # whatever was read is not read again
