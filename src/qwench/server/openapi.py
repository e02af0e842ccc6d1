"""The OpenAPI document: what each route takes and what it answers. Tests hold real answers to it.

Requests are the types of ``schemas.py``; answers are written down here. Knows no values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel

from qwench import __version__
from qwench.server.schemas import components

Schema = dict[str, Any]
TEXT, WHOLE, REAL, FLAG = {"type": "string"}, {"type": "integer"}, {"type": "number"}, {"type": "boolean"}
ANYTHING: Schema = {"type": "object"}
STREAM = "text/event-stream"


def record(optional: Sequence[str] = (), /, **fields: Schema) -> Schema:
    """An object with all of ``fields``, but for those that are ``optional``, and perhaps more."""
    needed = [name for name in fields if name not in optional]
    return {"type": "object", "properties": fields, "required": needed}


def several(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def one_of(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def named(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


MAYBE_TEXT = or_null(TEXT)
TOKENS = several({"type": "integer", "minimum": 0})
CALL = record(id=TEXT, type=one_of("function"), function=record(name=TEXT, arguments=TEXT))
LOGPROB = record(token=TEXT, logprob=REAL, bytes=several(WHOLE))
HEAD = {
    "id": TEXT,
    "created": WHOLE,
    "model": TEXT,
    "system_fingerprint": TEXT,
    "usage": named("Usage"),
    "timings": ANYTHING,
}
CARD = record(id=TEXT, object=one_of("model"), created=WHOLE, owned_by=TEXT, context_length=WHOLE, max_model_len=WHOLE)
REASONS = ("stop", "length", "tool_calls", "function_call")

COMPONENTS: Mapping[str, Schema] = {
    "Error": record(error=record(message=TEXT, type=TEXT, param=MAYBE_TEXT, code=MAYBE_TEXT)),
    "Usage": record(
        prompt_tokens=WHOLE,
        completion_tokens=WHOLE,
        total_tokens=WHOLE,
        prompt_tokens_details=record(cached_tokens=WHOLE),
        completion_tokens_details=record(reasoning_tokens=WHOLE),
    ),
    "ChatMessage": record(
        ("tool_calls", "function_call"),
        role=one_of("assistant"),
        content=MAYBE_TEXT,
        refusal={"type": "null"},
        annotations=several(ANYTHING),
        reasoning_content=MAYBE_TEXT,
        reasoning=MAYBE_TEXT,
        tool_calls=several(CALL),
        function_call=record(name=TEXT, arguments=TEXT),
    ),
    "ChatCompletion": record(
        ("thinking", "media", "reasoning_strategy"),
        **HEAD,
        object=one_of("chat.completion"),
        choices=several(
            record(
                index=WHOLE,
                message=named("ChatMessage"),
                logprobs=or_null(record(content=several(LOGPROB), refusal={"type": "null"})),
                finish_reason=one_of(*REASONS),
                finish_details=or_null(ANYTHING),
            )
        ),
        thinking=or_null(ANYTHING),
        media=several(ANYTHING),
        reasoning_strategy=ANYTHING,
    ),
    "Completion": record(
        **HEAD,
        object=one_of("text_completion"),
        choices=several(
            record(
                index=WHOLE,
                text=TEXT,
                logprobs=or_null(
                    record(
                        tokens=several(TEXT),
                        token_logprobs=several(or_null(REAL)),
                        top_logprobs=several(or_null({"type": "object", "additionalProperties": REAL})),
                        text_offset=several(WHOLE),
                    )
                ),
                finish_reason=one_of("stop", "length"),
            )
        ),
    ),
    "Model": record(id=TEXT),
    "Models": record(data=several(named("Model"))),
    "Health": record(
        ("progress", "reason", "config", "resolved"),
        status=one_of("loading", "ready", "failed", "stopped", "stuck"),
        model=TEXT,
        progress={"type": "number", "minimum": 0, "maximum": 1},
        reason=TEXT,
        config=ANYTHING,
        resolved=several(TEXT),
    ),
    "Control": record(id=TEXT, action=TEXT, success=FLAG),
    "Tokens": record(("token_strs",), count=WHOLE, max_model_len=WHOLE, tokens=TOKENS, token_strs=several(TEXT)),
    "Text": record(prompt=TEXT, content=TEXT),
    "Prompt": record(prompt=TEXT),
    "Version": record(version=TEXT),
}

# The answers of success by path: what is sent as which type.
JSON = "application/json"
ANSWERS: Mapping[str, Mapping[str, Schema]] = {
    "/v1/chat/completions": {JSON: named("ChatCompletion"), STREAM: TEXT},
    "/v1/completions": {JSON: named("Completion"), STREAM: TEXT},
    "/v1/chat/completions/control": {JSON: named("Control")},
    "/v1/models": {JSON: named("Models")},
    "/v1/models/{name}": {JSON: named("Model")},
    "/tokenize": {JSON: named("Tokens")},
    "/detokenize": {JSON: named("Text")},
    "/apply-template": {JSON: named("Prompt")},
    "/health": {JSON: named("Health")},
    "/version": {JSON: named("Version")},
    "/v1/files/{file_id}/content": {"application/octet-stream": TEXT},
    "/metrics": {"text/plain": TEXT},
}


def document(routes: Sequence[APIRoute], *more: type[BaseModel]) -> Schema:
    """The whole document over ``routes``; ``more`` are requests beside those of ``schemas.py``."""
    found = get_openapi(title="Qwench", version=__version__, routes=routes)
    for path, operations in found["paths"].items():
        for operation in operations.values():
            operation["responses"] = responses(path, operation["responses"])
    requests = {name: _open(schema) for name, schema in components(*more).items()}
    found["components"] = {
        "schemas": {**requests, **COMPONENTS},
        "securitySchemes": {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        },
    }
    found["security"] = [{"bearer": []}, {"key": []}, {}]
    return found


def responses(path: str, given: Schema) -> Schema:
    """What ``path`` may answer; ``given`` is what FastAPI knows of it."""
    answers = ANSWERS.get(path)
    content = {kind: {"schema": schema} for kind, schema in answers.items()} if answers else None
    success = given["200"] if content is None else {"description": "As it was asked for", "content": content}
    wrong = {"application/json": {"schema": named("Error") if answers else ANYTHING}}
    unwell = {"application/json": {"schema": named("Health")}} if path == "/health" else wrong
    return {
        "200": success,
        "4XX": {"description": "What is wrong with the request, in one sentence", "content": wrong},
        "5XX": {"description": "What is wrong with the server, in one sentence", "content": unwell},
    }


def _open(schema: Schema) -> Schema:
    """Fields that nobody knows are ignored by name, not refused: clients add their own."""
    return {name: value for name, value in schema.items() if name != "additionalProperties"}
