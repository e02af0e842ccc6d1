"""Bytes that are no request, requests without an end, and requests that two readers read differently."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from qwench.server import body as body_module
from qwench.server import connection as connection_module
from tests.hostile.conftest import Trap
from tests.hostile.target import CHAT, NORMAL, Target

BODY = json.dumps(NORMAL).encode()


def head(target: Target, *lines: str, path: str = CHAT, method: str = "POST", version: str = "1.1") -> bytes:
    """The head of a request with ``lines`` among its headers."""
    key = [f"authorization: Bearer {target.key}"] if target.key else []
    told = [f"{method} {path} HTTP/{version}", "host: localhost", "content-type: application/json", *key, *lines]
    return "\r\n".join([*told, "", ""]).encode("latin-1")


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.fixture(autouse=True)
def _alive(target: Target) -> Iterator[None]:
    before = target.text()
    yield
    assert target.text() == before


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's patience in tenths of seconds."""
    monkeypatch.setattr(connection_module, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(connection_module, "LINGER_SECONDS", 0.2)
    monkeypatch.setattr(body_module, "BODY_SECONDS", 0.5)


def refused(told: tuple[int, bytes], *statuses: int) -> None:
    """One answer with one of the statuses, in the shape of an error."""
    status, answer = told
    assert status in statuses, answer[:300]
    assert answer.count(b"HTTP/1.1 ") == 1, "a second answer to one request"
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
    assert b"uvicorn" not in answer.lower()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0\0\0\0", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\n", b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", b"GET / HTTP/1.1\r\nhost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx y: z\r\n\r\n", b"GET / HTTP/1.1\r\nhost: a\r\nx: \0\r\n\r\n", b"G\xc3\xa9T / HTTP/1.1\r\nhost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -5\r\n\r\n", b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n", b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused_in_our_words(target: Target, garbage: bytes) -> None:
    nobodys = 401 if target.key else 403  # what can be read comes without a key, or without a host
    refused(target.raw(garbage, close=True), 400, nobodys, 431, 501, 505)


def test_one_header_of_a_megabyte(target: Target) -> None:
    refused(target.raw(head(target, "x: " + "y" * 1_000_000)), 431)


def test_ten_thousand_headers(target: Target) -> None:
    status, told = target.raw(head(target, "connection: close", *[f"x{n}: y" for n in range(10_000)]))
    assert status in (431, 0), told[:200]


def test_headers_of_32_megabytes_without_an_end(target: Target) -> None:
    began = time.monotonic()
    status, _ = target.raw(head(target)[:-2] + b"x: " + b"y" * (32 << 20))
    assert status in (431, 0)
    assert time.monotonic() - began < 10


def test_a_length_of_ten_gigabytes_is_refused_before_the_body_comes(target: Target, hasty: None) -> None:
    began = time.monotonic()
    refused(target.raw(head(target, "content-length: 10000000000") + b"{"), 413)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "in chunks"])
def test_a_body_without_an_end_is_neither_kept_nor_waited_for(target: Target, hasty: None, announced: bool) -> None:
    where = urlsplit(target.address)
    opening = head(target, "content-length: 200000000" if announced else "transfer-encoding: chunked")
    piece = b"x" * 65_536
    began, sent = time.monotonic(), 0
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=10) as connection:
        try:
            connection.sendall(opening)
            while time.monotonic() - began < 10:
                connection.sendall(piece if announced else b"10000\r\n" + piece + b"\r\n")
                sent += len(piece)
        except OSError:
            pass
    assert time.monotonic() - began < 9, f"still reading after {sent} bytes"


def test_a_chunk_of_more_than_there_is(target: Target, hasty: None) -> None:
    refused(target.raw(head(target, "transfer-encoding: chunked") + b"FFFFFFFFFFFFFFFF\r\n{"), 400, 408)


def test_a_body_that_does_not_come(target: Target, hasty: None) -> None:
    refused(target.raw(head(target, "content-length: 100") + b"{"), 408)


def test_a_body_of_one_byte_at_a_time(target: Target, hasty: None) -> None:
    refused(trickled(target, head(target, "content-length: 5000"), b"{" * 5_000), 408)


