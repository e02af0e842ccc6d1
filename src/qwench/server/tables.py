"""Every type of request with its table of fields: the source of the OpenAPI document, of /docs and of docs/api.md.

A field of a request that generates is in a table of rules; a field of any other is supported and says what it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from qwench.server import schemas
from qwench.server.messages import fields as messages
from qwench.server.ollama import fields as ollama
from qwench.server.responses import fields as responses
from qwench.server.schemas import Endpoint, FieldRule, Treatment

RULES: Mapping[type[BaseModel], tuple[Endpoint, Sequence[FieldRule]]] = MappingProxyType(
    {
        schemas.ChatRequest: ("chat", schemas.FIELDS),
        schemas.CompletionRequest: ("completions", schemas.FIELDS),
        messages.MessagesRequest: ("messages", messages.FIELDS),
        messages.CountRequest: ("messages", messages.FIELDS),
        responses.ResponsesRequest: ("responses", responses.FIELDS),
        ollama.OllamaChatRequest: ("ollama chat", ollama.FIELDS),
        ollama.OllamaGenerateRequest: ("ollama generate", ollama.FIELDS),
    }
)
OTHERS: tuple[type[BaseModel], ...] = (
    schemas.ControlRequest,
    schemas.FileUpload,
    schemas.BatchRequest,
    schemas.TokenizeRequest,
    schemas.DetokenizeRequest,
    schemas.TemplateRequest,
    ollama.ShowRequest,
)
KINDS = {kind.__name__: kind for kind in (*RULES, *OTHERS)}


def rows(name: str) -> list[FieldRule]:
    """The fields of a request type by its name, in the order of its table."""
    kind = KINDS[name]
    if kind in RULES:
        endpoint, table = RULES[kind]
        return [rule for rule in table if endpoint in rule.endpoints]
    fields = kind.model_fields.items()
    return [FieldRule(field, (), Treatment.SUPPORTED, info.description or "") for field, info in fields]


def body_name(route: APIRoute) -> str | None:
    """The name of the type that a route reads, if it reads one."""
    content = (route.openapi_extra or {}).get("requestBody", {}).get("content", {})
    references = [str(each["schema"]["$ref"]) for each in content.values()]
    return references[0].rpartition("/")[2] if references else None


def queries(route: APIRoute) -> list[dict[str, Any]]:
    """What may stand behind the question mark of a route's address."""
    return [each for each in (route.openapi_extra or {}).get("parameters", ()) if each["in"] == "query"]


def components() -> dict[str, Any]:
    """The request types as OpenAPI components."""
    wanted: list[tuple[type[BaseModel], Literal["validation"]]] = [(kind, "validation") for kind in KINDS.values()]
    _, schema = models_json_schema(wanted, ref_template="#/components/schemas/{model}")
    definitions: dict[str, Any] = schema["$defs"]
    return definitions
