"""A server under hostile requests: how a case is sent, what every answer to one has to be like, and the normal request
that has to get the same text before and after. Knows no case.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

from tests.reliability.effort import busy

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SAID = {"messages", "prompt", "input"}  # a body with one of these asks the model
REFUSED = frozenset({400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 431})
EITHER = REFUSED | {200}
SECONDS = 10.0  # for a refusal on a quiet machine
LEAKS = re.compile(
    r"0x[0-9a-fA-F]{6,}|Traceback|File \"|(?:/(?:usr|work|tmp|root|home|etc|proc|opt|var)/)[\w./-]*|site-packages|\w+\.py\b"
    r"|<class '|\bErrno\b|\b[A-Z][a-z]\w*(?:Error|Exception)\b|\bpydantic\b|\bllguidance\b"
)
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "What is 2 + 3?"}]
NAMED = {"model": "nano"}  # what is served
NORMAL: dict[str, Any] = {**NAMED, "messages": HELLO, "temperature": 0, "max_tokens": 12}


@dataclass(frozen=True)
class Case:
    """One request. ``body``: bytes as they are, else JSON, to which the name of the model is added: a request that is
    refused for want of one shows nothing. ``allowed``: the statuses that are right. ``again``: said in
    other words elsewhere, so that the slow suite is enough for it."""

    name: str
    body: Any = None
    path: str = CHAT
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    allowed: frozenset[int] = REFUSED
    again: bool = False

    @property
    def content(self) -> bytes:
        if self.body is None or isinstance(self.body, bytes):
            return self.body or b""
        body = self.body
        if isinstance(body, dict) and "model" not in body and body.keys() & SAID:
            body = {**NAMED, **body}
        return json.dumps(body).encode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Target:
    """A running server; ``key`` is sent with every request that does not bring an authorization of its own."""

    address: str
    key: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"} if self.key else {}

    def faults(self, cases: Iterable[Case], seconds: list[float] | None = None) -> list[str]:
        """What is wrong with the answers, one line for each; ``seconds`` takes how long each refusal took."""
        times = [] if seconds is None else seconds
        with self.client() as client:
            return [f"{case.name}: {fault}" for case in cases for fault in self._fault(client, case, times)]

    @contextmanager
    def client(self) -> Iterator[httpx.Client]:
        with httpx.Client(base_url=self.address, timeout=6 * SECONDS * busy(), headers=self.headers) as client:
            yield client

    def _fault(self, client: httpx.Client, case: Case, seconds: list[float]) -> Iterator[str]:
        began = time.monotonic()
        headers = {"content-type": "application/json", **case.headers}
        try:
            answer = client.request(case.method, case.path, content=case.content, headers=headers)
        except httpx.HTTPError as error:
            yield f"{type(error).__name__} instead of an answer: {error}"
            return
        took = time.monotonic() - began
        if answer.status_code >= 400:
            seconds.append(took)
        if took > SECONDS * busy():
            yield f"took {took:.1f} s"
        if answer.status_code not in case.allowed:
            yield f"{answer.status_code} {answer.text[:200]}"
        sent = f"{unquote(case.path)} {case.headers} {case.content.decode('utf-8', 'replace')}"
        yield from faults_of(answer, sent, self.key)

    def text(self) -> str:
        """The answer to the normal request."""
        with self.client() as client:
            answer = client.post(CHAT, json=NORMAL)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])

    def raw(self, request: bytes, *, seconds: float = SECONDS, close: bool = False) -> tuple[int, bytes]:
        """What comes back for these bytes until the server closes, or ``seconds`` are over: status (0: none) and all.

        ``close``: nothing more will be sent, which the server is told.
        """
        where = urlsplit(self.address)
        with socket.create_connection((where.hostname or "", where.port or 0), timeout=seconds) as connection:
            connection.settimeout(seconds)
            told = b""
            try:
                connection.sendall(request)
                if close:
                    connection.shutdown(socket.SHUT_WR)
                while piece := connection.recv(65_536):
                    told += piece
            except (TimeoutError, ConnectionError):
                pass
        found = re.match(rb"HTTP/1\.[01] (\d{3}) ", told)
        return (int(found[1]) if found else 0), told


def faults_of(answer: httpx.Response, sent: str = "", key: str | None = None) -> Iterator[str]:
    """What no answer may be: without the shape of an error, or with something in it that is nobody's business.

    What was ``sent`` may come back.
    """
    if answer.status_code >= 500:
        yield f"{answer.status_code}"
    if answer.status_code >= 400:
        try:
            error = answer.json()["error"]
            if answer.request.url.path.startswith("/api/"):  # Ollama's shape is a sentence
                error = {"message": error, "type": ""}
            shaped = {"message", "type"} <= error.keys() and isinstance(error["message"], str) and error["message"]
        except (ValueError, KeyError, TypeError, AttributeError):
            shaped = False
        if not shaped and answer.request.method != "HEAD":
            yield f"no error object: {answer.text[:200]}"
    told = answer.text if answer.status_code >= 400 else ""
    for found in LEAKS.finditer(told):
        if found[0].rstrip(".") not in sent:  # what is shown of it may be cut
            yield f"tells {found[0]!r}"
    if key and key in f"{answer.text}{answer.headers}":
        yield "tells the key"
    if "set-cookie" in answer.headers:
        yield "lets somebody else write its head"
    if "server" in answer.headers:
        yield "tells what it runs on"
