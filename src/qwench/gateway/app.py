"""The gateway's application: from a client's request to a decision, to whoever answers, and back with what it cost.

Knows no upstream's dialect and makes no choice itself: ``signals`` reads, ``router`` decides, ``courier`` carries.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from qwench.errors import EngineUnavailable, QwenchError, RequestError
from qwench.gateway.admin import admin_routes
from qwench.gateway.courier import Job
from qwench.gateway.faces import writer
from qwench.gateway.gates import Limits, data_class
from qwench.gateway.house import House
from qwench.gateway.prices import shown
from qwench.gateway.records import Task, new_id
from qwench.gateway.router import Ask
from qwench.gateway.tiers import AUTO
from qwench.gateway.wanted import Face, read_wanted
from qwench.server.body import parse, read_body
from qwench.server.errors import (
    InternalError,
    error_response,
    header_value,
    json_response,
    on_http_error,
    on_qwench_error,
)
from qwench.server.gate import CLIENT_CLOSED, OWNER, Behind, Gate
from qwench.server.sse import HEADERS, ClientGone, unless_gone

logger = logging.getLogger(__name__)

FACES: Mapping[str, Face] = MappingProxyType(
    {
        "/v1/chat/completions": "openai",
        "/v1/completions": "completions",
        "/v1/responses": "responses",
        "/v1/messages": "anthropic",
    }
)
TASK = re.compile(r"[A-Za-z0-9._-]{1,64}")
SMALL = 65_536  # bytes of a body that is parsed where it is; a larger one goes to a thread
PLAIN = str.maketrans({"×": "x", "−": "-"})  # our own reasons, in ASCII
LONGEST_HEADER = 1000


@dataclass(frozen=True)
class Told:
    """What the headers of a request say about it."""

    task: str
    name: str | None
    data: str | None
    deadline: float | None
    money: float | None
    value: float | None


def build_app(house: House) -> Gate:
    """Everything the gateway answers, behind the server's own gate."""

    routes = [
        *(Route(path, partial(generate, house, face=face), methods=["POST"]) for path, face in FACES.items()),
        *admin_routes(house),
    ]
    app = Behind(routes=routes, exception_handlers={QwenchError: on_qwench_error, HTTPException: on_http_error})
    return Gate(app, house.server)


async def generate(house: House, request: Request, face: Face) -> Response:
    """One request from body to response. What can be refused is refused before anybody is asked."""
    house.halt.check()
    if house.books.ledger.trouble is not None:
        raise EngineUnavailable(f"Nothing is answered that could not be accounted for: {house.books.ledger.trouble}")
    raw = await read_body(request, house.server.max_body_bytes)
    body = parse(raw) if len(raw) < SMALL else await asyncio.to_thread(parse, raw)
    job = plan(house, request, body, face)
    return Relay(house, job) if job.wanted.signals.stream else await whole(house, job, request)


def plan(house: House, request: Request, body: Mapping[str, Any], face: Face) -> Job:
    """Read, gate and route. Raises RequestError, and what the gates and the router refuse with."""
    owner = request.scope[OWNER]
    told = read_headers(request.headers, owner)
    wanted = read_wanted(face, body)
    signals = wanted.signals
    model = body.get("model") or AUTO
    if not isinstance(model, str):
        raise RequestError("model must be a string.", param="model")
    left, purse = house.books.budgets.left(owner)
    if told.money is not None and (left is None or told.money < left):
        left, purse = told.money, "the request"
    ask = Ask(
        signals=signals,
        data=data_class(house.settings, owner, told.data, signals.text),
        limits=Limits(told.deadline, left, purse),
        model=model,
        told=told.name,
        value=told.value,
        held=house.books.conversations.find(signals),
        at=house.books.now(),
    )
    decision = house.router.decide(ask, house.resting)
    task = Task(told.task, decision.task.task.name, str(decision.data.data), owner, decision.value)
    ends = math.inf if told.deadline is None else asyncio.get_running_loop().time() + told.deadline
    return Job(wanted, decision, task, ends, decision.option)


