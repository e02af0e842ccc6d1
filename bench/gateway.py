"""What the gateway adds to a call: streams on loopback, straight to an upstream and through the gateway, in turns.

    .venv/bin/python -m bench.gateway [--streams 50] [--rate 20] [--seconds 4] [--rounds 6]

Upstream, gateway and client are processes of their own. The upstream writes its clock into every event, so each event
says how long it took; the first of a stream is counted from the request. What the gateway adds is the difference of the
two sides of a round, and of all rounds the median. Where other programs run, times are theirs too: the gateway's own
processor time is what such a machine can tell. `make bench-gateway` runs it. Prints a table, then one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EVENTS = 40  # of one stream
STAMP = re.compile(rb'"content": ?"(\d+)"')
SETTINGS = """
[gateway]
ledger = "ledger.sqlite"
[tiers.own]
kind = "openai"
url = "http://127.0.0.1:{port}"
steering = "qwen"
[[models]]
tier = "own"
model = "stamps"
"""


@dataclass
class Times:
    """Seconds: of the first event since the request, of every later one since it was sent."""

    first: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)


async def upstream(port: int, rate: float) -> None:
    """Streams events that hold the time they were sent at, in nanoseconds of the machine's monotonic clock."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
                await reader.readexactly(int(size.group(1)) if size else 0)
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                )
                for number in range(EVENTS):
                    if number:
                        await asyncio.sleep(1 / rate)
                    _chunk(writer, {"index": 0, "delta": {"content": str(time.monotonic_ns())}, "finish_reason": None})
                _chunk(writer, {"index": 0, "delta": {}, "finish_reason": "stop"})
                writer.write(_sized(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port, backlog=512)
    await server.serve_forever()


def _chunk(writer: asyncio.StreamWriter, choice: dict[str, Any]) -> None:
    told = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "stamps", "choices": [choice]}
    writer.write(_sized(b"data: " + json.dumps(told).encode() + b"\n\n"))


def _sized(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def stream(port: int, times: Times) -> None:
    """One stream on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    told = {"model": "own/stamps", "stream": True, "messages": [{"role": "user", "content": "What time is it? " * 40}]}
    body = json.dumps(told).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n\r\n"
    sent = time.monotonic_ns()
    writer.write(head.encode() + body)
    count = 0
    while (line := await reader.readline()) and b"[DONE]" not in line:
        stamp = STAMP.search(line)
        if stamp is None:
            continue
        now = time.monotonic_ns()
        if count:
            times.later.append((now - int(stamp.group(1))) / 1e9)
        else:
            times.first.append((now - sent) / 1e9)
        count += 1
    writer.close()
    if count != EVENTS:
        raise RuntimeError(f"a stream brought {count} of {EVENTS} events")


async def load(port: int, streams: int, rate: float, seconds: float) -> Times:
    """``streams`` at a time for so long; they begin evenly apart, so that no burst is measured."""
    times, until = Times(), time.monotonic() + seconds

    async def worker(number: int) -> None:
        await asyncio.sleep(number / streams * EVENTS / rate)
        while time.monotonic() < until:
            await stream(port, times)

    await asyncio.gather(*(worker(number) for number in range(streams)))
    return times


@contextmanager
def process(*words: str, log: Path) -> Iterator[int]:
    """Its number; what it says goes to ``log``."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    with log.open("wb") as out:
        running = subprocess.Popen([sys.executable, *words], env=environment, cwd=ROOT, stderr=out)
    try:
        yield running.pid
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait(30)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_for(port: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"nothing listens on port {port}")


def quantiles(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    cut = statistics.quantiles(seconds, n=100)
    return {"p50": 1e3 * cut[49], "p99": 1e3 * cut[98], "samples": len(seconds)}


def processor(number: int) -> float:
    """Seconds that the process has worked; NaN where the system does not tell."""
    try:
        fields = Path(f"/proc/{number}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return math.nan
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(streams: int, rate: float, seconds: float, rounds: int) -> list[dict[str, Any]]:
    upstream_port, port = free_port(), free_port()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "tiers.toml"
        settings.write_text(SETTINGS.format(port=upstream_port), encoding="utf-8")
        serving = ("-m", "qwench", "gateway", "--config", str(settings), "--port", str(port))
        answering = ("-m", "bench.gateway", "--upstream", str(upstream_port), "--rate", str(rate))
        log = Path(folder) / "log"
        with process(*answering, log=log), process(*serving, log=log) as gateway:
            wait_for(upstream_port)
            wait_for(port)
            for each in (upstream_port, port):
                asyncio.run(load(each, 5, rate, 1.0))  # imports, connections
            for number in range(rounds):
                for side, where in (("direct", upstream_port), ("gateway", port)):
                    before, began = processor(gateway), time.monotonic()
                    times = asyncio.run(load(where, streams, rate, seconds))
                    worked, took = processor(gateway) - before, time.monotonic() - began
                    told = {"first": quantiles(times.first), "later": quantiles(times.later)}
                    work = {"processor": worked, "per_stream": worked / len(times.first), "busy": worked / took}
                    found.append({"round": number, "side": side, "load": os.getloadavg()[0], **told, **work})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--rate", type=float, default=20.0, help="events a second of each stream")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each side of each round")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--upstream", type=int, metavar="PORT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.upstream:
        asyncio.run(upstream(args.upstream, args.rate))
        return 0
    found = measure(args.streams, args.rate, args.seconds, args.rounds)
    through = [each for each in found if each["side"] == "gateway"]
    sides = list(zip([each for each in found if each["side"] == "direct"], through, strict=True))
    print(f"{args.streams} streams at a time, {args.rate:g} events a second each; ms, medians of {args.rounds} rounds")
    added: dict[str, float] = {}
    for what, name in (("first", "first event"), ("later", "later events")):
        for share in ("p50", "p99"):
            pairs = [(direct[what][share], gateway[what][share]) for direct, gateway in sides]
            added[f"{what}_{share}"] = statistics.median(gateway - direct for direct, gateway in pairs)
            direct, gateway = (statistics.median(column) for column in zip(*pairs, strict=True))
            more = added[f"{what}_{share}"]
            print(f"{name:12} {share}: direct {direct:7.2f}  gateway {gateway:7.2f}  added {more:+7.2f}")
    work, busy = (statistics.median(each[name] for each in through) for name in ("per_stream", "busy"))
    loads = [each["load"] for each in found]
    print(f"processor time of the gateway: {1e3 * work:.1f} ms a stream of {EVENTS} events; {busy:.0%} of a core")
    print(f"load of the machine: {min(loads):.1f} to {max(loads):.1f} on {os.cpu_count()} cores")
    print(json.dumps({"streams": args.streams, "rate": args.rate, "added": added, "rounds": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
