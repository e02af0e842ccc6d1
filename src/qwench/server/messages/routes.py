"""The routes of Anthropic's Messages API."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from fastapi import APIRouter, Request
from starlette.responses import Response

from qwench.errors import RequestError
from qwench.server.admin import body_of
from qwench.server.errors import json_response
from qwench.server.messages.conversation import read_messages
from qwench.server.messages.fields import FIELDS, CountRequest, MessagesRequest
from qwench.server.messages.form import MessageFormat
from qwench.server.prepare import Prepared
from qwench.server.reply import read_json, reply, warning_header
from qwench.server.schemas import shape, sift
from qwench.server.service import Service


def message_routes(service: Service) -> APIRouter:
    """``/v1/messages`` and ``/v1/messages/count_tokens``."""
    router = APIRouter()

    @router.post("/v1/messages", openapi_extra=body_of("MessagesRequest"))
    async def messages(request: Request) -> Response:
        """Answer a conversation, as Anthropic's API does."""
        prepared = await understood(service, await read_json(service, request), MessagesRequest)
        return await reply(service, request, within(prepared, service), MessageFormat, service.head("msg_"))

    @router.post("/v1/messages/count_tokens", openapi_extra=body_of("CountRequest"))
    async def count_tokens(request: Request) -> Response:
        """How many tokens a conversation comes to."""
        prepared = await understood(service, await read_json(service, request), CountRequest)
        count = sum(len(prompt.token_ids) for prompt in prepared.prompts)
        return json_response({"input_tokens": count}, headers=warning_header(prepared.warnings))

    return router


async def understood(service: Service, body: Mapping[str, object], kind: type[CountRequest]) -> Prepared:
    """What ``body`` comes to. Raises RequestError, TemplateError or ModelNotFound."""
    fields, warnings = sift(body, "messages", FIELDS)
    asked = shape(kind, fields, FIELDS)
    warnings += service.names.meant(asked.model)
    if kind is MessagesRequest and asked.messages and asked.messages[-1].get("role") == "assistant":
        place = f"messages[{len(asked.messages) - 1}]"
        reason = "an answer cannot be begun for the model; end with a user's message"
        raise RequestError(f"{place} is the assistant's: {reason}.", param=place)
    translation = await asyncio.to_thread(read_messages, asked)
    eyes = service.eyes
    prepared = await service.apart(
        lambda: translation.prepare(service.text, eyes), looks=eyes is not None and translation.shows
    )
    return replace(prepared, warnings=(*warnings, *prepared.warnings))


def within(prepared: Prepared, service: Service) -> Prepared:
    """``prepared`` with the window as its bound where that is nearer than max_tokens: agents ask for more than small
    windows hold, and the stop reason tells which of the two it was."""
    most = prepared.sampling.max_tokens
    room = service.client.max_model_len - len(prepared.prompts[0].token_ids)
    if most is None or most <= room:
        return prepared
    return replace(prepared, sampling=replace(prepared.sampling, max_tokens=None))
