"""From the body of a Responses request to what the engine is asked, with what was stored of the conversation before."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qwench.errors import RequestError
from qwench.server.answer import Answer, Head
from qwench.server.errors import encode
from qwench.server.prepare import Prepared
from qwench.server.responses.conversation import Asked, read_response
from qwench.server.responses.fields import FIELDS, ResponsesRequest
from qwench.server.responses.form import Keep, ResponseFormat
from qwench.server.responses.items import Item, as_items
from qwench.server.responses.store import Kept, ResponseStore
from qwench.server.schemas import shape, show, sift
from qwench.server.service import Service
from qwench.text.tokenizer import Tokenizer

SPARE_DEPTH = 200
SUMMING_UP: Item = {
    "type": "message",
    "role": "user",
    "content": "From here on a summary takes the place of this conversation. Write it for whoever goes on: what I "
    "asked for, what was decided and found out, the names, paths and figures that matter, and what is still to be "
    "done. Write nothing else.",
}


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


async def understood(
    service: Service, store: ResponseStore, body: Mapping[str, object], owner: str, *, sums_up: bool = False
) -> Understood:
    """What ``body`` comes to; ``sums_up``: an account of the conversation instead of its next answer.

    Raises RequestError, TemplateError or ModelNotFound.
    """
    fields, warnings = sift(body, "responses", FIELDS)
    request = shape(ResponsesRequest, fields, FIELDS)
    warnings += service.names.meant(request.model)
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
        said = [*given, SUMMING_UP] if sums_up else given
        return read_response(request, earlier.conversation() if earlier else (), said), size

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
    except ValueError:
        raise RequestError("The body holds a number that is too large for JSON; send smaller ones.") from None


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