def test_a_head_of_one_byte_at_a_time(target: Target, hasty: None) -> None:
    status, _ = trickled(target, b"", head(target, *["x: y"] * 50))
    assert status == 0


def test_a_connection_that_says_nothing(target: Target, hasty: None) -> None:
    assert target.raw(b"", seconds=5) == (0, b"")


def trickled(target: Target, at_once: bytes, slowly: bytes) -> tuple[int, bytes]:
    """What comes back while ``slowly`` is sent byte by byte; fails where the server takes it for five seconds."""
    where = urlsplit(target.address)
    began = time.monotonic()
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=5) as connection:
        connection.sendall(at_once)
        connection.settimeout(0.02)
        for place in range(len(slowly)):
            try:
                connection.sendall(slowly[place : place + 1])
                told = connection.recv(65_536)
            except TimeoutError:
                assert time.monotonic() - began < 5, "it is still waiting"
                continue
            except OSError:
                return 0, b""
            status = int(told[9:12]) if told else 0
            return status, told
    raise AssertionError("it took all of it")


def test_a_length_and_chunks_are_two_ways_to_read_it(target: Target) -> None:
    smuggled = head(target, path="/version", method="GET")
    for lines in (
        ("content-length: 5", "transfer-encoding: chunked"),
        ("transfer-encoding: chunked", "content-length: 5"),
    ):
        refused(target.raw(head(target, *lines) + b"0\r\n\r\n" + smuggled), 400)


def test_a_chunk_without_its_line_end(target: Target, hasty: None) -> None:
    refused(target.raw(head(target, "transfer-encoding: chunked") + b"2\r\n{}XX0\r\n\r\n"), 400)


def test_chunks_are_read_like_a_body(target: Target) -> None:
    status, told = target.raw(
        head(target, "transfer-encoding: chunked", "connection: close") + chunked(BODY[:10], BODY[10:])
    )
    assert status == 200
    assert b'"choices"' in told


def test_two_requests_in_one_write_are_two_answers(target: Target) -> None:
    one = head(target, path="/version", method="GET")
    last = head(target, "connection: close", path="/version", method="GET")
    _, told = target.raw(one + last)
    assert told.count(b"HTTP/1.1 200") == 2


def test_upgrades_are_not_taken_up(target: Target) -> None:
    asked = ("upgrade: websocket", "connection: upgrade", "sec-websocket-key: x", "sec-websocket-version: 13")
    status, _ = target.raw(head(target, *asked, path="/v1/chat/completions", method="GET"), seconds=2)
    assert status in (400, 404, 405)


def test_no_proxy_is_open(target: Target, trap: Trap) -> None:
    there = f"http://127.0.0.1:{trap.port}/x"
    for method in ("GET", "CONNECT"):
        path = there if method == "GET" else f"127.0.0.1:{trap.port}"
        status, _ = target.raw(head(target, "connection: close", path=path, method=method), seconds=2)
        assert status != 200
    assert trap.visits == 0


@pytest.mark.parametrize(
    "host", ["x/health?", "x/health#", "localhost/health?", "@/health", "x\\health", "[::1", "x y"]
)
@pytest.mark.parametrize("path", ["/v1/models", CHAT, "/metrics"])
def test_a_host_that_looks_like_a_path_opens_nothing(target: Target, host: str, path: str) -> None:
    asked = f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode()
    status, told = target.raw(asked, seconds=5)
    assert status in (400, 401, 403), told[:200]


def test_a_reader_that_reads_nothing_is_cut_off(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "STALL_SECONDS", 0.5)
    where = urlsplit(target.address)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((where.hostname or "", where.port or 0))
        connection.settimeout(15)
        asked = head(target, path="/openapi.json", method="GET")
        for _ in range(400):  # many answers, of which none is read
            connection.sendall(asked)
        time.sleep(3)
        read = 0
        try:
            while piece := connection.recv(65_536):
                read += len(piece)
        except ConnectionError:
            pass
    assert read < 400 * len(target.raw(head(target, "connection: close", path="/openapi.json", method="GET"))[1])
