"""Addresses: every spelling of this machine is refused, and a listener that must not be reached hears nothing."""

from __future__ import annotations

import ast
import gzip
import http.server
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwench.media import fetch as module
from qwench.media.fetch import Sources, fetch, is_public, parse, public_addresses, read_base64, read_data_uri
from qwench.media.sizes import Unusable
from tests.meta.tree import PACKAGE, files, syntax

WEB = Sources(web=True, most=100_000, seconds=3)


class Listener(http.server.BaseHTTPRequestHandler):
    """Answers as the path says."""

    paths: list[str]

    def do_GET(self) -> None:
        self.paths.append(self.path)
        name = self.path.strip("/").partition("?")[0]
        if name.startswith("to="):
            self.send_response(302)
            self.send_header("Location", name[3:].replace("|", "/"))
            self.end_headers()
        elif name == "loop":
            self.send_response(301)
            self.send_header("Location", "/loop")
            self.end_headers()
        elif name == "slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(200):
                self.wfile.write(b"x")
                time.sleep(0.05)
        elif name == "endless":
            self.send_response(200)
            self.end_headers()
            for _ in range(10_000):
                self.wfile.write(bytes(65_536))
        elif name == "short":
            self.send_response(200)
            self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(b"x" * 10)
        elif name == "gzip":
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            self.wfile.write(gzip.compress(bytes(10_000_000)))
        elif name == "headers":
            self.send_response(200)
            for number in range(500):
                self.send_header(f"X-{number}", "y" * 1000)
            self.end_headers()
        elif name == "missing":
            self.send_error(404)
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"bytes of " + name.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    paths: list[str] = []
    kind = type("L", (Listener,), {"paths": paths})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}", paths
    server.shutdown()
    server.server_close()


SPELLINGS = [
    "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001", "0", "0.0.0.0",  # noqa: S104
    "localhost", "LOCALHOST", "localhost.", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]",
    "[0:0:0:0:0:0:0:1]", "[64:ff9b::7f00:1]", "[64:ff9b::127.0.0.1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]",
    "[::ffff:0:127.0.0.1]", "[2001:0:7f00:1::]", "[fe80::1]", "[fc00::1]", "[ff02::1]", "10.0.0.1", "172.16.0.1",
    "192.168.1.1", "169.254.169.254", "2852039166", "100.64.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
    "198.18.0.1", "[fd00:ec2::254]",
]  # fmt: skip


@pytest.mark.parametrize("host", SPELLINGS)
def test_no_spelling_of_a_private_address_is_reached(host: str, listener: tuple[str, list[str]]) -> None:
    port = listener[0].partition(":")[2]
    with pytest.raises(Unusable) as caught:
        fetch(f"http://{host}:{port}/secret", WEB)
    assert not listener[1]
    assert host.strip("[]") not in caught.value.reason


@pytest.mark.parametrize(
    "address",
    [
        "http://good.example\\@127.0.0.1/", "http://good.example@127.0.0.1/", "http://127.0.0.1\\.good.example/",
        "http://user:key@good.example/", "http://good.example:80:80/", "http://good.example:99999/", "http://good.example:0/",
        "http:///x", "http://", "https://[::1", "http://exa mple/", "http://ex\tample/", "http://example/\r\nHost: x",
        "http://ex%61mple/", "http://①②⑦.⓪.⓪.①/", "http://" + "a" * 5000, "http://[fe80::1%25eth0]/", "http:127.0.0.1/",
    ],
)  # fmt: skip
def test_addresses_that_parsers_read_differently_are_refused(address: str) -> None:
    with pytest.raises(Unusable):
        fetch(address, WEB)


def test_public_addresses_are_public() -> None:
    assert all(map(is_public, ("93.184.216.34", "8.8.8.8", "2606:2800:220:1:248:1893:25c8:1946", "64:ff9b::808:808")))
    assert not any(map(is_public, ("", "x", "127.0.0.1", "::1", "2002:a00:1::", "::ffff:10.0.0.1")))


def test_every_address_of_a_name_must_be_public() -> None:
    assert public_addresses("good.example", 80, lambda *_: ["93.184.216.34"]) == ["93.184.216.34"]
    for found in (["93.184.216.34", "127.0.0.1"], ["::1", "93.184.216.34"], []):
        with pytest.raises(Unusable):
            public_addresses("good.example", 80, lambda *_, found=found: found)


