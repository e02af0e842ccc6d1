"""Goals 8 and 15 (its first half), seen from outside; and which sockets there are."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.hostile.target import CHAT, NORMAL
from tests.reliability.effort import busy, effort
from tests.reliability.process import Served, served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

LONG: dict[str, Any] = {**NORMAL, "max_tokens": 3_500, "min_tokens": 3_500, "stream": True}
DRAIN = 5.0


class Reader(threading.Thread):
    """Reads one stream to its end."""

    def __init__(self, server: Served) -> None:
        super().__init__(daemon=True)
        self._address = server.address
        self.begun = threading.Event()
        self.last = ""
        self.failure: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            with httpx.stream("POST", f"{self._address}{CHAT}", json=LONG, timeout=60) as answer:
                for line in answer.iter_lines():
                    if line.startswith("data"):
                        self.begun.set()
                        self.last = line
        except httpx.HTTPError as error:
            self.failure = error


def test_goal_08_sigterm_drains(tmp_path: Path) -> None:
    for number in range(effort("rounds of SIGTERM")):
        with served(tmp_path, "--max-model-len", "4096", "--max-num-seqs", "4") as server:
            readers = [Reader(server) for _ in range(4)]
            assert all(reader.begun.wait(30) for reader in readers)
            twice = number % 3 == 2
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            ready_for = _unready_after(server, began)
            if twice:
                server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(30) == 0
            took = time.monotonic() - began
            assert ready_for < 0.1 + 0.15 * busy()  # uvicorn looks ten times a second
            assert took < (1.5 if twice else DRAIN + 2) * busy()
            for reader in readers:
                reader.join(10)
                ended = reader.last == "data: [DONE]" or '"error"' in reader.last
                assert twice or (ended and reader.failure is None), (reader.last[-200:], reader.failure)
            assert "Traceback" not in server.log.read_text()


def _unready_after(server: Served, began: float) -> float:
    """Seconds until a new connection is no longer answered."""
    while time.monotonic() - began < 10:
        try:
            if httpx.get(f"{server.address}/health", timeout=5).status_code == 503:
                break
        except httpx.HTTPError:
            break
    return time.monotonic() - began


def test_there_is_one_socket_and_it_listens_on_this_machine_alone(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        assert httpx.post(f"{server.address}{CHAT}", json=NORMAL, timeout=60).status_code == 200
        port = f"{int(server.address.rpartition(':')[2]):04X}"
        assert server.listeners() == [f"0100007F:{port}"]
        assert json.loads(httpx.get(f"{server.address}/version").text)
