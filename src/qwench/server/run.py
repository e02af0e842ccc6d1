"""Uvicorn around the application: one listening socket, a graceful end on SIGINT and SIGTERM."""

from __future__ import annotations

import asyncio
import socket
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import ASGIApp

from qwench.errors import EngineUnavailable
from qwench.server.connection import HEAD_BYTES, Connection

if TYPE_CHECKING:
    from qwench.engine.client import EngineClient

DRAIN_SECONDS = 5.0  # what running answers get to end by themselves
LAST_SECONDS = 10  # then the engine stops and tells them; after this, connections are cut
TOLD_SECONDS = 1  # to tell those who wait that the server ends at once
IDLE_SECONDS = 75  # longer than clients keep idle connections, so that none is closed under a new request


class Server(uvicorn.Server):
    """Ends when signalled or when the engine has failed; running answers are finished, then told, never just cut."""

    def __init__(self, config: uvicorn.Config, client: EngineClient, drain: float = DRAIN_SECONDS) -> None:
        super().__init__(config)
        self._client = client
        self._drain = drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends gracefully, the second at once. Unlike uvicorn, it is not raised again afterwards."""
        del sig, frame
        self.force_exit = self.should_exit
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._client.status().state == "failed"

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        stopping = asyncio.create_task(self._stop_engine())
        await super().shutdown(sockets)
        stopping.cancel()
        if self.force_exit:  # uvicorn would tear off whatever is under way
            await self._end_at_once()

    async def _stop_engine(self) -> None:
        await asyncio.sleep(self._drain)
        await asyncio.to_thread(self._client.close)

    async def _end_at_once(self) -> None:
        """Running answers are told so, and what batches have so far is kept."""
        if self._client.status().state == "ready":
            await asyncio.to_thread(self._client.close)
        if self.server_state.tasks:
            await asyncio.wait(set(self.server_state.tasks), timeout=TOLD_SECONDS)
        await self.lifespan.shutdown()


def configure(app: ASGIApp) -> uvicorn.Config:
    """Uvicorn's settings: no log set-up of its own, no line per request, no server name in the headers,
    nothing believed of proxies, no web sockets."""
    return uvicorn.Config(
        app,
        http=Connection,
        h11_max_incomplete_event_size=HEAD_BYTES,
        ws="none",
        proxy_headers=False,
        lifespan="on",
        log_level="error",  # what is wrong with a request is told to who sent it
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=int(DRAIN_SECONDS) + LAST_SECONDS,
    )


def serve(app: ASGIApp, client: EngineClient, listener: socket.socket) -> None:
    """Serve on ``listener`` until a signal. Raises what made the engine fail."""
    Server(configure(app), client).run(sockets=[listener])
    if client.status().state == "failed":
        client.wait_ready()  # raises why loading failed
        raise EngineUnavailable(f"The engine stopped serving: {client.status().message}.")
    if client.status().state == "ready":  # a load that is under way cannot be interrupted; it ends with the process
        client.close()
