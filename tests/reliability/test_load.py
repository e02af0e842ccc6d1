"""Goals 4, 5, 6 and 13: disconnects, overload, slow readers, an hour."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import statistics
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.hostile.mutations import mutated
from tests.hostile.target import CHAT, NORMAL, Target, faults_of
from tests.reliability.effort import busy, effort
from tests.reliability.process import Served, served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

MEBIBYTE = 2**20
LONG: dict[str, Any] = {**NORMAL, "max_tokens": 400, "min_tokens": 400, "stream": True}  # text to its end
SMALL = ("--max-model-len", "2048", "--max-num-seqs", "8")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path, *SMALL, "--max-queue", "64") as found:
        yield found


def request_of(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(content)}"
    )
    return f"{head}\r\nconnection: close\r\n\r\n".encode() + content


def connected(server: Served) -> socket.socket:
    where = urlsplit(server.address)
    return socket.create_connection((where.hostname or "", where.port or 0), timeout=30)


def leave(server: Served, seed: int) -> None:
    """Ask for a long answer and leave: in the head, in the body, before it begins, in its middle, politely or not."""
    rng, asked = random.Random(seed), request_of(LONG)
    with connected(server) as connection, suppress(OSError):
        how = seed % 5
        connection.sendall(asked[: rng.randrange(len(asked))] if how == 0 else asked)
        if how in (2, 3, 4):
            for _ in range(rng.randrange(6)):
                connection.recv(512)
        if how == 3:  # not a goodbye but a reset
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if how == 4:
            connection.shutdown(socket.SHUT_WR)


def test_goal_04_disconnects_leak_nothing(server: Served) -> None:
    target = Target(server.address)
    right = target.text()
    for seed in range(100):
        leave(server, seed)
    server.rest()
    memory, files = server.resident, server.open_files

    def one(seed: int) -> str | None:
        if seed % 10 == 9:  # somebody stays
            return target.text()
        leave(server, seed)
        return None

    with ThreadPoolExecutor(8) as several:
        texts = {text for text in several.map(one, range(effort("disconnects"))) if text is not None}
    assert texts == {right}
    server.rest(5 * busy())
    assert server.metric("cache_states_used") == server.metric("cache_snapshots_used")  # what is kept, and no request
    time.sleep(1)
    assert server.open_files <= files
    assert server.resident - memory < 20 * MEBIBYTE


async def _burst(server: Served, count: int) -> tuple[list[tuple[int, float, bytes]], list[float]]:
    where = urlsplit(server.address)
    lines = [await asyncio.open_connection(where.hostname, where.port) for _ in range(count)]
    asked = request_of({**NORMAL, "max_tokens": 100, "ignore_eos": True})
    healths, over = list[float](), asyncio.Event()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[int, float, bytes]:
        began = time.monotonic()
        writer.write(asked)
        first = await reader.read(65_536)
        took = time.monotonic() - began
        rest = await reader.read()
        writer.close()
        return int(first[9:12]), took, first + rest

    async def health(client: httpx.AsyncClient) -> None:
        while not over.is_set():
            at = time.monotonic()
            assert (await client.get("/health")).status_code == 200
            healths.append(time.monotonic() - at)
            await asyncio.sleep(0.01)

    async with httpx.AsyncClient(base_url=server.address, timeout=30) as client:
        looking = asyncio.create_task(health(client))
        answers = await asyncio.gather(*(one(*line) for line in lines))
        over.set()
        await looking
    return answers, healths


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def test_goal_05_overload_is_said_quickly(tmp_path: Path) -> None:
    with served(tmp_path, *SMALL, "--max-queue", "16") as server:
        target = Target(server.address)
        before = target.text()
        answers, healths = asyncio.run(_burst(server, 400))
        began = time.monotonic()
        assert target.text() == before
        after = time.monotonic() - began
        counted = Counter(status for status, _, _ in answers)
        assert set(counted) <= {200, 429, 503}, counted
        assert counted[200] >= 16
        assert counted[429] > 200
        for status, _, told in answers:
            if status != 200:
                head, _, body = told.partition(b"\r\n\r\n")
                assert b"retry-after: " in head.lower()
                assert json.loads(body)["error"]["code"] == "queue_full"
        refusals = [took for status, took, _ in answers if status != 200]
        assert percentile(refusals, 0.99) < 0.25 * busy()
        assert percentile(healths, 0.99) < 0.25 * busy()
        assert after < 1 * busy()


def test_goal_06_a_slow_reader_stalls_nobody(server: Served) -> None:
    target = Target(server.address)

    def latencies() -> list[float]:
        found = []
        for _ in range(40):
            began = time.monotonic()
            target.text()
            found.append(time.monotonic() - began)
        return found

    whole = {**LONG, "max_tokens": 1_900, "min_tokens": 1_900}
    with ThreadPoolExecutor(8) as several:  # the engine takes its memory as it is used: what counts is the readers'
        assert all(several.map(lambda _: read_on(server, whole), range(16)))
    alone, memory = latencies(), server.resident
    readers = []
    for _ in range(32):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.settimeout(30)
        connection.connect((urlsplit(server.address).hostname or "", urlsplit(server.address).port or 0))
        connection.sendall(request_of(whole))
        readers.append(connection)
    server.rest(180 * busy())  # their answers are written, and wait to be read
    held = server.resident - memory
    beside = latencies()
    assert held < 32 * MEBIBYTE
    assert percentile(beside, 0.95) <= 1.5 * (percentile(alone, 0.95) + 0.05) * busy()
    time.sleep(31)  # they read nothing for longer than the server waits
    cut = sum(_is_cut(connection) for connection in readers)
    assert cut == len(readers)


def read_on(server: Served, body: dict[str, Any]) -> bool:
    """Whether an answer comes to its end for somebody who reads."""
    with connected(server) as connection:
        connection.settimeout(180 * busy())
        connection.sendall(request_of(body))
        told = b""
        while piece := connection.recv(65_536):
            told = told[-100:] + piece
    return b"[DONE]" in told


def _is_cut(connection: socket.socket) -> bool:
    """Whether its answer ended before the end; what is in buffers on the way may still be read."""
    told = b""
    try:
        while piece := connection.recv(65_536):
            told = told[-100:] + piece
    except ConnectionError:
        return True
    finally:
        connection.close()
    return b"[DONE]" not in told


def test_goal_13_an_hour_is_flat(server: Served) -> None:
    """A mixture of answers, streams, nonsense and disconnects; by default a minute of it."""
    target, seconds = Target(server.address), effort("seconds of soak")
    right = target.text()
    until = time.monotonic() + seconds
    wrong: list[str] = []
    counted: Counter[str] = Counter()

    def normal(_seed: int) -> None:
        if (text := target.text()) != right:
            wrong.append(text)

    def stream(seed: int) -> None:
        with httpx.stream("POST", f"{server.address}{CHAT}", json={**NORMAL, "stream": True}, timeout=60) as answer:
            told = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in told if chunk["choices"])
        if text != right:
            wrong.append(text)

    def nonsense(seed: int) -> None:
        case = mutated(seed)
        answer = httpx.post(f"{server.address}{case.path}", content=case.content, timeout=60)
        wrong.extend(f"{case.name}: {fault}" for fault in faults_of(answer, case.content.decode("utf-8", "replace")))

    work: tuple[Callable[[int], None], ...] = (normal, normal, stream, nonsense, lambda seed: leave(server, seed))

    def keep(number: int) -> None:
        seed = number << 32
        while time.monotonic() < until:
            seed += 1
            work[seed % len(work)](seed)
            counted["requests"] += 1

    threads = [threading.Thread(target=keep, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 2)
    resident: list[tuple[float, int]] = []
    while time.monotonic() < until:
        resident.append((time.monotonic(), server.resident))
        time.sleep(seconds / 120)
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:5]
    assert counted["requests"] > 2 * seconds
    server.rest(5 * busy())
    slope = statistics.linear_regression([at for at, _ in resident], [size for _, size in resident]).slope * 60
    growth = resident[-1][1] / resident[0][1]
    # A minute is too short to tell a leak from caches that fill up: then only the growth counts.
    assert slope < MEBIBYTE or seconds < 600, f"{slope / MEBIBYTE:.2f} MB a minute"
    assert growth < 1.05
