"""The OpenAPI document: what each route takes and what it answers. Tests hold real answers to it.

Requests are the types of ``tables.py``; answers are written down here. Knows no values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from qwench import __version__
from qwench.server.tables import RULES, components

Schema = dict[str, Any]
TEXT, WHOLE, REAL, FLAG = {"type": "string"}, {"type": "integer"}, {"type": "number"}, {"type": "boolean"}
ANYTHING: Schema = {"type": "object"}
STREAM, LINES = "text/event-stream", "application/x-ndjson"


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


def listed(item: Schema) -> Schema:
    """A page of a list, as OpenAI's are."""
    ends = {"first_id": MAYBE_TEXT, "last_id": MAYBE_TEXT, "has_more": FLAG}
    return record(object=one_of("list"), data=several(item), **ends)


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
EVENT = record(("event",), event=TEXT, data=TEXT)  # one of a stream
ITEM = record(id=TEXT, type=TEXT)
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
    "AnthropicError": record(type=one_of("error"), error=record(type=TEXT, message=TEXT), request_id=MAYBE_TEXT),
    "Message": record(
        id=TEXT,
        type=one_of("message"),
        role=one_of("assistant"),
        model=TEXT,
        content=several(
            {
                "oneOf": [
                    record(type=one_of("text"), text=TEXT),
                    record(type=one_of("thinking"), thinking=TEXT, signature=TEXT),
                    record(type=one_of("tool_use"), id=TEXT, name=TEXT, input=ANYTHING),
                ]
            }
        ),
        stop_reason=one_of("end_turn", "max_tokens", "model_context_window_exceeded", "stop_sequence", "tool_use"),
        stop_sequence=MAYBE_TEXT,
        usage=record(
            input_tokens=WHOLE,
            cache_creation_input_tokens=WHOLE,
            cache_read_input_tokens=WHOLE,
            output_tokens=WHOLE,
            output_tokens_details=record(thinking_tokens=WHOLE),
        ),
    ),
    "MessageTokens": record(input_tokens=WHOLE),
    "Response": record(
        id=TEXT,
        object=one_of("response"),
        created_at=WHOLE,
        completed_at=or_null(WHOLE),
        status=one_of("completed", "incomplete", "in_progress", "failed", "cancelled"),
        error=or_null(record(code=TEXT, message=TEXT)),
        incomplete_details=or_null(record(reason=TEXT)),
        model=TEXT,
        output=several(ITEM),
        usage=or_null(named("ResponseUsage")),
        previous_response_id=MAYBE_TEXT,
        store=FLAG,
        background=FLAG,
        tools=several(ANYTHING),
        metadata=ANYTHING,
    ),
    "ResponseUsage": record(
        input_tokens=WHOLE,
        input_tokens_details=record(cached_tokens=WHOLE),
        output_tokens=WHOLE,
        output_tokens_details=record(reasoning_tokens=WHOLE),
        total_tokens=WHOLE,
    ),
    "ResponseTokens": record(object=one_of("response.input_tokens"), input_tokens=WHOLE),
    "Compaction": record(
        id=TEXT,
        object=one_of("response.compaction"),
        created_at=WHOLE,
        output=several(ITEM),
        usage=named("ResponseUsage"),
    ),
    "Items": listed(ITEM),
    "Deleted": record(id=TEXT, object=TEXT, deleted=FLAG),
    "File": record(
        id=TEXT,
        object=one_of("file"),
        bytes=WHOLE,
        created_at=WHOLE,
        expires_at=or_null(WHOLE),
        filename=TEXT,
        purpose=TEXT,
        status=TEXT,
    ),
    "Files": listed(named("File")),
    "Batch": record(
        id=TEXT,
        object=one_of("batch"),
        endpoint=TEXT,
        model=TEXT,
        status=one_of("failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"),
        errors=or_null(record(data=several(record(code=TEXT, message=TEXT, param=MAYBE_TEXT, line=or_null(WHOLE))))),
        input_file_id=TEXT,
        output_file_id=MAYBE_TEXT,
        error_file_id=MAYBE_TEXT,
        request_counts=record(total=WHOLE, completed=WHOLE, failed=WHOLE),
        created_at=WHOLE,
        completion_window=TEXT,
        metadata=or_null(ANYTHING),
    ),
    "Batches": listed(named("Batch")),
    "OllamaError": record(error=TEXT),
    "OllamaChat": record(
        model=TEXT,
        created_at=TEXT,
        message=record(("thinking", "tool_calls"), role=one_of("assistant"), content=TEXT, thinking=TEXT),
        done=FLAG,
        done_reason=TEXT,
    ),
    "OllamaText": record(("thinking",), model=TEXT, created_at=TEXT, response=TEXT, thinking=TEXT, done=FLAG),
    "OllamaModels": record(models=several(record(name=TEXT, model=TEXT, size=WHOLE, digest=TEXT, details=ANYTHING))),
    "OllamaModel": record(template=TEXT, details=ANYTHING, capabilities=several(TEXT), model_info=ANYTHING),
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
    "/v1/chat/completions": {JSON: named("ChatCompletion"), STREAM: EVENT},
    "/v1/completions": {JSON: named("Completion"), STREAM: EVENT},
    "/v1/chat/completions/control": {JSON: named("Control")},
    "/v1/messages": {JSON: named("Message"), STREAM: EVENT},
    "/v1/messages/count_tokens": {JSON: named("MessageTokens")},
    "/v1/responses": {JSON: named("Response"), STREAM: EVENT},
    "/v1/responses/input_tokens": {JSON: named("ResponseTokens")},
    "/v1/responses/compact": {JSON: named("Compaction")},
    "/v1/responses/{name}": {JSON: {"anyOf": [named("Response"), named("Deleted")]}},
    "/v1/responses/{name}/cancel": {JSON: named("Response")},
    "/v1/responses/{name}/input_items": {JSON: named("Items")},
    "/v1/files": {JSON: {"anyOf": [named("File"), named("Files")]}},
    "/v1/files/{file_id}": {JSON: {"anyOf": [named("File"), named("Deleted")]}},
    "/v1/batches": {JSON: {"anyOf": [named("Batch"), named("Batches")]}},
    "/v1/batches/{batch_id}": {JSON: named("Batch")},
    "/v1/batches/{batch_id}/cancel": {JSON: named("Batch")},
    "/api/chat": {JSON: named("OllamaChat"), LINES: TEXT},
    "/api/generate": {JSON: named("OllamaText"), LINES: TEXT},
    "/api/tags": {JSON: named("OllamaModels")},
    "/api/ps": {JSON: named("OllamaModels")},
    "/api/show": {JSON: named("OllamaModel")},
    "/api/version": {JSON: named("Version")},
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