def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that answers differently the second time is not asked a second time."""
    answers = iter([["93.184.216.34"], ["127.0.0.1"]])
    monkeypatch.setattr(public_addresses, "__defaults__", (lambda *_: next(answers),))
    reached: list[Any] = []

    def connect(address: Any, timeout: float) -> socket.socket:
        reached.append(address)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(Unusable):
        fetch("http://rebinding.example/x", WEB)
    assert reached == [("93.184.216.34", 80)]


@pytest.fixture
def web(listener: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[str]]:
    """The listener counts as public, this once: nothing else here does."""
    monkeypatch.setattr(module, "is_public", lambda address: address == "127.0.0.1")
    return f"http://{listener[0]}", listener[1]


def test_bytes_come_over_http(web: tuple[str, list[str]]) -> None:
    assert fetch(f"{web[0]}/picture?x=1", WEB) == (b"bytes of picture", "")
    assert fetch(f"{web[0]}/to=|moved", WEB) == (b"bytes of moved", "")
    assert web[1] == ["/picture?x=1", "/to=|moved", "/moved"]


@pytest.mark.parametrize(
    "target", ["http:||127.0.0.2|x", "http:||[::1]|x", "file:|||etc|passwd", "||10.0.0.1|x", "gopher:||x|"]
)
def test_a_redirect_is_checked_again(target: str, web: tuple[str, list[str]]) -> None:
    with pytest.raises(Unusable):
        fetch(f"{web[0]}/to={target}", WEB)
    assert len(web[1]) == 1


@pytest.mark.parametrize("name", ["slow", "endless", "short", "gzip", "headers", "missing", "loop"])
def test_a_hostile_server_costs_little(name: str, web: tuple[str, list[str]]) -> None:
    start = time.monotonic()
    with pytest.raises(Unusable) as caught:
        fetch(f"{web[0]}/{name}", WEB)
    assert time.monotonic() - start < 8
    assert caught.value.too_large == (name == "endless")
    assert len(web[1]) <= 4
    assert "127.0.0.1" not in caught.value.reason


def test_without_the_operator_nothing_is_fetched(listener: tuple[str, list[str]]) -> None:
    for address in (f"http://{listener[0]}/x", f"HTTPS://{listener[0]}/x"):
        with pytest.raises(Unusable, match="not fetched without"):
            fetch(address, Sources())
    for address in (
        "file:///etc/passwd",
        "/etc/passwd",
        "etc/passwd",
        "ftp://x/",
        "s3://x/y",
        "javascript:1",
        "",
        "C:\\x",
    ):
        with pytest.raises(Unusable, match="neither a data URI"):
            fetch(address, Sources(web=True))
    assert not listener[1]


def test_files_are_read_where_they_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a picture.bin"
    path.write_bytes(b"x" * 100)
    allowed = Sources(files=True, most=100)
    assert fetch(str(path), allowed)[0] == path.read_bytes()
    assert fetch(path.as_uri(), allowed)[0] == path.read_bytes()
    with pytest.raises(Unusable, match="more than the 99 bytes"):
        fetch(str(path), Sources(files=True, most=99))
    for wrong in (tmp_path, tmp_path / "none", "a\0b"):
        with pytest.raises(Unusable, match="cannot be opened"):
            fetch(str(wrong), allowed)


def test_base64_in_every_spelling() -> None:
    data = bytes(range(256))
    for text in ("AAEC", "AA EC\r\n", "_-8", "/+8", "%2F%2B8=", "/+8=", "AAE"):
        assert read_base64(text)
    assert read_base64("_-8") == read_base64("/+8=") == b"\xff\xef"
    packed = "data:image/png;charset=x;base64," + b64encode(data).decode()
    assert read_data_uri(packed, 300) == (data, "image/png")
    assert read_data_uri("data:,a%20b", 10) == (b"a b", "")
    for wrong in (
        "data:image/png;base64,A",
        "data:image/png;base64,ä",
        "data:image/png",
        "data:;;;,x",
        "data:image/png;base64,",
    ):
        with pytest.raises(Unusable):
            read_data_uri(wrong, 100)
    with pytest.raises(Unusable, match="more than the 10 bytes"):
        read_data_uri(packed, 10)


def test_one_file_of_the_package_opens_addresses_out_of_requests() -> None:
    """Two ways in would mean two sets of checks."""
    openers = {"urllib.request", "http.client", "requests", "aiohttp", "urllib3"}
    found = set()
    for path in files(PACKAGE, "*.py"):
        for node in ast.walk(syntax(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if openers.intersection(names):
                found.add(path.relative_to(PACKAGE).as_posix())
    assert {name for name in found if name.startswith(("media/", "server/", "text/", "engine/", "llm"))} == {
        "media/fetch.py"
    }


def test_a_parsed_address_is_what_is_connected_to() -> None:
    found = parse("https://Example.org:8443/a/b?c=d#e")
    assert (found.hostname, found.port, found.path, found.query) == ("example.org", 8443, "/a/b", "c=d")
