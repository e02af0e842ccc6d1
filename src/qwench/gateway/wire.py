"""HTTP/1.1 on bare sockets: one exchange at a time over a connection, and the connections to one place that are kept.

What arrives is parsed as it arrives and waits in memory until it is asked for; where that is not soon, the sender is
slowed down. h11 reads and writes the protocol. Knows no API, no status and no patience but that of connecting.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import h11
import httpx

from qwench.gateway.tiers import is_loopback

HEAD_BYTES = 100 * 1024  # of an answer's head
AHEAD_BYTES = 256 * 1024  # that may wait to be asked for; then the sender waits
KEPT_SECONDS = 5.0  # servers close connections that nothing comes over; ours is to be gone before
MOST_KEPT = 256
LINGER_SECONDS = 0.2  # from an answer's last word to its end
HAPPY_EYEBALLS = 0.25  # seconds until another address of a name is tried as well, RFC 8305
AGENT = "qwench"


class Unreached(Exception):
    """There is no connection."""


class Broken(Exception):
    """The connection ended too early, or what came over it is no HTTP."""


class Silent(Exception):
    """Nothing came for too long."""


@dataclass(frozen=True)
class Head:
    """Of an answer."""

    status: int
    headers: Mapping[str, str]  # names in small letters; of several with one name the last

    @classmethod
    def of(cls, told: h11.Response) -> Head:
        return cls(told.status_code, {name.decode("latin-1"): value.decode("latin-1") for name, value in told.headers})


@dataclass(frozen=True)
class Place:
    """Where connections go to. ``prefix``: of every path."""

    host: str
    port: int
    secure: bool
    named: str  # as the host header has it
    prefix: str

    @classmethod
    def of(cls, url: str) -> Place:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode()
        secure = parts.scheme == "https"
        shown = f"[{host}]" if ":" in host else host
        named = f"{shown}:{parts.port}" if parts.port else shown
        return cls(host, parts.port or (443 if secure else 80), secure, named, parts.path)


class Wire(asyncio.Protocol):
    """One connection. ``ended`` is called when an answer's end has come, whoever listens."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._head: Head | None = None
        self._pieces: list[bytes] = []
        self._ahead = 0
        self._over, self._lost, self._slowed = False, False, False
        self.ended: Callable[[Wire], None] | None = None
        self.clock: asyncio.TimerHandle | None = None  # of a connection that nobody uses

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self.fresh:  # nobody asked
            self._lost = True
            self.abort()
        else:
            self._take(data)

    def eof_received(self) -> None:
        self._take(b"")

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._lost = True
        self._wake()

    @property
    def begun(self) -> bool:
        """Whether an answer is still coming."""
        return not self._lost and self._http.our_state is h11.DONE and self._http.their_state is h11.SEND_BODY

    @property
    def done(self) -> bool:
        """Whether an exchange is over, and another may follow."""
        over = self._http.our_state is h11.DONE and self._http.their_state is h11.DONE
        return over and not self._lost and self._http.trailing_data == (b"", False)

    @property
    def fresh(self) -> bool:
        """Whether an exchange may begin."""
        return not self._lost and self._http.our_state is h11.IDLE and self._http.their_state is h11.IDLE

    def send(self, place: Place, path: str, headers: Mapping[str, str], body: bytes) -> None:
        """Begin an exchange. What is sent is in memory anyway; an answer may come before it is all read."""
        assert self._transport is not None
        told = {"host": place.named, "user-agent": AGENT, "accept": "*/*", "content-length": str(len(body)), **headers}
        request = h11.Request(method="POST", target=f"{place.prefix}{path}", headers=list(told.items()))
        parts = (request, h11.Data(data=body), h11.EndOfMessage())
        self._transport.write(b"".join(self._http.send(part) or b"" for part in parts))

    async def head(self, until: float) -> Head:
        """Raises Broken, and Silent ``until`` then."""
        while self._head is None:
            await self._wait(until)
        return self._head

    async def read(self, until: float) -> bytes:
        """What has come of the body, at least a byte; none at its end. Raises Broken, and Silent ``until`` then."""
        while not self._pieces and not self._over:
            await self._wait(until)
        told = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces, self._ahead = [], 0
        if self._slowed and self._transport is not None:
            self._slowed = False
            self._transport.resume_reading()
        return told

    def renew(self) -> None:
        """Make ready for another exchange. Only where ``done``."""
        self._http.start_next_cycle()
        self._head, self._over, self._pieces, self._ahead = None, False, [], 0

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _take(self, data: bytes) -> None:
        """Parse what came. After what is no HTTP, or more than was asked for, the connection is over."""
        try:
            self._http.receive_data(data)
            while (event := self._http.next_event()) is not h11.NEED_DATA and event is not h11.PAUSED:
                if isinstance(event, h11.Data):
                    self._pieces.append(bytes(event.data))
                    self._ahead += len(event.data)
                elif isinstance(event, h11.Response):
                    self._head = Head.of(event)
                elif isinstance(event, h11.EndOfMessage):
                    self._over = True
                elif isinstance(event, h11.ConnectionClosed):
                    break
        except (h11.RemoteProtocolError, RuntimeError):  # the second where more comes after the end
            self._lost = True
            self.abort()
        if self._ahead > AHEAD_BYTES and not self._slowed and not self._lost and self._transport is not None:
            self._slowed = True
            self._transport.pause_reading()
        self._wake()
        if self._over and self.ended is not None:
            self.ended(self)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self, until: float) -> None:
        """For whatever comes next. Raises Broken where nothing will."""
        if self._lost:
            raise Broken
        self._waiter = self._loop.create_future()
        clock = self._loop.call_at(until, _tire, self._waiter) if until < math.inf else None
        try:
            await self._waiter
        finally:
            self._waiter = None
            if clock is not None:
                clock.cancel()


