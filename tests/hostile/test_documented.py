"""Requests that Schemathesis makes of our own OpenAPI document: never a failure of the server's, never an answer that the
document does not have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from qwench.config import EngineConfig
from qwench.engine.client import EngineClient
from qwench.server.service import ServerSettings
from qwench.text.model import ModelText
from tests.reliability.effort import effort
from tests.server.conftest import running

NAME = "nano"
WINDOW = 160  # tokens: what is not refused ends soon
WITHOUT_BODY = 50
PARTS = 8  # of the document's operations: each can be run alone
CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    client = EngineClient(EngineConfig(model=NAME, max_model_len=WINDOW, max_num_seqs=8))
    text = ModelText(client.files, client.model)
    client.start(text.vocabulary)
    client.wait_ready(60)
    with running(client, text, ServerSettings(names=(NAME,))) as address:
        yield address


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))
def test_no_request_of_our_document_fails_in_the_server(address: str, part: int) -> None:
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    found = list(schema.get_all_operations())
    operations = [operation.ok() for operation in found if isinstance(operation, Ok)]
    assert len(operations) == len(found), "an operation of the document cannot be read"
    bodies = sum(bool(operation.body) for operation in operations)
    each = -(-effort("documented requests") // bodies)
    least = each * sum(bool(operation.body) for operation in operations[part::PARTS])
    sent = Counter[str]()
    for operation in operations[part::PARTS]:

        @hypothesis.given(case=operation.as_strategy(), stranger=strategies.integers(0, 9))
        @hypothesis.settings(
            max_examples=each if operation.body else min(each, WITHOUT_BODY),  # there is little to vary
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        def ask(case: schemathesis.Case[Any], stranger: int) -> None:
            if stranger and isinstance(case.body, dict) and "model" in case.body:
                case.body["model"] = NAME  # with any other, which is all that most requests are refused for
            sent[case.operation.label] += 1
            case.call_and_validate(checks=CHECKS, timeout=60)

        ask()
    assert sum(sent[operation.label] for operation in operations[part::PARTS] if operation.body) >= least, sent
