"""Request bodies: read within the size limit, parsed strictly, with the place of every mistake."""

from __future__ import annotations

import asyncio
import json
from typing import NoReturn

from starlette.requests import Request
from starlette.types import Message, Receive

from qwench.errors import RequestError
from qwench.fault import fault
from qwench.server.depth import MOST_LEVELS, is_deep
from qwench.server.errors import BodyTooLarge, BodyTooSlow

BODY_SECONDS = 20.0  # for a body to come, and one second more for each so many bytes of it:
LEAST_RATE = 64 * 1024
MOST_VALUES = 1_000_000  # in one body: JSON is parsed at one go, and others wait meanwhile


async def read_body(request: Request, limit: int) -> bytes:
    """The raw body. Raises BodyTooLarge as soon as more than ``limit`` bytes are announced or have come, BodyTooSlow
    when they come too slowly."""
    check_announced(request, limit)
    body = bytearray()
    async for piece in Request(request.scope, timely(request.receive)).stream():
        fault("receive")
        body += piece
        if len(body) > limit:
            raise too_large(limit)
    return bytes(body)


def timely(receive: Receive) -> Receive:
    """``receive``, for a body that has to come on. Raises BodyTooSlow."""
    began, total = asyncio.get_running_loop().time(), 0

    async def timed() -> Message:
        nonlocal total
        try:
            async with asyncio.timeout_at(began + BODY_SECONDS + total / LEAST_RATE):
                message = await receive()
        except TimeoutError:
            raise BodyTooSlow(f"The body did not come within {BODY_SECONDS:g} seconds; send it at once.") from None
        total += len(message.get("body", b""))
        return message

    return timed


def check_announced(request: Request, limit: int) -> None:
    """Raise BodyTooLarge for a body that says itself that it is longer."""
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limit:
        raise too_large(limit)


def parse(body: bytes) -> dict[str, object]:
    """The body as a JSON object. Raises RequestError with line and column."""
    if sum(map(body.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise BodyTooLarge(f"The body holds more than {MOST_VALUES} values, the most this server reads; send fewer.")
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise RequestError(f"The body is not UTF-8 at byte {error.start}; send JSON in UTF-8.") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise RequestError(f"The body is not valid JSON at {where}: {error.msg}.") from None
    except RecursionError:
        raise RequestError("The body is nested too deeply; send flatter JSON.") from None
    except ValueError as error:  # a number of thousands of digits
        raise RequestError(f"The body is not usable JSON: {error}.") from None
    if not isinstance(value, dict):
        raise RequestError("The body is not a JSON object; send {...}.")
    if body.count(b"[") + body.count(b"{") > MOST_LEVELS and is_deep(value):
        raise RequestError(f"The body is nested too deeply, in more than {MOST_LEVELS} levels; send flatter JSON.")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise RequestError(f"The body is not valid JSON: {name} is not a JSON number.")


def too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than {limit} bytes, the most this server reads; send less.")
