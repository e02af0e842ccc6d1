"""Uvicorn around the gateway: a signal lets running answers end, then stops them as the stop button does."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
from types import FrameType

import uvicorn

from qwench.gateway.app import build_app
from qwench.gateway.house import House
from qwench.server.run import DRAIN_SECONDS, configure

SWITCH_SECONDS = (
    0.0005  # an event that has come waits so long for the ledger's thread, not Python's usual ten times that
)


class Server(uvicorn.Server):
    """Ends when signalled: running answers are finished, then told, never just cut."""

    def __init__(self, config: uvicorn.Config, house: House, drain: float = DRAIN_SECONDS) -> None:
        super().__init__(config)
        self._house, self._drain = house, drain
        self._forgetting: asyncio.Task[None]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends gracefully, the second at once."""
        del sig, frame
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._forgetting = asyncio.create_task(self._house.forget())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._forgetting.cancel()
        stopping = asyncio.create_task(self._stop())
        await super().shutdown(sockets)
        stopping.cancel()
        self._house.close()

    async def _stop(self) -> None:
        await asyncio.sleep(self._drain)
        self._house.halt.close()


def serve(house: House, listener: socket.socket) -> None:
    """Serve on ``listener`` until a signal."""
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()  # what is loaded stays; looking it all through again and again would stop the streams meanwhile
    Server(configure(build_app(house)), house).run(sockets=[listener])