def read_headers(headers: Mapping[str, str], owner: str) -> Told:
    """Raises RequestError naming the header. Tasks of different keys never meet: the key's name is part of their id."""
    task = headers.get("x-qwench-task")
    if task is not None and not TASK.fullmatch(task):
        told = "must be letters, digits and . _ -, at most 64"
        raise RequestError(f"x-qwench-task {told}.", param="x-qwench-task")
    return Told(
        task=f"{owner}:{task or new_id()}" if owner else task or new_id(),
        name=headers.get("x-qwench-class"),
        data=headers.get("x-qwench-data"),
        deadline=_number(headers, "x-qwench-deadline"),
        money=_number(headers, "x-qwench-budget"),
        value=_number(headers, "x-qwench-value"),
    )


def _number(headers: Mapping[str, str], name: str) -> float | None:
    told = headers.get(name)
    if told is None:
        return None
    try:
        number = float(told)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise RequestError(f"{name} is {ascii(told)[:60]}; send a number, 0 or more.", param=name)
    return number


def headers_of(house: House, job: Job, *, done: bool) -> dict[str, str]:
    """Who answers and why; what it cost where that is known already."""
    receipt = job.receipt(house.settings.routing.currency)
    names = ("task", "tier", "option", "class", "data", "because", "attempts", "shadow")
    told = {f"x-qwench-{name}": str(receipt[name]) for name in names if name in receipt}
    if done:
        cost = "unknown" if receipt["cost"] is None else f"{shown(receipt['cost'], 8)} {receipt['currency']}"
        told["x-qwench-cost"] = cost
    if job.warnings:
        told["x-qwench-warnings"] = "; ".join(job.warnings)
    return {name: header_value(value.translate(PLAIN), LONGEST_HEADER) for name, value in told.items()}


def reserved(job: Job) -> float:
    """What the request is expected to cost, set aside while it runs."""
    chosen = next((each for each in job.decision.weighed if each.option == job.decision.option), None)
    return (chosen.cost or 0.0) if chosen else 0.0


async def whole(house: House, job: Job, request: Request) -> Response:
    """The answer in one piece."""

    async def work() -> dict[str, Any]:
        with house.halt.request(), house.books.budgets.reserved(job.task.key, reserved(job)):
            answer = await house.courier.whole(job)
        face = writer(job.wanted)
        return face.whole(answer, job.receipt(house.settings.routing.currency))

    try:
        told = await unless_gone(request.receive, work())
    except ClientGone:
        return Response(status_code=CLIENT_CLOSED)
    except QwenchError as error:
        return refused(house, job, error, request.scope)
    return json_response(told, headers=headers_of(house, job, done=True))


def refused(house: House, job: Job, error: QwenchError, scope: Scope) -> Response:
    """A failure before the first byte, with what it took and cost all the same."""
    response = error_response(error, scope)
    response.headers.update(headers_of(house, job, done=True))
    return response


class Relay(Response):
    """A stream handed on as it comes. Its head is sent with its first piece, so that who answers can be told in it."""

    media_type = "text/event-stream"

    def __init__(self, house: House, job: Job) -> None:
        self._house, self._job = house, job
        self._started = False
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        job, house = self._job, self._house
        face = writer(job.wanted)

        async def work() -> None:
            try:
                with house.halt.request(), house.books.budgets.reserved(job.task.key, reserved(job)):
                    async with aclosing(house.courier.stream(job)) as pieces:
                        async for piece in pieces:
                            await self._send(send, face.write(piece.event, piece.chunks, piece.dialect.face))
                last = face.end(job.receipt(house.settings.routing.currency))
            except QwenchError as error:
                if not self._started:
                    await refused(house, job, error, scope)(scope, receive, send)
                    return
                last = face.fail(error)
            except Exception:
                if not self._started:
                    raise  # the gate says so, and logs it
                logger.exception("a stream failed")
                last = face.fail(InternalError("The gateway failed on this request; its log says why."))
            await self._send(send, last)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        with suppress(ClientGone):  # then the courier's attempt was cancelled, and its connection closed
            await unless_gone(receive, work())

    async def _send(self, send: Send, told: bytes) -> None:
        if not self._started:
            self._started = True
            self.status_code = 200
            self.init_headers({**HEADERS, **headers_of(self._house, self._job, done=False)})
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if told:
            await send({"type": "http.response.body", "body": told, "more_body": True})