def _tire(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(Silent())


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Wires:
    """The connections to one place. ``offline``: it must be on this machine, and no name is looked up."""

    def __init__(self, url: str, *, offline: bool) -> None:
        self._place = Place.of(url)
        self._offline = offline
        self._kept: list[Wire] = []
        self._lingering: set[Wire] = set()
        self._closed = False
        self._tls: ssl.SSLContext | None = None
        if self._place.secure:
            self._tls = httpx.create_ssl_context(trust_env=False)
            self._tls.set_alpn_protocols(["http/1.1"])

    async def ask(self, path: str, headers: Mapping[str, str], body: bytes, connect: float) -> Wire:
        """A connection over which a request has begun. Raises Unreached, after ``connect`` seconds at most."""
        wire = self._newest() or await self._connected(connect)
        wire.send(self._place, path, headers, body)
        return wire

    def give(self, wire: Wire) -> None:
        """Take a connection back. If its answer is over, or is in a moment, it can be used again; else it is closed,
        which is how an upstream learns that nobody listens."""
        if wire.done and len(self._kept) < MOST_KEPT and not self._closed:
            wire.renew()
            wire.ended = None
            self._kept.append(wire)
            self._watch(wire, KEPT_SECONDS)
        else:
            wire.abort()

    def linger(self, wire: Wire) -> None:
        """As ``give``, of an answer after whose last word nothing comes but its end."""
        if wire.begun and not self._closed:
            wire.ended = self._ended
            self._lingering.add(wire)
            self._watch(wire, LINGER_SECONDS)
        else:
            self.give(wire)

    def close(self) -> None:
        self._closed = True
        for wire in (*self._kept, *self._lingering):
            self._unwatch(wire)
            wire.abort()
        self._kept.clear()
        self._lingering.clear()

    def _ended(self, wire: Wire) -> None:
        self._lingering.discard(wire)
        self._unwatch(wire)
        self.give(wire)

    def _newest(self) -> Wire | None:
        while self._kept:
            wire = self._kept.pop()
            self._unwatch(wire)
            if wire.fresh:
                return wire
        return None

    async def _connected(self, seconds: float) -> Wire:
        place, host = self._place, self._place.host
        if self._offline:
            assert is_loopback(host), f"offline, and asked to connect to {host}"
            host = "127.0.0.1" if host == "localhost" else host
        name, loop = place.host if self._tls else None, asyncio.get_running_loop()
        # Only a name has several addresses; trying them together, asyncio forgets a socket if it is interrupted.
        delay = None if _is_number(host) else HAPPY_EYEBALLS
        try:
            async with asyncio.timeout(seconds):
                _, wire = await loop.create_connection(
                    Wire, host, place.port, ssl=self._tls, server_hostname=name, happy_eyeballs_delay=delay
                )
        except OSError:  # also of names, certificates, and time
            raise Unreached from None
        return wire

    def _watch(self, wire: Wire, seconds: float) -> None:
        wire.clock = asyncio.get_running_loop().call_later(seconds, self._expire, wire)

    @staticmethod
    def _unwatch(wire: Wire) -> None:
        if wire.clock is not None:
            wire.clock.cancel()

    def _expire(self, wire: Wire) -> None:
        self._lingering.discard(wire)
        if wire in self._kept:
            self._kept.remove(wire)
        wire.abort()
