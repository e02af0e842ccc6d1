"""The gate around every request: its id, where it comes from, whose it is, how much they may ask, a line in the log.

Refuses before a byte of the body is read. Knows no route but those that need no key.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import time
import uuid
from contextlib import nullcontext
from functools import lru_cache

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwench import log
from qwench.errors import QwenchError, RequestError
from qwench.fault import fault
from qwench.server.connection import HEAD_BYTES
from qwench.server.errors import (
    REQUEST,
    EncodedBody,
    ForeignOrigin,
    HeadTooLarge,
    InternalError,
    InvalidApiKey,
    UnknownHost,
    error_response,
    speaks_anthropic,
)
from qwench.server.keys import owner_of
from qwench.server.limits import Limits
from qwench.server.service import ServerSettings
from qwench.server.site import is_public

logger = logging.getLogger(__name__)

OWNER = "qwench.owner"  # in the scope of a request: whose key it came with
ARRIVED = "qwench.arrived"  # when it came, by the monotonic clock
KEYLESS = frozenset({"/health"})
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
MOST_HEADERS = 100
LAST = {"connection": "close"}  # what follows on this connection is not to be read as another request
CLIENT_CLOSED = 499  # nobody reads it; the status nginx's logs made known
QUIET = frozenset({"/health", "/metrics"})  # asked for every few seconds; not worth a line each


class Unclear(RequestError):
    """Where the request ends can be read in two ways."""


class Behind(Starlette):
    """An application behind the gate, which tells what fails in the words of the API that was asked; Starlette would
    say "Internal Server Error"."""

    def build_middleware_stack(self) -> ASGIApp:
        stack = super().build_middleware_stack()
        assert isinstance(stack, ServerErrorMiddleware), "Starlette's own answer to failures is not outermost"
        return stack.app


class Gate:
    """Around the application."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._settings = settings
        self._limits = Limits(settings.key_rate, settings.key_running, settings.max_requests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError("nothing but HTTP is served, so nothing else may pass")
        headers = Headers(scope=scope)
        sent = headers.get("x-request-id", "")
        request_id = sent if REQUEST_ID.fullmatch(sent) else f"req_{uuid.uuid4().hex}"
        scope[REQUEST] = request_id
        status, began = 0, time.monotonic()
        scope[ARRIVED] = began

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                told = MutableHeaders(scope=message)
                told["x-request-id"] = request_id
                if speaks_anthropic(scope):
                    told["request-id"] = request_id
                told["x-content-type-options"] = "nosniff"
            fault("send")
            await send(message)

        with log.request(request_id):
            try:
                scope[OWNER] = owner_of(self._settings.keys, _secret(headers))
                await self._answer(scope, headers, receive, send_marked)
            except (ClientDisconnect, ConnectionError):
                status = CLIENT_CLOSED  # what was begun for it has been freed, and nobody waits
            except Exception:
                logger.exception("request %s failed", request_id)
                if status:
                    raise  # the server closes the connection; there is no other way left to tell
                reason = f"The server failed on request {request_id}; its log says why."
                await error_response(InternalError(reason), scope)(scope, receive, send_marked)
            finally:
                self._note(scope, status, time.monotonic() - began)

    async def _answer(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        try:
            self._check(scope, headers)
            counted = scope["method"] == "POST"
            with self._limits.request(scope[OWNER]) if counted else nullcontext():
                await self._app(scope, receive, send)
        except InvalidApiKey as error:
            await error_response(error, scope, {"www-authenticate": "Bearer"})(scope, receive, send)
        except Unclear as error:
            await error_response(error, scope, LAST)(scope, receive, send)
        except QwenchError as error:
            await error_response(error, scope)(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        settings, host = self._settings, headers.get("host", "")
        check_head(headers)
        if not settings.keys and not _is_known(host, settings.hosts):
            told = "is not one this server goes by; ask for its address, or start it with --allow-host"
            raise UnknownHost(f"The host {ascii(host)[1:-1][:100]} {told}.")
        origin = headers.get("origin")
        if origin is None and scope["method"] == "POST" and headers.get("sec-fetch-site") == "cross-site":
            origin = "another site"
        if origin is not None and origin.partition("://")[2] != host and not settings.origins & {origin, "*"}:
            told = f"Pages of {ascii(origin)[1:-1][:100]} may not use this server"
            raise ForeignOrigin(f"{told}; its operator can allow it with --allow-origin.")
        keyless = scope["path"] in KEYLESS or is_public(scope["path"], headers)
        if settings.keys and not scope[OWNER] and not keyless:
            told = "The API key is missing or wrong; send it as `Authorization: Bearer KEY` or `x-api-key: KEY`."
            raise InvalidApiKey(told)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        facts = {
            "method": scope["method"],
            "path": ascii(scope["path"])[1:-1][:200],
            "status": status,
            "seconds": round(seconds, 3),
            "owner": scope.get(OWNER, ""),
        }
        level = logging.DEBUG if scope["path"] in QUIET else logging.INFO
        logger.log(level, "%(method)s %(path)s: %(status)d after %(seconds).3f s", facts, extra={"facts": facts})


def check_head(headers: Headers) -> None:
    """Refuse more than is read, bodies that would have to be unpacked, and two lengths of one body."""
    if len(headers) > MOST_HEADERS or sum(len(name) + len(value) for name, value in headers.raw) > HEAD_BYTES:
        told = f"The request has more than {MOST_HEADERS} headers or {HEAD_BYTES} bytes of them; send fewer."
        raise HeadTooLarge(told)
    if headers.get("content-encoding", "identity").lower() not in ("", "identity"):
        raise EncodedBody("The body is encoded (content-encoding), which this server does not take; send it as it is.")
    if "transfer-encoding" in headers and "content-length" in headers:
        raise Unclear("The request has a content-length and a transfer-encoding; send one of them.")


def _secret(headers: Headers) -> str:
    """The key that was sent: as OpenAI's clients do, or as Anthropic's."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


@lru_cache(64)
def _is_known(host: str, allowed: frozenset[str]) -> bool:
    """Whether a Host header is an address, this machine's own name, or an allowed one. A page of the web that makes its
    name lead to this machine (DNS rebinding) sends its own name."""
    name = re.sub(r":\d*$", "", host).strip("[]").lower()
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost" or name.endswith(".localhost") or name in allowed
    return True
