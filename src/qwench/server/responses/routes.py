"""The routes of OpenAI's Responses API: asking, and what was stored."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from qwench.errors import Overloaded, QwenchError, RequestError
from qwench.server.admin import body_of
from qwench.server.answer import Answer, Head, Trail, whole
from qwench.server.errors import InternalError, encode, json_response
from qwench.server.gate import OWNER
from qwench.server.prepare import Prepared, check_model
from qwench.server.reply import read_json, reply, warning_header
from qwench.server.responses.conversation import Asked, read_response
from qwench.server.responses.fields import FIELDS, ResponsesRequest
from qwench.server.responses.form import Keep, ResponseFormat
from qwench.server.responses.items import Item, as_items
from qwench.server.responses.store import Kept, ResponseStore
from qwench.server.schemas import shape, show, sift
from qwench.server.service import Service
from qwench.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)
MOST_WORKING = 64  # responses of one key in the background, where --key-running does not say how many
MOST_LISTED, LISTED = 100, 20
SPARE_DEPTH = 200


@dataclass(frozen=True)
class Understood:
    """A request that is understood; ``given`` are its own items of ``size`` bytes, behind what ``earlier`` holds."""

    request: ResponsesRequest
    given: list[Item]
    size: int
    earlier: Kept | None
    asked: Asked
    prepared: Prepared

    def form(self, head: Head, answer: Answer, tokenizer: Tokenizer, keep: Keep) -> ResponseFormat:
        return ResponseFormat(head, answer, tokenizer, self.request, self.asked.offer, keep)

    def kept(self, owner: str, body: Mapping[str, Any]) -> Kept:
        return Kept(owner, dict(body), self.given, self.size, self.earlier)


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
        found = await understood(service, store, await read_json(service, request), request.scope[OWNER])
        count = sum(len(prompt.token_ids) for prompt in found.prepared.prompts)
        told = {"object": "response.input_tokens", "input_tokens": count}
        return json_response(told, headers=warning_header(found.prepared.warnings))

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

    return router


async def understood(service: Service, store: ResponseStore, body: Mapping[str, object], owner: str) -> Understood:
    """What ``body`` comes to. Raises RequestError, TemplateError or ModelNotFound."""
    fields, warnings = sift(body, "responses", FIELDS)
    request = shape(ResponsesRequest, fields, FIELDS)
    check_model(request.model, service.settings.names)
    if request.input is None and request.previous_response_id is None:
        raise RequestError("input is missing; send text, or a list of items.", param="input")
    if not store.most and request.stores:
        warnings += ["store: nothing is stored here (--response-memory is 0)"] if request.store else []
        request = request.model_copy(update={"store": False})
    if request.background and (request.stream or not request.stores):
        other, reason = ("stream", "leave it out") if request.stream else ("store", "nobody could ask for it later")
        raise RequestError(f"background cannot be combined with {other} like this: {reason}.", param="background")
    earlier = None
    if request.previous_response_id is not None:
        earlier = store.get(request.previous_response_id, owner, "previous_response_id")
        if earlier.task is not None:
            raise RequestError(
                "previous_response_id names a response that is still being answered; wait for it.",
                param="previous_response_id",
            )
    given = resolved(as_items(request.input), store, owner)

    def read() -> tuple[Asked, int]:
        size = measured({**body, "input": given})
        return read_response(request, earlier.conversation() if earlier else (), given), size

    asked, size = await asyncio.to_thread(read)
    eyes = service.eyes
    prepared = await service.apart(
        lambda: asked.translation.prepare(service.text, eyes), looks=eyes is not None and asked.translation.shows
    )
    told = replace(prepared, warnings=(*warnings, *prepared.warnings))
    return Understood(request, given, size, earlier, asked, told)


def measured(body: Mapping[str, object]) -> int:
    """The bytes of what may be kept and repeated. Raises RequestError for what could be read, but not be written again
    from wherever that will be: JSON is written with a stack, too."""
    nested: dict[str, object] = dict(body)
    for _ in range(SPARE_DEPTH):
        nested = {"": nested}
    try:
        return len(encode(nested))
    except RecursionError:
        raise RequestError("The body is nested too deeply; send flatter JSON.") from None


def resolved(items: list[dict[str, Any]], store: ResponseStore, owner: str) -> list[Item]:
    """``items`` with what they refer to in place of the reference. Raises RequestError."""
    if not any(item["type"] == "item_reference" for item in items):
        return list(items)
    known = store.items(owner)
    for at, item in enumerate(items):
        if item["type"] == "item_reference" and item["id"] not in known:
            raise RequestError(
                f"input[{at}] refers to {show(item['id'])}, which is not kept here; send the item itself.",
                param=f"input[{at}]",
            )
    return [known[item["id"]] if item["type"] == "item_reference" else item for item in items]


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
