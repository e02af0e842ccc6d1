"""Servers for the tests: the real application on a real socket, over the real engine or a scripted one."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
from openai import OpenAI

from qwench.cli.serve import bind
from qwench.config import EngineConfig
from qwench.engine.client import EngineClient
from qwench.server.app import build_app
from qwench.server.run import Server, configure
from qwench.server.service import ServerSettings
from qwench.text.model import ModelText
from tests.server.scripted import ScriptedEngine
from tests.server.tiny import write_checkpoint, write_text

NAME = "tiny"
SAID = {"messages", "prompt", "input"}


class Client(httpx.Client):
    """Names the model in every question that does not; what it may be called is for ``test_naming.py``."""

    def build_request(self, method: str, url: httpx.URL | str, *, json: Any = None, **more: Any) -> httpx.Request:
        if isinstance(json, dict) and "model" not in json and json.keys() & SAID:
            json = {"model": NAME, **json}
        return super().build_request(method, url, json=json, **more)


@contextmanager
def running(client: EngineClient, text: ModelText, settings: ServerSettings) -> Iterator[str]:
    """The address of a server of ``client`` that runs in a thread."""
    with bind("127.0.0.1", 0) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = Server(configure(build_app(client, text, settings)), client, drain=0.1)
        run = functools.partial(copy_context().run, server.run, [listener])  # plans of faults reach the server
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield address
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without weights."""
    return write_text(tmp_path_factory.mktemp("server") / "text")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("server") / "whole")


@pytest.fixture(scope="session")
def engine(checkpoint: Path) -> Iterator[EngineClient]:
    """The real engine over random weights."""
    import torch

    torch.set_num_threads(1)
    client = EngineClient(EngineConfig(model=str(checkpoint), dtype="float32", device="cpu"))
    text = ModelText(client.files, client.model)
    client.start(text.vocabulary)
    client.wait_ready(60)
    yield client
    client.close()


@pytest.fixture(scope="session")
def text(checkpoint: Path, engine: EngineClient) -> ModelText:
    return ModelText(checkpoint, engine.model)


@pytest.fixture(scope="session")
def address(engine: EngineClient, text: ModelText) -> Iterator[str]:
    """A server over the real engine."""
    settings = ServerSettings(names=(NAME, "short"), max_body_bytes=200_000)
    with running(engine, text, settings) as address:
        yield address


@pytest.fixture(scope="session")
def openai(address: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def http(address: str) -> Iterator[httpx.Client]:
    with Client(base_url=address, timeout=30) as client:
        yield client


class Start(Protocol):
    """Starts a server over the engine that ``make(folder)`` gives."""

    def __call__(
        self, make: Callable[[Path], ScriptedEngine], **settings: Any
    ) -> tuple[ScriptedEngine, httpx.Client]: ...


@pytest.fixture
def scripted(text_folder: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(make: Callable[[Path], ScriptedEngine], **settings: Any) -> tuple[ScriptedEngine, httpx.Client]:
            engine = make(text_folder)
            chosen = ServerSettings(**{"names": (NAME,), **settings})
            address = stack.enter_context(running(engine, engine.text, chosen))
            return engine, stack.enter_context(Client(base_url=address, timeout=20))

        yield start


def wait_until(done: Callable[[], bool], seconds: float = 20.0) -> None:
    """Until ``done()``; fails when it takes longer than ``seconds``."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
