"""A client that leaves while its prompt is read, over HTTP and the real engine: it is noticed then, not at the end."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from qwench.config import EngineConfig
from qwench.engine.client import EngineClient
from qwench.engine.scheduler import RowResult, Step
from qwench.server.service import ServerSettings
from qwench.text.model import ModelText
from tests.server.conftest import NAME, running, wait_until

STEP_TOKENS, STEP_SECONDS = 4, 0.05
NEAR = 64  # tokens; a state that saves fewer is not kept
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


def leave(client: EngineClient, address: str, *, stream: bool) -> None:
    """Ask, and go once the prompt is being read."""
    where, body = urlsplit(address), json.dumps(BODY | {"stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {where.netloc}\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection((where.hostname, where.port)) as connection:
        connection.sendall(head.encode() + body)
        wait_until(lambda: client.stats().prompt_tokens > 0)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("policy", ["stop", "finish"])
def test_who_leaves_while_the_prompt_is_read(checkpoint: Path, policy: str, stream: bool) -> None:
    with slow_server(checkpoint, policy) as (client, address):
        leave(client, address, stream=stream)
        wait_until(lambda: client.stats().aborted == 1 and client.stats().running == client.stats().waiting == 0)
        stats = client.stats()
        assert stats.slots_used == stats.snapshots
        again = httpx.post(f"{address}/v1/chat/completions", json=BODY, timeout=60).json()["usage"]
        prompt, cached = again["prompt_tokens"], again["prompt_tokens_details"]["cached_tokens"]
        if policy == "finish":
            assert stats.prompt_tokens >= prompt - 1
            assert cached == prompt - 1
        else:
            assert stats.prompt_tokens < prompt - 4 * STEP_TOKENS
            assert cached > stats.prompt_tokens - NEAR
