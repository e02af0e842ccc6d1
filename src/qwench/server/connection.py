"""One connection: the times and sizes that h11 and uvicorn leave open, and their refusals in our words.

A request's head has to come within a time and a size, who is answered has to read on, and what is still sent of a body
that nobody reads any more is passed over for a moment only. Knows no route.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol, RequestResponseCycle

from qwench.errors import QwenchError, RequestError
from qwench.server.errors import HeadTooLarge, encode, error_body

HEAD_BYTES = 32 * 1024
HEAD_SECONDS = 20.0  # from the connection, or a later head's first byte, to that head's end
LINGER_SECONDS = 2.0  # for a client that is still sending what was refused already: it may read the refusal
SEND_BYTES = 128 * 1024  # that the kernel takes ahead of a client; left to itself it takes megabytes, and nobody stalls
STALL_SECONDS = 30.0  # in which a client has to read something of what waits for it


class Gathered:
    """A transport that hands on as one piece what is written in one turn of the loop: an answer's head and its body, or
    the events of one step, take one call of the system and not two or more."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._pieces: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not data:
            return
        if not self._pieces:
            self._loop.call_soon(self.hand_on)
        self._pieces.append(data)

    def close(self) -> None:
        """What was written is still sent."""
        self.hand_on()
        self._transport.close()

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self._pieces)) + self._transport.get_write_buffer_size()

    def hand_on(self) -> None:
        if self._pieces:
            data = b"".join(self._pieces)
            self._pieces.clear()
            self._transport.write(data)


class Connection(H11Protocol):
    """h11 on purpose: it refuses what a proxy before it could read differently."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self._clock: asyncio.TimerHandle | None = None
        self._watched = ""  # what the clock runs for
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._gathered = Gathered(transport, self.loop)
        super().connection_made(cast("asyncio.Transport", self._gathered))
        line = transport.get_extra_info("socket")
        if line is not None:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def eof_received(self) -> None:
        """asyncio closes what is half-closed by the client; what was written before is still sent."""
        self._gathered.hand_on()
        super().eof_received()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        for clock in (self._clock, self._stall):
            if clock is not None:
                clock.cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """One clock at a time, for a head that has begun or a body that is passed over; it starts when that does."""
        now = self._now()
        if now == self._watched:
            return
        if self._clock is not None:
            self._clock.cancel()
        late: dict[str, tuple[float, Callable[[], None]]] = {
            "head": (HEAD_SECONDS, self.transport.close),
            "rest": (LINGER_SECONDS, self.transport.close),
        }
        self._watched, self._clock = now, None
        if now:
            self._clock = self.loop.call_later(*late[now])

    @property
    def _cycle(self) -> RequestResponseCycle | None:
        """The request that came last; uvicorn's own type forgets that there may be none."""
        return self.cycle

    def _now(self) -> str:
        if self.transport.is_closing():
            return ""
        if self.conn.their_state is h11.IDLE and (self._cycle is None or self.conn.trailing_data[0]):
            return "head"
        passed_over = self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY
        return "rest" if passed_over else ""

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()

    def _expect_reading(self) -> None:
        waiting = self.transport.get_write_buffer_size()

        def look() -> None:
            if self.transport.get_write_buffer_size() < waiting:
                self._expect_reading()
            else:
                self.transport.abort()

        self._stall = self.loop.call_later(STALL_SECONDS, look)

    def send_400_response(self, msg: str) -> None:
        """What h11 cannot read is refused like everything else, if an answer has not begun."""
        del msg  # uvicorn's
        if self._cycle is not None and not self._cycle.response_complete:
            self._cycle.disconnected = True
            self._cycle.message_event.set()
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.close()
            return
        status = getattr(sys.exception(), "error_status_hint", 400)
        error: QwenchError = RequestError("This is no HTTP request that can be read; send one as in RFC 9112.")
        if status == HeadTooLarge.status:
            error = HeadTooLarge(f"The head of the request is larger than {HEAD_BYTES} bytes; send fewer headers.")
        body = encode(error_body(error))
        head = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        told = h11.Response(status_code=error.status, headers=list(head.items()), reason=STATUS_PHRASES[error.status])
        for event in (told, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
