"""The chat page at ``/``: its files as they lie in ``page/``, and the headers that keep everything else out.

Whoever may reach the server may read them: they hold no secret, and a browser cannot send a key before it has them.
What the page then asks of the server needs the key like any other request.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.datastructures import Headers
from starlette.responses import Response

from qwench import __version__
from qwench.server.errors import NoSuchRoute, json_response
from qwench.server.service import Service

FOLDER = Path(__file__).parent / "page"
FILES = "/page/"  # where the files of the page are, beside the page itself
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
# Scripts and styles come from this server alone, connections go to it alone, and no string becomes markup: with
# trusted types a browser refuses innerHTML itself. Pictures may be those that the user attached.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-cache",  # a browser asks each time, and gets 304 until the server is another version
}


@dataclass(frozen=True)
class File:
    """One file of the page."""

    content: bytes
    kind: str
    tag: str

    @classmethod
    def read(cls, path: Path) -> File:
        content = path.read_bytes()
        return cls(content, TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:16]}"')

    def response(self, request: Request) -> Response:
        headers = {**HEADERS, "etag": self.tag}
        if request.headers.get("if-none-match") == self.tag:
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers={**headers, "content-type": self.kind})


def is_public(path: str, headers: Headers) -> bool:
    """Whether a request is a browser's for the page or one of its files, which need no key."""
    return path.startswith(FILES) or (path == "/" and _shows_pages(headers))


def _shows_pages(headers: Headers) -> bool:
    return "text/html" in headers.get("accept", "")


def page_routes(service: Service) -> APIRouter:
    """``/`` and the files of the page."""
    router = APIRouter()
    paths = (path for path in FOLDER.rglob("*") if path.is_file())
    files = {path.relative_to(FOLDER).as_posix(): File.read(path) for path in paths}

    @router.get("/")
    async def root(request: Request) -> Response:
        """The chat page for browsers; for others what this is."""
        if _shows_pages(request.headers):
            response = files["index.html"].response(request)
        else:
            told = {"name": "qwench", "version": __version__, "model": service.name, "docs": "/docs"}
            response = json_response(told)
        response.headers["vary"] = "accept"
        return response

    @router.get(FILES + "{name:path}", include_in_schema=False)
    async def file(name: str, request: Request) -> Response:
        if name not in files:
            raise NoSuchRoute("The page has no such file; load the page again.")
        return files[name].response(request)

    return router
