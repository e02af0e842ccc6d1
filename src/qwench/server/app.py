"""The application: the routes that generate, and what stands around all of them.

Knows no engine beyond ``submit`` and no text beyond what ``prepare`` makes of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from qwench import __version__
from qwench.errors import QwenchError
from qwench.server.admin import body_of, docs_routes, model_routes, token_routes
from qwench.server.answer import Answer, Format, Head, whole
from qwench.server.body import parse, read_body
from qwench.server.chat import ChatFormat
from qwench.server.completions import CompletionFormat
from qwench.server.considered import answer_to
from qwench.server.errors import (
    NoSuchResponse,
    json_response,
    on_http_error,
    on_qwench_error,
)
from qwench.server.gate import CLIENT_CLOSED, OWNER, Gate
from qwench.server.metrics import metrics_routes
from qwench.server.prepare import Prepared, prepare_chat, prepare_completion
from qwench.server.schemas import ControlRequest, shape, show
from qwench.server.service import ServerSettings, Service
from qwench.server.sse import ClientGone, EventStream, unless_gone
from qwench.text.model import ModelText
from qwench.text.tokenizer import Tokenizer
from qwench.text.vision import Eyes, shows

if TYPE_CHECKING:
    from qwench.engine.client import EngineClient

logger = logging.getLogger(__name__)

Prepare = Callable[[Mapping[str, object], ModelText, Sequence[str], Eyes | None], Prepared]
MakeFormat = Callable[[Head, Answer, Tokenizer], Format]
WARNINGS_HEADER = "x-qwench-warnings"
REUSE_HEADER = "x-qwench-cache"  # of a whole answer; a stream tells the same in a comment
MAX_WARNINGS = 2000  # characters; proxies refuse long headers


def build_app(client: EngineClient, text: ModelText, settings: ServerSettings) -> FastAPI:
    """The whole server. ``client`` may still be loading: requests that need it get 503 until it is ready."""
    service = Service(client, text, settings)
    app = FastAPI(title="Qwench", version=__version__, openapi_url=None, redirect_slashes=False)
    routers = [answer_routes(service), model_routes(service), token_routes(service), metrics_routes(service)]
    listed = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    for router in (*routers, docs_routes(service, listed)):
        app.include_router(router)
    app.add_exception_handler(QwenchError, on_qwench_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_middleware(Gate, settings=settings)
    if settings.origins:  # outermost: a browser asks whether it may without a key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(settings.origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=[WARNINGS_HEADER, REUSE_HEADER, "x-request-id"],
        )
    return app


def answer_routes(service: Service) -> APIRouter:
    """The routes that generate."""
    router = APIRouter()

    @router.post("/v1/chat/completions", openapi_extra=body_of("ChatRequest"))
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        return await generate(service, request, prepare_chat, ChatFormat, "chatcmpl")

    @router.post("/v1/chat/completions/control", openapi_extra=body_of("ControlRequest"))
    async def control(request: Request) -> Response:
        """End the thinking of a running response: its id, and the action reasoning_end."""
        asked = shape(ControlRequest, parse(await read_body(request, service.settings.max_body_bytes)))
        answer = service.answers.get(asked.id)
        if answer is None or answer.owner != request.scope[OWNER] or not answer.end_thinking():
            raise NoSuchResponse(f"No response {show(asked.id)} is running; send the id of one that is.", param="id")
        return json_response({"id": asked.id, "action": asked.action, "success": True})

    @router.post("/v1/completions", openapi_extra=body_of("CompletionRequest"))
    async def completions(request: Request) -> Response:
        """Continue raw text or token ids."""
        return await generate(service, request, prepare_completion, CompletionFormat, "cmpl")

    return router


async def generate(
    service: Service, request: Request, prepare: Prepare, make_format: MakeFormat, prefix: str
) -> Response:
    """One request from body to response. Everything that can be refused is refused before the first byte."""
    raw = await read_body(request, service.settings.max_body_bytes)
    # Rendering and tokenising a long conversation takes a while; other streams go on meanwhile.
    body = await asyncio.to_thread(parse, raw)
    names, eyes = service.settings.names, service.eyes
    prepared = await service.apart(
        lambda: prepare(body, service.text, names, eyes), looks=eyes is not None and shows(body)
    )
    answer = answer_to(service.client, service.text, prepared, request.scope[OWNER], service.settings.checkers)
    head = service.head(prefix)
    service.answers[head.id] = answer
    form = make_format(head, answer, service.text.tokenizer)
    headers = _warning_header(prepared.warnings)
    if prepared.stream:
        return EventStream(answer, form, service.settings.keepalive, headers)
    try:
        told = await unless_gone(request.receive, whole(answer, form))
        return json_response(told, headers={**headers, REUSE_HEADER: "; ".join(answer.reuse)[:MAX_WARNINGS]})
    except ClientGone:
        return Response(status_code=CLIENT_CLOSED)
    finally:
        answer.abort()


def _warning_header(warnings: Sequence[str]) -> dict[str, str]:
    told = "; ".join(warnings)
    if len(told) > MAX_WARNINGS:
        told = f"{told[: MAX_WARNINGS - 3]}..."
    return {WARNINGS_HEADER: told} if told else {}
