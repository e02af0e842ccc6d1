"""The routes around the model: health, version, tokens and templates, documentation."""

from __future__ import annotations

import functools
from dataclasses import asdict

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.responses import HTMLResponse, Response

from qwench import __version__
from qwench.errors import RequestError
from qwench.server.body import parse, read_body
from qwench.server.docs import page
from qwench.server.errors import RETRY_AFTER, json_response
from qwench.server.gate import OWNER
from qwench.server.openapi import document
from qwench.server.schemas import DetokenizeRequest, TemplateRequest, TokenizeRequest, shape
from qwench.server.service import Service
from qwench.text.model import ChatPrompt
from qwench.text.thinking import read_thinking
from qwench.text.vision import shows

CACHE_FOLDER = "cache folder "  # the line of the banner that has a path in it


def body_of(name: str) -> dict[str, object]:
    """The OpenAPI entry of a route whose JSON body is the component ``name``."""
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def health_routes(service: Service) -> APIRouter:
    """``/health`` and ``/version``."""
    router = APIRouter()

    @router.get("/health")
    async def health(request: Request) -> Response:
        """200 when requests are answered, 503 before (with the progress of loading), after, and while the engine stands
        still; needs no key. How the engine is set up is told to who has one."""
        status = service.client.status()
        told: dict[str, object] = {"status": status.state, "model": service.name}
        if status.state != "ready":
            return json_response({**told, "progress": round(status.loaded, 3)}, 503, {"retry-after": str(RETRY_AFTER)})
        if still := service.client.stuck_for:
            reason = f"the engine has work and has not finished a step for {still:.0f} seconds"
            return json_response({**told, "status": "stuck", "reason": reason}, 503)
        if service.settings.keys and not request.scope[OWNER]:
            return json_response({**told, "progress": 1.0})
        config = {**asdict(service.client.config), "model": service.name, "max_model_len": service.client.max_model_len}
        config["cache_dir"] = None if config["cache_dir"] is None else "set"  # no path leaves this machine
        resolved = [line for line in service.client.banner() if not line.startswith(CACHE_FOLDER)]
        return json_response({**told, "progress": 1.0, "config": config, "resolved": resolved})

    @router.get("/version")
    async def version() -> Response:
        """The version of Qwench."""
        return json_response({"version": __version__})

    return router


def token_routes(service: Service) -> APIRouter:
    """``/tokenize``, ``/detokenize`` and ``/apply-template``."""
    router = APIRouter()
    text, limit = service.text, service.settings.max_body_bytes

    @router.post("/tokenize", openapi_extra=body_of("TokenizeRequest"))
    async def tokenize(request: Request) -> Response:
        """Token ids of a text (prompt or content), or of messages through the chat template."""
        asked = shape(TokenizeRequest, _present(parse(await read_body(request, limit))))
        looks = service.eyes is not None and shows({"messages": asked.messages})
        return json_response(await service.apart(lambda: _tokenize(service, asked), looks=looks))

    @router.post("/detokenize", openapi_extra=body_of("DetokenizeRequest"))
    async def detokenize(request: Request) -> Response:
        """The text of token ids, special tokens included."""
        asked = shape(DetokenizeRequest, parse(await read_body(request, limit)))
        for token in asked.tokens:
            if not 0 <= token < text.tokenizer.size:
                last = text.tokenizer.size - 1
                raise RequestError(f"tokens holds {token}; this model's ids are 0 to {last}.", param="tokens")
        told = text.tokenizer.decode(asked.tokens, skip_special_tokens=False)
        return json_response({"prompt": told, "content": told})

    @router.post("/apply-template", openapi_extra=body_of("TemplateRequest"))
    async def apply_template(request: Request) -> Response:
        """The prompt the chat template makes of messages."""
        asked = shape(TemplateRequest, _present(parse(await read_body(request, limit))))
        looks = service.eyes is not None and shows({"messages": asked.messages})
        prompt = await service.apart(lambda: _render(service, asked.messages, asked), looks=looks)
        return json_response({"prompt": prompt.text})

    return router


def docs_routes(service: Service, routes: list[APIRoute]) -> APIRouter:
    """``/docs`` and ``/openapi.json`` over ``routes``. Both are written once."""
    router = APIRouter()
    described, shown = functools.cache(lambda: document(routes)), functools.cache(lambda: page(service.name, routes))

    @router.get("/docs")
    async def docs() -> Response:
        """This page."""
        return HTMLResponse(shown())

    @router.get("/openapi.json")
    async def openapi() -> Response:
        """The OpenAPI document."""
        return json_response(described())

    return router


def _present(fields: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}


def _render(service: Service, messages: object, asked: TokenizeRequest | TemplateRequest) -> ChatPrompt:
    spelled = {"enable_thinking": asked.enable_thinking, "chat_template_kwargs": asked.chat_template_kwargs}
    plan, variables = read_thinking(spelled), asked.chat_template_kwargs
    seen = messages if service.eyes is None else service.eyes.look(messages)
    return service.text.chat_prompt(seen, tools=asked.tools, thinking=plan, variables=variables)


def _tokenize(service: Service, asked: TokenizeRequest) -> dict[str, object]:
    tokenizer = service.text.tokenizer
    told = asked.content if asked.prompt is None else asked.prompt
    if (told is None) == (asked.messages is None):
        raise RequestError("prompt is missing; send prompt (or content), or messages.", param="prompt")
    if asked.messages is not None:
        ids = _render(service, asked.messages, asked).token_ids
    else:
        assert told is not None
        ids = tokenizer.encode(told) if asked.parse_special else tokenizer.encode_plain(told)
    answer: dict[str, object] = {"count": len(ids), "max_model_len": service.client.max_model_len, "tokens": ids}
    if asked.return_token_strs:
        answer["token_strs"] = [tokenizer.token_text(token) for token in ids]
    return answer
