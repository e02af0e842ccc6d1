"""The routes of OpenAI's Responses API: asking, and what was stored."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from qwench.errors import Overloaded, QwenchError, RequestError
from qwench.server.admin import body_of
from qwench.server.answer import Answer, Trail, whole
from qwench.server.errors import InternalError, json_response
from qwench.server.gate import OWNER
from qwench.server.reply import read_json, reply, warning_header
from qwench.server.responses.compaction import CompactionFormat, to_sum_up, within
from qwench.server.responses.form import ResponseFormat
from qwench.server.responses.items import Item
from qwench.server.responses.store import Kept, ResponseStore
from qwench.server.responses.understood import Understood, understood
from qwench.server.schemas import show
from qwench.server.service import Service

logger = logging.getLogger(__name__)
MOST_WORKING = 64  # responses of one key in the background, where --key-running does not say how many
MOST_LISTED, LISTED = 100, 20


def response_routes(service: Service) -> APIRouter:
    """``/v1/responses`` and what is below it."""
    router = APIRouter()
    store = ResponseStore(service.settings.response_bytes)

    @router.post("/v1/responses", openapi_extra=body_of("ResponsesRequest"))
    async def create(request: Request) -> Response:
        """Answer items, as OpenAI's Responses API does."""
        owner = request.scope[OWNER]
        found = await understood(service, store, await read_json(service, request), owner)
        if found.request.background:
            return in_background(service, store, found, owner)

        def keep(body: Mapping[str, Any]) -> None:
            if found.request.stores:
                store.put(found.kept(owner, body))

        make = partial(found.form, keep=keep)
        with found.asked.translation.places.naming():
            return await reply(service, request, found.prepared, make, service.head("resp_"))

    @router.post("/v1/responses/input_tokens", openapi_extra=body_of("ResponsesRequest"))
    async def input_tokens(request: Request) -> Response:
        """How many tokens items come to."""
        body = await read_json(service, request)
        if body.get("model") is None:  # it need not be said
            body = {**body, "model": service.name}
        found = await understood(service, store, body, request.scope[OWNER])
        count = sum(len(prompt.token_ids) for prompt in found.prepared.prompts)
        told = {"object": "response.input_tokens", "input_tokens": count}
        return json_response(told, headers=warning_header(found.prepared.warnings))

    @router.post("/v1/responses/compact", openapi_extra=body_of("ResponsesRequest"))
    async def compact(request: Request) -> Response:
        """Sum a conversation up: what the user said, and an item in place of all the rest."""
        body = to_sum_up(await read_json(service, request))
        found = await understood(service, store, body, request.scope[OWNER], sums_up=True)
        make = partial(CompactionFormat, found=found)
        with found.asked.translation.places.naming():
            prepared = within(found.prepared, service.client.max_model_len)
            return await reply(service, request, prepared, make, service.head("resp_"))

    stored_routes(router, store)
    return router


def stored_routes(router: APIRouter, store: ResponseStore) -> None:
    """What can be asked of a response that was stored."""

    @router.get("/v1/responses/{name}")
    async def get(name: str, request: Request) -> Response:
        """A stored response."""
        if request.query_params.get("stream") == "true":
            raise RequestError("stream: a stored response cannot be streamed; ask without it.", param="stream")
        return json_response(store.get(name, request.scope[OWNER]).body)

    @router.delete("/v1/responses/{name}")
    async def delete(name: str, request: Request) -> Response:
        """Forget a stored response."""
        store.delete(store.get(name, request.scope[OWNER]))
        return json_response({"id": name, "object": "response", "deleted": True})

    @router.post("/v1/responses/{name}/cancel")
    async def cancel(name: str, request: Request) -> Response:
        """Stop a response that is answered in the background."""
        kept = store.get(name, request.scope[OWNER])
        if kept.task is not None:
            kept.task.cancel()
            await asyncio.wait({kept.task})
        elif kept.body["status"] != "cancelled":
            reason = "is not being answered in the background; to stop a stream, close it"
            raise RequestError(f"The response {show(name)} {reason}.", param="response_id")
        return json_response(kept.body)

    @router.get("/v1/responses/{name}/input_items")
    async def input_items(name: str, request: Request) -> Response:
        """What the model was given for a stored response, the last first unless order is asc."""
        return json_response(listed(store.get(name, request.scope[OWNER]).shown(), request.query_params))


def in_background(service: Service, store: ResponseStore, found: Understood, owner: str) -> Response:
    """Begin to answer, and say under which id to ask for it. Raises Overloaded."""
    most = service.settings.key_running or MOST_WORKING
    if store.running(owner) >= most:
        raise Overloaded(f"{most} responses of this key are being answered already.", code="concurrency_limit")
    head = service.head("resp_")
    with found.asked.translation.places.naming():
        answer = service.answer(found.prepared, owner, Trail(time.monotonic(), id=head.id))

    def keep(body: Mapping[str, Any]) -> None:
        store.change(kept, body)

    form = found.form(head, answer, service.text.tokenizer, keep)
    begun = form.begun()
    kept = found.kept(owner, begun)
    if not store.put(kept):
        answer.abort()
        raise RequestError("background: there is no room to keep this response; ask for a stream.", param="background")
    service.answers[head.id] = answer
    kept.task = asyncio.create_task(work(answer, form))
    kept.task.add_done_callback(lambda task: ended(task, kept, form))
    return json_response(begun, headers=warning_header(found.prepared.warnings))


async def work(answer: Answer, form: ResponseFormat) -> None:
    await whole(answer, form)


def ended(task: asyncio.Task[None], kept: Kept, form: ResponseFormat) -> None:
    """What is left to say of a response that was answered in the background, or was not."""
    kept.task = None
    if task.cancelled():
        form.cancelled()
        return
    error = task.exception()
    if isinstance(error, QwenchError):
        form.failure(error)
    elif error is not None:
        logger.error("a response failed in the background", exc_info=error)
        form.failure(InternalError("The server failed on this response; its log says why."))


def listed(items: list[Item], query: Mapping[str, str]) -> dict[str, object]:
    """A page of ``items`` as OpenAI's lists are. Raises RequestError."""
    limit, order, after = query.get("limit", str(LISTED)), query.get("order", "desc"), query.get("after")
    if not limit.isdecimal() or not limit.isascii() or not 1 <= int(limit[:9]) <= MOST_LISTED:
        raise RequestError(f"limit is {show(limit)}; give a number from 1 to {MOST_LISTED}.", param="limit")
    if order not in ("asc", "desc"):
        raise RequestError(f"order is {show(order)}; give asc or desc.", param="order")
    found = items if order == "asc" else items[::-1]
    if after is not None:
        place = next((at for at, item in enumerate(found) if item["id"] == after), None)
        if place is None:
            raise RequestError(f"after is {show(after)}, which is none of these items.", param="after")
        found = found[place + 1 :]
    told = found[: int(limit)]
    return {
        "object": "list",
        "data": told,
        "first_id": told[0]["id"] if told else None,
        "last_id": told[-1]["id"] if told else None,
        "has_more": len(told) < len(found),
    }
