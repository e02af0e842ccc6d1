"""The application: the routes that generate, and what stands around all of them.

Knows no engine beyond ``submit`` and no text beyond what ``prepare`` makes of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from qwench import __version__
from qwench.errors import QwenchError
from qwench.server.admin import body_of, docs_routes, health_routes, token_routes
from qwench.server.batches import BatchRunner, batch_routes
from qwench.server.chat import ChatFormat
from qwench.server.completions import CompletionFormat
from qwench.server.errors import NoSuchResponse, json_response, on_http_error, on_qwench_error
from qwench.server.files import file_routes
from qwench.server.gate import OWNER, Behind, Gate
from qwench.server.messages.routes import message_routes
from qwench.server.metrics import metrics_routes
from qwench.server.models import model_routes
from qwench.server.ollama.routes import ollama_routes
from qwench.server.prepare import prepare_chat, prepare_completion
from qwench.server.reply import REUSE_HEADER, WARNINGS_HEADER, generate, read_json
from qwench.server.responses.routes import response_routes
from qwench.server.schemas import ControlRequest, shape, show
from qwench.server.service import ServerSettings, Service
from qwench.server.site import page_routes
from qwench.text.model import ModelText

if TYPE_CHECKING:
    from qwench.engine.client import EngineClient


class Inner(Behind, FastAPI):
    """FastAPI behind the gate, which is outermost, so that a refusal costs little."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What GET answers HEAD does too: some clients begin with it. The connection leaves the body out."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await super().__call__(scope, receive, send)


def build_app(client: EngineClient, text: ModelText, settings: ServerSettings) -> ASGIApp:
    """The whole server. ``client`` may still be loading: requests that need it get 503 until it is ready."""
    service = Service(client, text, settings)
    runner = BatchRunner(service)
    app = Inner(
        title="Qwench",
        version=__version__,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=lambda _: runner.around(),
    )
    routers = routers_of(service, runner)
    listed = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    for router in (*routers, docs_routes(service, listed), page_routes(service)):
        app.include_router(router)
    app.add_exception_handler(QwenchError, on_qwench_error)
    app.add_exception_handler(HTTPException, on_http_error)
    gate = Gate(app, settings)
    if not settings.origins:
        return gate
    return CORSMiddleware(  # around the gate: a browser asks whether it may without a key
        gate,
        allow_origins=sorted(settings.origins),
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=[WARNINGS_HEADER, REUSE_HEADER, "x-request-id"],
    )


def routers_of(service: Service, runner: BatchRunner) -> list[APIRouter]:
    """All routes but those of the documentation."""
    return [
        answer_routes(service),
        message_routes(service),
        response_routes(service),
        model_routes(service),
        health_routes(service),
        token_routes(service),
        file_routes(service),
        batch_routes(service, runner),
        ollama_routes(service),
        metrics_routes(service),
    ]


def answer_routes(service: Service) -> APIRouter:
    """The routes that generate."""
    router = APIRouter()

    @router.post("/v1/chat/completions", openapi_extra=body_of("ChatRequest"))
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        return await generate(service, request, prepare_chat, ChatFormat, "chatcmpl-")

    @router.post("/v1/chat/completions/control", openapi_extra=body_of("ControlRequest"))
    async def control(request: Request) -> Response:
        """End the thinking of a running response: its id, and the action reasoning_end."""
        asked = shape(ControlRequest, await read_json(service, request))
        answer = service.answers.get(asked.id)
        if answer is None or answer.owner != request.scope[OWNER] or not answer.end_thinking():
            raise NoSuchResponse(f"No response {show(asked.id)} is running; send the id of one that is.", param="id")
        return json_response({"id": asked.id, "action": asked.action, "success": True})

    @router.post("/v1/completions", openapi_extra=body_of("CompletionRequest"))
    async def completions(request: Request) -> Response:
        """Continue raw text or token ids."""
        return await generate(service, request, prepare_completion, CompletionFormat, "cmpl-")

    return router
