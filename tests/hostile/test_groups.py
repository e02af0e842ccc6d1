"""Groups of hostile requests: none ends in a 5xx, hangs, leaks or reaches out, and a normal request is answered as before.

docs/security.md says which advisories each group stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from tests.hostile import cases_inside as inside
from tests.hostile import cases_outside as outside
from tests.hostile.conftest import Trap
from tests.hostile.target import Case, Target

Group = Callable[[Iterable[Case]], None]
LARGE = 100_000  # bytes


@pytest.fixture
def asked(target: Target) -> Group:
    """Sends a group, and the normal request before and after it; what is large or said again only with a key, in the slow suite."""

    def ask(cases: Iterable[Case]) -> None:
        before = target.text()
        faults = target.faults(case for case in cases if target.key or not (case.again or len(case.content) >= LARGE))
        assert not faults, "\n".join(faults)
        assert target.text() == before

    return ask


def test_addresses_are_not_fetched(asked: Group, trap: Trap) -> None:
    asked(outside.ssrf(trap.port))
    assert trap.visits == 0


def test_media_that_lie_or_grow(asked: Group) -> None:
    asked(outside.media())


def test_bodies_that_are_none_tell_nothing(asked: Group) -> None:
    asked(inside.malformed())


def test_templates_of_requests_are_text(asked: Group, capfd: pytest.CaptureFixture[str]) -> None:
    asked(outside.templates())
    assert "root:" not in capfd.readouterr().out


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", [inside.schemas, inside.patterns, inside.grammars, inside.crowd])
def test_schemas_and_grammars(asked: Group, kind: Callable[[], Iterable[Case]]) -> None:
    asked(kind())


def test_numbers_out_of_range(asked: Group) -> None:
    asked(inside.limits())


def test_prompts_without_end_or_sense(asked: Group) -> None:
    asked(inside.prompts())


def test_tools_and_histories_of_calls(asked: Group) -> None:
    asked(inside.tools())


def test_tensors_and_pickles(asked: Group, capfd: pytest.CaptureFixture[str]) -> None:
    asked(outside.embeddings())
    assert "unpickled" not in capfd.readouterr().out


def test_names_are_no_paths_and_no_queries(asked: Group) -> None:
    asked(inside.names())


def test_words_that_come_back_in_headers(asked: Group) -> None:
    asked(inside.echoes())


def test_what_exists_and_what_does_not_look_the_same(target: Target) -> None:
    with target.client() as client:
        told = [
            client.post("/v1/completions", json={"prompt": "x", "model": name})
            .json()["error"]["message"]
            .replace(name, "")
            for name in ("/etc/passwd", "/etc/nothing")
        ]
    assert told[0] == told[1]


def test_nothing_of_administration_is_open(asked: Group) -> None:
    asked(outside.administration())


def test_pages_of_strangers(asked: Group) -> None:
    asked(inside.browsers())


def test_no_foreign_origin_is_allowed_in_any_answer(target: Target) -> None:
    with target.client() as client:
        for case in inside.browsers():
            answer = client.request(case.method, case.path, content=case.content, headers=dict(case.headers))
            assert "access-control-allow-origin" not in answer.headers, case.name


def test_heads_and_bodies(asked: Group) -> None:
    asked(inside.encodings())
