"""A stand-in upstream: a real HTTP server on loopback that speaks OpenAI's and Anthropic's dialects, and fails if told.

Written on bare sockets, so that it can do what no framework would: refuse, fall silent, cut an answer in half, lie.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

WORDS = ("One", " and", " one", " is", " two", ".")
USAGE = {"prompt_tokens": 20, "completion_tokens": len(WORDS), "total_tokens": 20 + len(WORDS)}
DETAILS = {"prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 0}}


@dataclass
class Seen:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


Act = Callable[["Exchange"], Awaitable[None]]


@dataclass
class Exchange:
    """One request that is to be answered."""

    seen: Seen
    writer: asyncio.StreamWriter
    standin: StandIn

    async def head(self, status: int, kind: str, length: int | None = None, extra: str = "") -> None:
        size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
        told = f"HTTP/1.1 {status} Whatever\r\ncontent-type: {kind}\r\n{size}\r\n{extra}\r\n"
        self.writer.write(told.encode())
        await self.writer.drain()

    async def chunk(self, data: bytes) -> None:
        self.writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await self.writer.drain()

    async def whole(self, payload: object, status: int = 200, extra: str = "") -> None:
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        await self.head(status, "application/json", len(data), extra)
        self.writer.write(data)
        await self.writer.drain()

    async def events(self, events: list[bytes], *, end: bool = True, pause: float = 0.0) -> None:
        await self.head(200, "text/event-stream")
        for event in events:
            await self.chunk(event)
            if pause:
                await asyncio.sleep(pause)
        if end:
            await self.chunk(b"")


@dataclass
class StandIn:
    """``act`` answers; ``seen`` has every request, ``left`` counts clients that went away in the middle."""

    act: Act
    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    left: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (seen := await _read(reader)) is not None:
                self.seen.append(seen)
                answering = asyncio.ensure_future(self.act(Exchange(seen, writer, self)))
                gone = asyncio.ensure_future(reader.read(1))  # a client of ours never sends two at once
                await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not answering.done():
                    self.left += 1
                    answering.cancel()
                    break
                answering.result()
                if gone.done():
                    break
                gone.cancel()
                await asyncio.gather(gone, return_exceptions=True)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left += 1
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Seen | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Seen(head[0].split(" ")[1], headers, json.loads(body) if body else {})


@contextmanager
def standing_in(act: Act) -> Iterator[StandIn]:
    """A stand-in in a thread of its own."""
    standin = StandIn(act)
    loop = asyncio.new_event_loop()
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        standin.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = loop.run_until_complete(asyncio.start_server(standin.serve, sock=listener))
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        yield standin

        async def stop() -> None:
            server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def refused_url() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def event(payload: object, name: str = "") -> bytes:
    return (f"event: {name}\n" if name else "").encode() + b"data: " + json.dumps(payload).encode() + b"\n\n"


def openai_events(model: str, words: tuple[str, ...] = WORDS) -> list[bytes]:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": int(time.time()), "model": model}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        return event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    said = [chunk({"content": word}) for word in words]
    usage = event({**head, "choices": [], "usage": {**USAGE, **DETAILS}})
    return [chunk({"role": "assistant", "content": ""}), *said, chunk({}, "stop"), usage, b"data: [DONE]\n\n"]


def completion(model: str, text: str = "".join(WORDS), usage: object = None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {**USAGE, **DETAILS} if usage is None else usage,
    }


def message_events(model: str) -> list[bytes]:
    usage = {"input_tokens": 20, "output_tokens": 1, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": [], "usage": usage}
    start = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    last = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": len(WORDS)}}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": message}, start]
    said = ({"type": "text_delta", "text": word} for word in WORDS)
    events += [{"type": "content_block_delta", "index": 0, "delta": delta} for delta in said]
    events += [{"type": "content_block_stop", "index": 0}, last, {"type": "message_stop"}]
    return [event(each, str(each["type"])) for each in events]


def message(model: str) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": "".join(WORDS)}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 20, "output_tokens": len(WORDS), "cache_read_input_tokens": 0},
    }


async def well(exchange: Exchange) -> None:
    """Answers as either of the two APIs would."""
    body = exchange.seen.body
    model, anthropic = str(body.get("model")), exchange.seen.path == "/v1/messages"
    if body.get("stream"):
        await exchange.events(message_events(model) if anthropic else openai_events(model))
    else:
        await exchange.whole(message(model) if anthropic else completion(model))


def saying(text: str) -> Act:
    """Answers with ``text``, whatever is asked."""

    async def act(exchange: Exchange) -> None:
        model = str(exchange.seen.body.get("model"))
        if exchange.seen.body.get("stream"):
            await exchange.events(openai_events(model, (text,)))
        else:
            await exchange.whole(completion(model, text))

    return act


def failing(status: int, message: str = "no", extra: str = "", times: int = 10**9) -> Act:
    """Answers with an error, so many times, and then well."""
    left = [times]

    async def act(exchange: Exchange) -> None:
        left[0] -= 1
        if left[0] >= 0:
            await exchange.whole({"error": {"message": message}}, status, extra)
        else:
            await well(exchange)

    return act
