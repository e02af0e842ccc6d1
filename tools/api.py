"""Writes docs/api.md from the routes and the tables that requests are read by, so that no field can be forgotten.

    .venv/bin/python -m tools.api

A test compares the page with what would be written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fastapi.routing import APIRoute

from qwench.config import EngineConfig
from qwench.engine.client import EngineClient
from qwench.server.app import routers_of
from qwench.server.batches import BatchRunner
from qwench.server.schemas import FieldRule
from qwench.server.service import ServerSettings, Service
from qwench.server.tables import KINDS, body_name, queries, rows
from qwench.text.model import ModelText

PAGE = Path(__file__).resolve().parents[1] / "docs/api.md"
HEAD = """\
# The HTTP API

Written by `python -m tools.api` from the tables that requests are read by; a running server shows the same at `/docs`,
and as OpenAPI at `/openapi.json`.

A field is **supported**, **ignored** or **refused**. What is ignored is named in the header `X-Qwench-Warnings`, and so
is a field that nobody knows. What would change an answer if it were ignored is refused: status 400, with the field's
name in `param`. Null means absent. Answers and errors come in the shapes of the API that was asked, with `Retry-After`
where trying again helps and `x-should-retry: false` where it does not. How a server is opened to others, and what it
keeps and measures: [operating.md](operating.md).
"""


def routes() -> list[APIRoute]:
    """Every route that the server lists."""
    client = EngineClient(EngineConfig(model="nano"))
    text = ModelText(client.files, client.model)
    service = Service(client, text, ServerSettings(names=("nano",)))
    routers = routers_of(service, BatchRunner(service))
    return [route for router in routers for route in router.routes if isinstance(route, APIRoute)]


def document(routes: Sequence[APIRoute]) -> str:
    """The whole page."""
    named = {name: _of(name, routes) for name in KINDS}
    bodies = [f"## {name}\n\nOf {of}.\n\n{_fields(rows(name))}" for name, of in named.items()]
    return "\n".join([HEAD, "## Routes\n", _routes(routes), *bodies])


def _routes(routes: Iterable[APIRoute]) -> str:
    lines = ["| route | what it does | body or query |", "|---|---|---|"]
    for route in routes:
        body = body_name(route)
        asked = ", ".join(f"`{each['name']}`: {each['description']}" for each in queries(route))
        link = f"[{body}](#{body.lower()})" if body else asked
        lines.append(f"| {_address(route)} | {_cell(route.description)} | {link} |")
    return "\n".join(lines) + "\n"


def _of(name: str, routes: Iterable[APIRoute]) -> str:
    return " and ".join(_address(route) for route in routes if body_name(route) == name)


def _fields(rules: Iterable[FieldRule]) -> str:
    lines = ["| field | | |", "|---|---|---|"]
    lines += [f"| `{rule.name}` | {rule.treatment.value} | {_cell(rule.note)} |" for rule in rules]
    return "\n".join(lines) + "\n"


def _address(route: APIRoute) -> str:
    return f"`{' '.join(sorted(route.methods or ()))} {route.path}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> int:
    PAGE.write_text(document(routes()), encoding="utf-8")
    print(f"{PAGE.name}: written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