def document(routes: Sequence[APIRoute]) -> Schema:
    """The whole document over ``routes``."""
    found = get_openapi(title="Qwench", version=__version__, routes=routes)
    for path, operations in found["paths"].items():
        for operation in operations.values():
            operation["responses"] = responses(path, operation["responses"])
    asking = {kind.__name__ for kind in RULES}
    requests = {name: _open(schema, named=name in asking) for name, schema in components().items()}
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
    wrong = {"application/json": {"schema": named(_error_of(path)) if answers else ANYTHING}}
    unwell = {"application/json": {"schema": named("Health")}} if path == "/health" else wrong
    return {
        "200": success,
        "4XX": {"description": "What is wrong with the request, in one sentence", "content": wrong},
        "5XX": {"description": "What is wrong with the server, in one sentence", "content": unwell},
    }


def _error_of(path: str) -> str:
    """The shape of errors on ``path``."""
    return "OllamaError" if path.startswith("/api/") else "AnthropicError" if "/messages" in path else "Error"


def _open(schema: Schema, *, named: bool) -> Schema:
    """Fields that nobody knows are ignored by name, not refused: clients add their own. ``named``: a model has to be
    named, unless the operator has said otherwise."""
    schema = {name: value for name, value in schema.items() if name != "additionalProperties"}
    if named:
        schema["required"] = ["model", *schema.get("required", ())]
        schema["properties"] = {**schema["properties"], "model": {"type": "string", "title": "Model"}}
    return schema
