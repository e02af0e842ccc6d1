"""Server-sent events, and how a client that went away is noticed while it is being answered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping
from contextlib import aclosing
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qwench.errors import QwenchError
from qwench.server.answer import Answer, Format
from qwench.server.errors import InternalError, encode

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

DONE = b"data: [DONE]\n\n"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # the second: nginx shall not collect the events


class ClientGone(Exception):
    """The client closed the connection before its answer was complete."""


def event(payload: Mapping[str, object], *, named: bool = False) -> bytes:
    """One event; ``named``: its type stands in a line of its own too."""
    name = f"event: {payload['type']}\n".encode() if named else b""
    return name + b"data: " + encode(payload) + b"\n\n"


def comment(text: str) -> bytes:
    """A line that keeps the connection alive and that clients skip."""
    return f": {text}\n\n".encode()


async def unless_gone(receive: Receive, work: Coroutine[object, object, Result]) -> Result:
    """The result of ``work``; it is cancelled, and ClientGone raised, as soon as the client disconnects."""
    task = asyncio.create_task(work)
    watch = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        watch.cancel()
        task.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def events(answer: Answer, form: Format, keepalive: float) -> AsyncGenerator[bytes]:
    """``answer`` as the lines of an event stream; a failure becomes an error event, and the stream ends there."""
    told = 0  # sentences about reuse

    def tell(payloads: Iterable[Mapping[str, object]]) -> bytes:
        return b"".join(event(payload, named=form.named) for payload in payloads)

    yield comment(_pulse(answer)) + tell(form.opening())
    try:
        async with aclosing(answer.deltas(keepalive)) as deltas:
            async for delta in deltas:
                for sentence in answer.reuse[told:]:
                    yield comment(sentence)
                told = len(answer.reuse)
                if delta is None:
                    yield comment(_pulse(answer)) + tell(form.pulse())
                    continue
                for chunk in form.chunks(delta):
                    yield tell([chunk])
        for chunk in form.closing():
            yield tell([chunk])
        if form.done:
            yield DONE
    except QwenchError as error:
        yield tell(form.failure(error))
    except Exception:
        logger.exception("a stream failed")
        yield tell(form.failure(InternalError("The server failed on this request; its log says why.")))


def _pulse(answer: Answer) -> str:
    """What can be said in a silence: how far the prompt is read."""
    done, total = answer.prompt_progress()
    return f"reading the prompt: {done} of {total} tokens" if done < total else "keep-alive"


class EventStream(Response):
    """Sends its headers at once, then ``answer`` as it comes; frees the answer however the connection ends."""

    media_type = "text/event-stream"

    def __init__(self, answer: Answer, form: Format, keepalive: float, headers: Mapping[str, str]) -> None:
        self._answer = answer
        self._form = form
        self._keepalive = keepalive
        self.status_code = 200
        self.background = None
        self.init_headers({**HEADERS, **headers})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await unless_gone(receive, self._write(send))
        except ClientGone:
            pass
        finally:
            self._answer.abort()

    async def _write(self, send: Send) -> None:
        async with aclosing(events(self._answer, self._form, self._keepalive)) as lines:
            async for line in lines:
                await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
