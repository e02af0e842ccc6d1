"""The servers that are asked: nano over the real engine, and a listener that nobody must be sent to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from qwench.config import EngineConfig
from qwench.engine.client import EngineClient
from qwench.server.keys import Key
from qwench.server.service import ServerSettings
from qwench.text.model import ModelText
from tests.hostile.target import Target
from tests.server.conftest import running, scripted, text_folder

__all__ = ["scripted", "text_folder"]  # fixtures of the server's tests

SECRET = "sk-hostile-0123456789abcdef"
BODY_LIMIT = 4 << 20


class Lasting(EngineClient):
    """An engine that outlives the servers over it, which close theirs."""

    def close(self) -> None:
        pass

    def end(self) -> None:
        super().close()


@pytest.fixture(scope="session")
def nano() -> Iterator[EngineClient]:
    client = Lasting(EngineConfig(model="nano", max_model_len=4096, max_num_seqs=8))
    client.start(ModelText(client.files, client.model).vocabulary)
    client.wait_ready(60)
    yield client
    client.end()


@pytest.fixture(scope="session")
def nano_text(nano: EngineClient) -> ModelText:
    return ModelText(nano.files, nano.model)


@pytest.fixture(scope="session", params=["without a key", pytest.param("with a key", marks=pytest.mark.slow)])
def target(request: pytest.FixtureRequest, nano: EngineClient, nano_text: ModelText) -> Iterator[Target]:
    key = SECRET if request.param == "with a key" else None
    keys = (Key.of(key),) if key else ()
    settings = ServerSettings(names=("nano",), keys=keys, max_body_bytes=BODY_LIMIT)
    with running(nano, nano_text, settings) as address:
        yield Target(address, key)


class Trap:
    """A listener on this machine; ``visits`` counts who came."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.socket.getsockname()[1])
        self.visits = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.visits += 1
            connection.close()


@pytest.fixture(scope="session")
def trap() -> Iterator[Trap]:
    found = Trap()
    yield found
    found.socket.close()
