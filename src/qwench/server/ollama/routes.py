"""The routes of Ollama's API. What is served is told as the one model there is; nothing is pulled or deleted."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from qwench import __version__
from qwench.errors import EngineUnavailable, RequestError
from qwench.model.parameters import declare, declare_vision
from qwench.server.admin import body_of
from qwench.server.errors import json_response
from qwench.server.naming import LIBRARY
from qwench.server.ollama.conversation import raw_body, read_chat, read_generate
from qwench.server.ollama.fields import FIELDS, OllamaChatRequest, OllamaGenerateRequest, ShowRequest, sift_options
from qwench.server.ollama.form import OllamaChatFormat, OllamaGenerateFormat, begun, stamp
from qwench.server.prepare import Prepared, prepare_completion
from qwench.server.reply import read_json, reply
from qwench.server.schemas import shape
from qwench.server.service import Service
from qwench.text.infill import can_infill

SPOKEN = "0.12.6"  # the version of Ollama whose API this is; clients refuse servers that are older than they like
NEVER = "9999-12-31T23:59:59Z"
LATEST = ":latest"


def ollama_routes(service: Service) -> APIRouter:
    """``/api/...``."""
    router = APIRouter()

    @router.post("/api/chat", openapi_extra=body_of("OllamaChatRequest"))
    async def chat(request: Request) -> Response:
        """Answer a conversation, as Ollama does."""
        body = await read_json(service, request)
        fields, warnings = sift_options(body, "ollama chat")
        asked = shape(OllamaChatRequest, fields, FIELDS)
        warnings += service.names.meant(_untagged(asked.model), LIBRARY)
        if not asked.messages:
            return _loaded(service, {"message": {"role": "assistant", "content": ""}}, body)
        prepared = await _understood(service, asked, warnings)
        return await reply(service, request, prepared, OllamaChatFormat, service.head("ollama-"))

    @router.post("/api/generate", openapi_extra=body_of("OllamaGenerateRequest"))
    async def generate(request: Request) -> Response:
        """Continue a prompt, as Ollama does: as a user's words, raw, or between two ends."""
        body = await read_json(service, request)
        fields, warnings = sift_options(body, "ollama generate")
        asked = shape(OllamaGenerateRequest, fields, FIELDS)
        warnings += service.names.meant(_untagged(asked.model), LIBRARY)
        if not (asked.prompt or asked.suffix or asked.images):
            return _loaded(service, {"response": ""}, body)
        prepared = await _understood(service, asked, warnings)
        return await reply(service, request, prepared, OllamaGenerateFormat, service.head("ollama-"))

    @router.get("/api/tags")
    async def tags() -> Response:
        """The served model."""
        return json_response({"models": [await asyncio.to_thread(_card, service)]})

    @router.get("/api/ps")
    async def running() -> Response:
        """What is loaded: the same, once it is."""
        ready = service.client.status().state == "ready"
        card = await asyncio.to_thread(_card, service)
        on_device = card["size"] if service.client.device != "cpu" else 0
        more = {"expires_at": NEVER, "size_vram": on_device, "context_length": service.client.max_model_len}
        return json_response({"models": [{**card, **more}] if ready else []})

    @router.post("/api/show", openapi_extra=body_of("ShowRequest"))
    async def show(request: Request) -> Response:
        """What the served model is and can do."""
        asked = shape(ShowRequest, await read_json(service, request))
        name = asked.model or asked.name
        if not name:
            raise RequestError("model is missing; send the served name.", param="model")
        service.names.own(name.removesuffix(LATEST))
        return json_response(await asyncio.to_thread(_shown, service))

    @router.get("/api/version")
    async def version() -> Response:
        """The version of Ollama whose API is spoken, and Qwench's own."""
        return json_response({"version": SPOKEN, "qwench": __version__})

    return router


