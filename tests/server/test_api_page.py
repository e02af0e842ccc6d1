"""docs/api.md and what requests are read by are the same, in both directions, for every route there is."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.routing import APIRoute
from openai.types import BatchCreateParams, FileCreateParams

from qwench.server.schemas import BatchRequest, FileUpload, Treatment, rules
from qwench.server.tables import KINDS, OTHERS, RULES, body_name, components, queries, rows
from tools import api

BODYLESS = {"/v1/batches/{batch_id}/cancel", "/v1/responses/{name}/cancel"}  # what they do stands in the address


@pytest.fixture(scope="module")
def routes() -> list[APIRoute]:
    return api.routes()


def test_the_page_is_what_the_tables_say(routes: list[APIRoute]) -> None:
    written = api.PAGE.read_text(encoding="utf-8")
    assert written == api.document(routes), "docs/api.md: `python -m tools.api` writes it"


def test_every_route_that_reads_a_body_says_which_and_every_type_has_a_route(routes: list[APIRoute]) -> None:
    reading = {route.path: body_name(route) for route in routes if "POST" in (route.methods or ())}
    assert {path for path, name in reading.items() if name is None} <= BODYLESS
    assert {name for name in reading.values() if name} == set(KINDS)


@pytest.mark.parametrize("kind", RULES, ids=lambda kind: kind.__name__)
def test_the_supported_fields_of_a_table_are_those_of_its_type(kind: Any) -> None:
    endpoint, table = RULES[kind]
    known = rules(endpoint, table)
    top = {name.partition(".")[0] for name, rule in known.items() if rule.treatment is Treatment.SUPPORTED}
    assert top == set(kind.model_fields)
    assert len(known) == len(rows(kind.__name__)), "a field stands twice"
    assert all(rule.note for rule in known.values())


@pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: kind.__name__)
def test_every_other_field_says_what_it_is(kind: Any) -> None:
    assert [rule.name for rule in rows(kind.__name__)] == list(kind.model_fields)
    assert all(rule.note for rule in rows(kind.__name__))


def test_the_openapi_document_holds_every_type_and_every_query_is_described(routes: list[APIRoute]) -> None:
    assert set(KINDS) <= components().keys()
    assert all(each["description"] for route in routes for each in queries(route))


@pytest.mark.parametrize(("params", "kind"), [(BatchCreateParams, BatchRequest), (FileCreateParams, FileUpload)])
def test_every_field_of_the_openai_client_is_known(params: Any, kind: Any) -> None:
    assert set(params.__annotations__) <= set(kind.model_fields)
