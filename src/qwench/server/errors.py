"""Failures as HTTP answers, in OpenAI's shape or in Anthropic's. Sentences are those of ``qwench.errors``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from qwench.errors import ContextLengthExceeded, Overloaded, QwenchError, RequestError

RETRY_AFTER = 2  # seconds; loading moves within that order of time, and nobody shall come back sooner
MOST_RETRY_AFTER = 60  # seconds; OpenAI's own client does not believe more
UNPRINTABLE = re.compile(r"[^ -~]")
RETRIED = frozenset({429, 503})  # everything else fails again when repeated
REQUEST = "qwench.request"  # in the scope of a request: its id
OLLAMA = "/api/"  # its routes tell a failure as a text
BUSY = 529  # Anthropic's status of a server that cannot answer now, instead of 503
ASKED = "chat/completions|completions|responses|messages|models"
SHORT = re.compile(
    rf"/((?:{ASKED})(?:/[\w/.-]{{0,99}})?)", re.ASCII
)  # where a base URL of OpenAI's clients lacks its end
LONG = re.compile(rf"/v1(/v1/(?:{ASKED})(?:/[\w/.-]{{0,99}})?|/api/\w{{1,20}})", re.ASCII)  # and one of others' has it
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    BUSY: "overloaded_error",
}


class InvalidApiKey(QwenchError):
    """The Authorization header is missing or holds another key."""

    status, type, code = 401, "invalid_request_error", "invalid_api_key"


class UnknownHost(QwenchError):
    """The Host header is a name that this server does not go by."""

    status, type, code = 403, "invalid_request_error", "unknown_host"


class ForeignOrigin(QwenchError):
    """The request comes from a page of another origin."""

    status, type, code = 403, "invalid_request_error", "foreign_origin"


class BodyTooLarge(RequestError):
    """The body is longer than the server reads."""

    status, code = 413, "request_too_large"


class HeadTooLarge(RequestError):
    """The request has more headers, or longer ones, than the server reads."""

    status, code = 431, "headers_too_large"


class BodyTooSlow(RequestError):
    """The body does not come on."""

    status, code = 408, "request_timeout"


class EncodedBody(RequestError):
    """The body is compressed."""

    status, code = 415, "unsupported_encoding"


class NoSuchRoute(QwenchError):
    """No route has this path."""

    status, type, code = 404, "invalid_request_error", "unknown_url"


class NoSuchResponse(RequestError):
    """No response of this id is running."""

    status = 404


class WrongMethod(QwenchError):
    """The path has a route, but not for this method."""

    status, type, code = 405, "invalid_request_error", "method_not_allowed"


class InternalError(QwenchError):
    """A bug; the log has its traceback."""

    code = "internal_error"


def encode(payload: Mapping[str, object]) -> bytes:
    """Compact JSON in UTF-8; half surrogate pairs, which UTF-8 cannot hold, become question marks."""
    return json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def json_response(
    payload: Mapping[str, object], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(encode(payload), status, headers, media_type="application/json")


def header_value(text: str, most: int) -> str:
    """``text`` as a header can hold it, at most so long. A client's own words may be in it: what is not printable ASCII
    is escaped."""
    told = UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text).strip()
    return told if len(told) <= most else f"{told[: most - 3]}..."


def error_body(error: QwenchError) -> dict[str, object]:
    """OpenAI's error object."""
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def anthropic_error(error: QwenchError, request_id: str | None) -> dict[str, object]:
    """Anthropic's error object, also as an event of a stream."""
    status = _anthropic_status(error)
    kind = ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    message = error.message
    if isinstance(error, ContextLengthExceeded) and error.window:  # clients look for these words and both numbers
        message = f"prompt is too long: {error.tokens} tokens > {error.window} maximum; shorten the conversation."
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}


def speaks_anthropic(scope: Scope) -> bool:
    """Whether a request wants Anthropic's shapes: by its path or, where both APIs have it or lack it, its headers."""
    path = scope["path"]
    if path.startswith(("/v1/models", "/v1/v1/")):
        return any(name == b"anthropic-version" for name, _ in scope["headers"])
    return bool(path == "/v1/messages" or path.startswith("/v1/messages/"))


def error_response(error: QwenchError, scope: Scope, headers: Mapping[str, str] | None = None) -> Response:
    """``error`` in the shape that the request of ``scope`` wants, telling whether trying again can help."""
    wait = math.ceil(error.retry_after) if isinstance(error, Overloaded) else 0
    again = {"retry-after": str(min(max(wait, RETRY_AFTER), MOST_RETRY_AFTER))}
    retry = again if error.status in RETRIED else {"x-should-retry": "false"}
    told = {**retry, **(headers or {})}
    if scope["path"].startswith(OLLAMA):
        return json_response({"error": error.message}, error.status, told)
    if speaks_anthropic(scope):
        return json_response(anthropic_error(error, scope.get(REQUEST)), _anthropic_status(error), told)
    return json_response(error_body(error), error.status, told)


def _anthropic_status(error: QwenchError) -> int:
    return BUSY if error.status == 503 else error.status


async def on_qwench_error(request: Request, error: Exception) -> Response:
    """Exception handler of the application."""
    assert isinstance(error, QwenchError)
    return error_response(error, request.scope)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Exception handler for what the router refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    asked = f"{request.method} {ascii(request.scope['path'])[1:-1][:200]}"  # not `url`: that is made of the Host header
    if error.status_code == 404:
        return error_response(NoSuchRoute(f"There is no {asked}; {_instead(request.scope['path'])}."), request.scope)
    if error.status_code == 405:
        wrong = WrongMethod(f"{asked} is not possible; /docs lists the routes.")
        return error_response(wrong, request.scope, error.headers)
    assert error.status_code < 500, f"the router gave {error.status_code}"
    return error_response(RequestError(f"{asked} was refused: {error.detail}."), request.scope)


def _instead(path: str) -> str:
    """What a client whose base URL lacks its end, or has it twice, is looking for; else where to look."""
    if found := SHORT.fullmatch(path):
        return f"send it to /v1/{found[1]}, with a base URL that ends in /v1"
    if found := LONG.fullmatch(path):
        return f"send it to {found[1]}, with a base URL that does not end in /v1"
    return "/docs lists the routes"
