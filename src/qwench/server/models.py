"""``/v1/models``: what is served, in the shapes of OpenAI's, Anthropic's and Codex's clients: the same facts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from qwench.server.errors import json_response, speaks_anthropic
from qwench.server.service import Service
from qwench.text.thinking import EFFORTS

LEVELS = ("low", "medium", "high", "xhigh")  # of effort, which Codex lets its users choose from
MOST_OUTPUT = 10_000  # tokens of a tool's output that Codex leaves; less in small windows
INSTRUCTIONS = """\
You work on the user's code through Codex, in a terminal on their machine.

- Look before you answer: read the files that matter, with rg where it is there.
- Use the tools you are offered, one step at a time, and read what each returns before the next.
- Change as little as the task needs, in the style of the code around it. Leave unrelated faults alone, but name them.
- Never discard work of the user's: no git reset, no checkout of changed files, unless they ask for it.
- Run the tests or the command that shows whether a change works, if there is one.
- When you are done, say in a few sentences what changed and what was not checked. Name files with their paths.
"""


def model_routes(service: Service) -> APIRouter:
    """``/v1/models`` and the model by its name."""
    router = APIRouter()

    @router.get("/v1/models")
    async def list_models(request: Request) -> Response:
        """The served model; to Anthropic's clients in their shape."""
        if speaks_anthropic(request.scope):
            card = anthropic_card(service)
            return json_response({"data": [card], "first_id": card["id"], "last_id": card["id"], "has_more": False})
        return json_response({"object": "list", "data": [openai_card(service)], "models": [codex_card(service)]})

    @router.get("/v1/models/{name:path}")
    async def get_model(name: str, request: Request) -> Response:
        """The served model, by its own names only."""
        service.names.own(name)
        return json_response(anthropic_card(service) if speaks_anthropic(request.scope) else openai_card(service))

    return router


def openai_card(service: Service) -> dict[str, object]:
    """OpenAI's four fields, and what clients of local servers look for beside them."""
    window = service.client.max_model_len
    return {
        "id": service.name,
        "object": "model",
        "created": int(service.started),
        "owned_by": "qwench",
        "context_length": window,
        "max_model_len": window,
        "input_modalities": _modalities(service, video=True),
        "output_modalities": ["text"],
        "capabilities": {
            "thinking": _thinks(service),
            "tools": _calls(service),
            "structured_outputs": True,
            "vision": service.client.sees,
        },
    }


def anthropic_card(service: Service) -> dict[str, object]:
    """Anthropic's model, with every capability it knows of."""
    thinks, window = _supported(_thinks(service)), service.client.max_model_len
    return {
        "type": "model",
        "id": service.name,
        "display_name": service.name,
        "created_at": datetime.fromtimestamp(int(service.started), UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "line": None,
        "deprecated_at": None,
        "retires_at": None,
        "max_input_tokens": window,
        "max_tokens": window,
        "capabilities": {
            "batch": _supported(False),
            "citations": _supported(False),
            "code_execution": _supported(False),
            "context_management": _supported(False),
            "effort": {**thinks, **dict.fromkeys(("low", "medium", "high", "xhigh", "max"), thinks)},
            "image_input": _supported(service.client.sees),
            "pdf_input": _supported(service.client.sees),
            "server_tools": {
                **_supported(False),
                "code_execution": _supported(False),
                "web_search": _supported(False),
            },
            "structured_outputs": _supported(True),
            "thinking": {
                **thinks,
                "types": {"enabled": thinks, "adaptive": thinks, "disabled": _supported(True)},
            },
        },
    }


def codex_card(service: Service) -> dict[str, object]:
    """What Codex wants to know; without instructions of ours it would use those written for another model."""
    thinks, window = _thinks(service), service.client.max_model_len
    return {
        "slug": service.name,
        "display_name": service.name,
        "description": "Served by Qwench.",
        "default_reasoning_level": "medium" if thinks else None,
        "supported_reasoning_levels": [
            {"effort": level, "description": f"thinks for up to {EFFORTS[level]:,} tokens"}
            for level in (LEVELS if thinks else ())
        ],
        "shell_type": "shell_command",
        "visibility": "list",
        "supported_in_api": True,
        "priority": 0,
        "upgrade": None,
        "base_instructions": INSTRUCTIONS,
        "supports_reasoning_summaries": thinks,
        "support_verbosity": False,
        "default_verbosity": None,
        "apply_patch_tool_type": None,
        "truncation_policy": {"mode": "tokens", "limit": min(MOST_OUTPUT, window // 4)},
        "supports_parallel_tool_calls": True,
        "context_window": window,
        "experimental_supported_tools": [],
        "input_modalities": _modalities(service, video=False),
    }


def _modalities(service: Service, *, video: bool) -> list[str]:
    seen = ["image", "video"] if video else ["image"]
    return ["text", *(seen if service.client.sees else ())]


def _thinks(service: Service) -> bool:
    return service.text.template is not None and service.text.template.can_think


def _calls(service: Service) -> bool:
    return service.text.template is not None and service.text.template.call_form is not None


def _supported(yes: bool) -> dict[str, Any]:
    return {"supported": yes}
