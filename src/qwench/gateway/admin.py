"""The routes that do not generate: models, health, outcomes, the stop button, and what the router would do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from qwench import __version__
from qwench.errors import QwenchError, RequestError
from qwench.gateway.house import House
from qwench.gateway.page import LivePage
from qwench.gateway.prices import shown
from qwench.gateway.records import Event, Judge, Outcome, Verdict
from qwench.gateway.tiers import AUTO
from qwench.gateway.wanted import read_wanted
from qwench.server.body import parse, read_body
from qwench.server.errors import json_response
from qwench.server.gate import OWNER

Choice = TypeVar("Choice", bound=StrEnum)
POLICY = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'", "cache-control": "no-store"}
CLIENTS = (Judge.USER, Judge.TEST, Judge.JUDGE)  # whose findings a client may report


class NotAllowed(QwenchError):
    """The key is none of an operator's."""

    status, type, code = 403, "invalid_request_error", "not_an_operator"


def admin_routes(house: House) -> Sequence[Route]:
    async def models(_request: Request) -> Response:
        return json_response({"object": "list", "data": _models(house)})

    async def health(_request: Request) -> Response:
        return _health(house)

    async def count(request: Request) -> Response:
        body = parse(await read_body(request, house.server.max_body_bytes))
        return json_response({"input_tokens": read_wanted("anthropic", body, counts=True).signals.prompt})

    async def outcome(request: Request) -> Response:
        return await _outcome(house, request)

    async def halt(request: Request) -> Response:
        _operators_only(house, request)
        stopped = house.halt.close()
        house.books.ledger.event(Event("halted", detail={"stopped": stopped, "by": request.scope[OWNER]}))
        return json_response({"state": "halted", "stopped": stopped})

    async def resume(request: Request) -> Response:
        _operators_only(house, request)
        house.halt.release()
        house.books.ledger.event(Event("resumed", detail={"by": request.scope[OWNER]}))
        return json_response({"state": "open"})

    async def state(request: Request) -> Response:
        _operators_only(house, request)
        return json_response(_state(house))

    live = LivePage(house.books.ledger.store)

    async def page(request: Request) -> Response:
        _operators_only(house, request)
        told = await asyncio.to_thread(live.page, house.books.now(), _facts(_state(house)))
        return HTMLResponse(told, headers=POLICY)

    return [
        Route("/", page),
        Route("/v1/models", models),
        Route("/v1/messages/count_tokens", count, methods=["POST"]),
        Route("/v1/outcomes", outcome, methods=["POST"]),
        Route("/health", health),
        Route("/admin/halt", halt, methods=["POST"]),
        Route("/admin/resume", resume, methods=["POST"]),
        Route("/admin/state", state),
    ]


def _models(house: House) -> list[dict[str, Any]]:
    """What may be sent as ``model``: auto, every tier's model, every option."""
    options = house.settings.options.values()
    names = dict.fromkeys([AUTO, *(f"{each.tier.name}/{each.model}" for each in options), *house.settings.options])
    windows = {each.name: {"context_length": each.context} for each in options if each.context}
    head = {"object": "model", "created": int(time.time()), "owned_by": "qwench"}
    return [{"id": name, **head, **windows.get(name, {})} for name in names]


def _health(house: House) -> Response:
    """For whoever restarts things, and without a key: the state, and nothing of the settings."""
    trouble = "an operator halted it" if house.halt.closed else house.books.ledger.trouble
    told = {"status": "unavailable" if trouble else "ok", **({"reason": trouble} if trouble else {})}
    return json_response({**told, "version": __version__}, 503 if trouble else 200)


def _state(house: House) -> dict[str, Any]:
    purses = {
        name or "all": {
            "limit": purse.limit,
            "spent": purse.spent,
            "reserved": purse.reserved,
            "unknown": purse.unknown,
        }
        for name, purse in house.books.budgets.purses().items()
    }
    return {
        "state": "halted" if house.halt.closed else "open",
        "running": house.halt.running,
        "ledger": house.books.ledger.trouble or "ok",
        "tiers": {name: "resting" if each.breaker.resting else "ok" for name, each in house.upstreams.items()},
        "budgets": purses,
    }


def _facts(state: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The state as lines of a page."""
    purses = [
        (f"budget of {name}", f"{shown(purse['spent'])} of {purse['limit']:g} spent today")
        for name, purse in state["budgets"].items()
        if purse["limit"] is not None
    ]
    tiers = [(f"tier {name}", how) for name, how in state["tiers"].items()]
    head = [("gateway", f"{state['state']}, {state['running']} running"), ("ledger", state["ledger"])]
    return [*head, *tiers, *purses]


def _operators_only(house: House, request: Request) -> None:
    """Where there are keys, an operator's; where there are none, the gate let in this machine alone."""
    owner = house.settings.owners.get(request.scope[OWNER])
    if house.settings.owners and not (owner and owner.admin):
        raise NotAllowed("This key may not do that; the settings give the right with admin = true under [keys.NAME].")


async def _outcome(house: House, request: Request) -> Response:
    """What a user or a test found about a task; the router believes it from now on."""
    body = parse(await read_body(request, house.server.max_body_bytes))
    task, owner = body.get("task"), request.scope[OWNER]
    if not isinstance(task, str) or not 0 < len(task) <= 200:
        raise RequestError("task must be the id that the response told as x-qwench-task.", param="task")
    known = house.settings.owners.get(owner)
    if known is not None and not known.admin and not task.startswith(f"{owner}:"):
        raise NotAllowed("This task belongs to another key.")
    verdict = _one_of(body, "verdict", list(Verdict))
    judge = _one_of(body, "judge", list(CLIENTS), Judge.USER)
    receipt = await asyncio.wrap_future(house.books.ledger.outcome(Outcome(task, verdict, judge)))
    await house.learn()
    return json_response({"task": task, "verdict": verdict, "receipt": str(receipt)})


def _one_of(body: Mapping[str, object], name: str, known: Sequence[Choice], default: Choice | None = None) -> Choice:
    value = body.get(name, default)
    found = next((each for each in known if each == value), None)
    if found is None:
        raise RequestError(f"{name} must be one of {', '.join(known)}.", param=name)
    return found