async def _understood(
    service: Service, asked: OllamaChatRequest | OllamaGenerateRequest, warnings: list[str]
) -> Prepared:
    """What is asked for. Raises RequestError or TemplateError."""
    eyes, window = service.eyes, service.client.max_model_len
    wish = asked.options.num_ctx
    if wish is not None and wish > window:
        warnings.append(f"options.num_ctx: the window is {window} tokens (--max-model-len)")
    if isinstance(asked, OllamaGenerateRequest) and (asked.raw or asked.suffix):
        prepared = await asyncio.to_thread(_raw, service, asked)
    else:
        read = read_chat(asked) if isinstance(asked, OllamaChatRequest) else read_generate(asked)
        looks = eyes is not None and read.shows
        prepared = await service.apart(lambda: read.prepare(service.text, eyes), looks=looks)
    return replace(prepared, warnings=(*warnings, *prepared.warnings))


def _raw(service: Service, asked: OllamaGenerateRequest) -> Prepared:
    body, places = raw_body(asked)
    with places.naming():
        prepared = prepare_completion(body, service.text)
    if "max_tokens" not in body:  # there OpenAI's few are the default
        prepared = replace(prepared, sampling=replace(prepared.sampling, max_tokens=None))
    return prepared


def _untagged(model: str | None) -> str | None:
    return model and model.removesuffix(LATEST)


def _loaded(service: Service, told: Mapping[str, object], body: Mapping[str, object]) -> Response:
    """The answer to a request for nothing, by which clients load a model or let it go."""
    if service.client.status().state != "ready":
        raise EngineUnavailable(f"The model is {service.client.status().state}; ask again when it is ready.")
    reason = "unload" if body.get("keep_alive") in (0, "0") else "load"
    return json_response({**begun(service.name), **told, "done": True, "done_reason": reason})


def _card(service: Service) -> dict[str, Any]:
    files = _files(service)
    sizes = [path.stat() for path in files]
    changed = max((each.st_mtime for each in sizes), default=service.started)
    return {
        "name": service.name,
        "model": service.name,
        "modified_at": stamp(datetime.fromtimestamp(changed, UTC)),
        "size": sum(each.st_size for each in sizes),
        "digest": hashlib.sha256(
            f"{service.name} {[(each.st_size, each.st_mtime) for each in sizes]}".encode()
        ).hexdigest(),
        "details": _details(service),
    }


def _files(service: Service) -> list[Path]:
    """The files that hold the weights."""
    files = service.client.files
    return sorted(files.glob("*.safetensors")) if isinstance(files, Path) else list(files.parts)


def _details(service: Service) -> dict[str, object]:
    client = service.client
    family = client.model.model_type
    return {
        "parent_model": "",
        "format": "safetensors" if isinstance(client.files, Path) else "gguf",
        "family": family,
        "families": [family],
        "parameter_size": _short(_parameters(service)),
        "quantization_level": (client.config.quantization or client.model.dtype).upper(),
    }


def _parameters(service: Service) -> int:
    config = service.client.model
    specs = [*declare(config).values(), *(declare_vision(config.vision).values() if config.vision else ())]
    return sum(math.prod(spec.shape) for spec in specs)


def _short(count: int) -> str:
    """As Ollama writes it: 6.1M, 35.1B."""
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"


def _shown(service: Service) -> dict[str, object]:
    text, config = service.text, service.client.model
    family, sampling = config.model_type, text.sampling_defaults(thinking=False)
    known = {
        name: value for name, value in asdict(sampling).items() if name in ("temperature", "top_k", "top_p", "min_p")
    }
    template = text.template
    can = {
        "completion": True,
        "tools": template is not None and template.call_form is not None,
        "thinking": template is not None and template.can_think,
        "vision": service.client.sees,
        "insert": can_infill(text.tokenizer),
    }
    card = _card(service)
    return {
        "license": "",
        "modelfile": f"FROM {service.name}\n",
        "parameters": "\n".join(f"{name} {value}" for name, value in known.items()),
        "template": template.source if template is not None else "",
        "details": card["details"],
        "modified_at": card["modified_at"],
        "capabilities": [name for name, yes in can.items() if yes],
        "model_info": {
            "general.architecture": family,
            "general.parameter_count": _parameters(service),
            f"{family}.context_length": service.client.max_model_len,
            f"{family}.embedding_length": config.hidden_size,
            f"{family}.block_count": config.num_layers,
            f"{family}.attention.head_count": config.num_heads,
            f"{family}.attention.head_count_kv": config.num_kv_heads,
        },
    }
