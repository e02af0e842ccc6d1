"""Connections to upstreams, against a server that is a script: what is kept, what is closed, what is no answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from qwench.gateway import wire as wires
from qwench.gateway.wire import AHEAD_BYTES, Broken, Place, Silent, Unreached, Wire, Wires

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n"
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


@dataclass
class Script:
    """Writes one list of pieces for each request; None closes the connection, a number waits."""

    answers: list[Sequence[bytes | float | None]]
    port: int = 0
    connections: int = 0
    heads: list[bytes] = field(default_factory=list)
    running: list[asyncio.Task[None]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.running.append(task)
        try:
            await self._serve(reader, writer)
        finally:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
                self.heads.append(head + await reader.readexactly(int(size.partition(b":")[2])))
                for piece in self.answers.pop(0):
                    if piece is None:
                        writer.close()
                        await writer.wait_closed()
                        return
                    if isinstance(piece, float):
                        await asyncio.sleep(piece)
                    else:
                        writer.write(piece)
                        await writer.drain()


class Watched(Wires):
    """Whose connections can all be closed, whoever has them."""

    def __init__(self, url: str) -> None:
        super().__init__(url, offline=True)
        self.made: list[Wire] = []

    async def ask(self, path: str, headers: Mapping[str, str], body: bytes, connect: float) -> Wire:
        self.made.append(await super().ask(path, headers, body, connect))
        return self.made[-1]


@asynccontextmanager
async def scripted(*answers: Sequence[bytes | float | None]) -> AsyncGenerator[tuple[Script, Wires]]:
    script = Script(list(answers))
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    script.port = server.sockets[0].getsockname()[1]
    places = Watched(f"http://127.0.0.1:{script.port}/base")
    try:
        yield script, places
    finally:
        places.close()
        for wire in places.made:
            wire.abort()
        server.close()
        for task in script.running:
            task.cancel()
        await asyncio.gather(*script.running)
        await asyncio.sleep(0.01)  # sockets close in the loop's next turns


async def ask(places: Wires) -> Wire:
    return await places.ask("/v1/x", {"x-one": "1"}, b"{}", connect=5.0)


async def body(wire: Wire) -> bytes:
    told = b""
    while piece := await wire.read(math.inf):
        told += piece
    return told


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await work()

    asyncio.run(limited())


def test_a_connection_is_kept_after_a_whole_answer_and_only_then() -> None:
    async def work() -> None:
        parted = [HEAD + chunk(b"he")[:4], chunk(b"he")[4:] + chunk(b"llo"), END]
        closed = [b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo", None]
        async with scripted(parted, [WHOLE], closed, [WHOLE]) as (script, places):
            for connections in (1, 1, 1, 2):
                wire = await ask(places)
                assert (await wire.head(math.inf)).status == 200
                assert await body(wire) == b"hello"
                places.give(wire)
                assert script.connections == connections
            assert script.heads[0].startswith(b"POST /base/v1/x HTTP/1.1\r\n")
            assert f"host: 127.0.0.1:{script.port}\r\n".encode() in script.heads[0].lower()
            assert script.heads[0].endswith(b"{}")

    run(work)


def test_who_is_given_back_in_the_middle_hears_that_nobody_listens() -> None:
    async def work() -> None:
        async with scripted([HEAD, chunk(b"one"), 0.0, chunk(b"two"), 5.0], [WHOLE]) as (script, places):
            wire = await ask(places)
            await wire.head(math.inf)
            assert await wire.read(math.inf) != b""
            places.give(wire)
            again = await ask(places)
            assert await body(again) == b"hello"
            assert script.connections == 2
            with pytest.raises(Broken):
                await body(wire)

    run(work)


@pytest.mark.parametrize(("pause", "connections"), [(0.0, 1), (0.02, 1), (10.0, 2)])
def test_after_the_last_word_a_connection_is_kept_if_the_end_comes_soon(pause: float, connections: int) -> None:
    async def work() -> None:
        async with scripted([HEAD + chunk(b"last"), pause, END], [WHOLE]) as (script, places):
            wire = await ask(places)
            assert await wire.read(math.inf) == b"last"
            places.linger(wire)
            await asyncio.sleep(0.1 if pause < 1 else wires.LINGER_SECONDS + 0.1)
            assert await body(await ask(places)) == b"hello"
            assert script.connections == connections

    run(work)


def test_what_is_kept_and_what_lingers_is_closed_with_the_rest() -> None:
    async def work() -> None:
        async with scripted([WHOLE], [HEAD + chunk(b"last"), 5.0]) as (script, places):
            kept, lingering = await ask(places), await ask(places)
            assert await body(kept) == b"hello"
            assert await lingering.read(math.inf) == b"last"
            places.give(kept)
            places.linger(lingering)
            assert script.connections == 2
            places.close()
            await asyncio.sleep(0.01)
            for wire in (kept, lingering):
                with pytest.raises(Broken):
                    await wire.head(math.inf) if wire is kept else await wire.read(math.inf)

    run(work)


def test_a_kept_connection_that_the_upstream_closed_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with scripted([WHOLE, 0.02, None], [WHOLE, 0.02], [WHOLE]) as (script, places):
            for pause in (0.1, 0.2, 0.0):
                wire = await ask(places)
                assert await body(wire) == b"hello"
                places.give(wire)
                monkeypatch.setattr(wires, "KEPT_SECONDS", 0.1)
                await asyncio.sleep(pause)
            assert script.connections == 3, "one was closed by the upstream, one by us"

    run(work)


@pytest.mark.parametrize(
    "told",
    [
        [None],
        [HEAD, chunk(b"half"), None],
        [b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", None],
        [b"SSH-2.0-OpenSSH_9.2\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\nx-long: " + b"x" * 200_000 + b"\r\n\r\n"],
        [HEAD, b"zz\r\n"],
    ],
    ids=["nothing", "half a stream", "half a body", "no HTTP", "a long head", "no chunk"],
)
def test_what_is_no_whole_answer_is_broken(told: Sequence[bytes | float | None]) -> None:
    async def work() -> None:
        async with scripted(told, [WHOLE]) as (_, places):
            wire = await ask(places)
            with pytest.raises(Broken):
                await body(wire)
            places.give(wire)
            assert await body(await ask(places)) == b"hello"

    run(work)


@pytest.mark.parametrize("more", [[WHOLE + WHOLE], [WHOLE, 0.02, b"HTTP/1.1 2"]], ids=["at once", "later"])
def test_an_answer_that_nobody_asked_for_is_nobodys(more: Sequence[bytes | float | None]) -> None:
    async def work() -> None:
        other = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nworld"
        async with scripted(more, [other]) as (script, places):
            wire = await ask(places)
            assert await body(wire) == b"hello"
            places.give(wire)
            await asyncio.sleep(0.1)
            assert await body(await ask(places)) == b"world"
            assert script.connections == 2

    run(work)


def test_what_was_read_before_the_break_is_told_first() -> None:
    async def work() -> None:
        async with scripted([HEAD + chunk(b"half"), None]) as (_, places):
            wire = await ask(places)
            await asyncio.sleep(0.05)
            assert await wire.read(math.inf) == b"half"
            with pytest.raises(Broken):
                await wire.read(math.inf)

    run(work)


def test_silence_is_told_when_it_lasts_too_long() -> None:
    async def work() -> None:
        interim = b"HTTP/1.1 103 Early Hints\r\n\r\n"
        async with scripted([interim, 0.05, HEAD, 5.0]) as (_, places):
            wire, clock = await ask(places), asyncio.get_running_loop().time
            assert (await wire.head(clock() + 1.0)).status == 200
            before = clock()
            with pytest.raises(Silent):
                await wire.read(clock() + 0.1)
            assert 0.09 < clock() - before < 2.0

    run(work)


def test_an_upstream_waits_while_nobody_reads() -> None:
    async def work() -> None:
        sent = [chunk(b"x" * 65_536)] * 160
        async with scripted([HEAD, *sent, END]) as (_, places):
            wire = await ask(places)
            await asyncio.sleep(0.3)
            first = await wire.read(math.inf)
            assert AHEAD_BYTES < len(first) < 4 * AHEAD_BYTES
            assert len(first) + len(await body(wire)) == 160 * 65_536

    run(work)


def test_an_address_where_nobody_listens_is_not_reached() -> None:
    async def work() -> None:
        async with scripted() as (script, places):
            port = script.port
            places.close()
        nobody = Wires(f"http://localhost:{port}", offline=True)
        with pytest.raises(Unreached):
            await nobody.ask("/", {}, b"", connect=2.0)

    run(work)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://127.0.0.1:8000", Place("127.0.0.1", 8000, False, "127.0.0.1:8000", "")),
        ("https://api.example.com/openai", Place("api.example.com", 443, True, "api.example.com", "/openai")),
        ("http://[::1]:81", Place("::1", 81, False, "[::1]:81", "")),
        ("https://bücher.example", Place("xn--bcher-kva.example", 443, True, "xn--bcher-kva.example", "")),
    ],
)
def test_an_address_is_a_place(url: str, place: Place) -> None:
    assert Place.of(url) == place
