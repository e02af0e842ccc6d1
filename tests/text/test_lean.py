"""Keywords that forbid nothing are left out of a schema, and nothing else is: judged by another validator."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest

from qwench.config import ModelConfig
from qwench.text.grammar import read_structure
from qwench.text.lean import lean
from qwench.text.model import ModelText
from tests.media.files import NANO

VOID: tuple[dict[str, Any], ...] = (
    {"uniqueItems": False},
    {"unevaluatedProperties": True},
    {"unevaluatedItems": {}},
    {"dependentRequired": {"a": []}},
    {"dependentSchemas": {"a": True}},
    {"dependencies": {}},
    {"if": {"type": "string"}},
    {"then": False},
    {"else": False},
    {"not": False},
    {"minContains": 3},
    {"maxContains": 0},
    {"propertyNames": True},
    {"propertyNames": {"type": "string"}},
)
BINDING: tuple[dict[str, Any], ...] = (
    {"uniqueItems": True},
    {"unevaluatedProperties": False},
    {"dependentRequired": {"a": ["b"]}},
    {"dependentSchemas": {"a": False}},
    {"if": {"required": ["a"]}, "then": False},
    {"not": {}},
    {"contains": {"type": "integer"}, "minContains": 2},
    {"propertyNames": {"pattern": "^a"}},
    {"propertyNames": False},
    {"uniqueItems": 0},
)
SCHEMA: dict[str, Any] = {"type": ["object", "array"], "properties": {"a": {"type": "integer"}}}
VALUES: tuple[Any, ...] = ({}, [], {"a": 1}, {"b": 1}, {"a": 1, "b": 2}, [1], [1, 1], [1, 2], ["x"], 1, "x", {"a": "x"})


@pytest.fixture(scope="module")
def text() -> ModelText:
    return ModelText(NANO, ModelConfig.from_folder(NANO))


@pytest.mark.parametrize("void", VOID, ids=str)
def test_what_forbids_nothing_is_left_out_at_every_depth(void: dict[str, Any], text: ModelText) -> None:
    inner = {**SCHEMA, **void}
    for schema in (
        inner,
        {"properties": {"deep": {"items": inner}}},
        {"anyOf": [inner, {"type": "null"}]},
        {"$defs": {"x": inner}, "$ref": "#/$defs/x"},
    ):
        assert str(lean(schema)) == str(schema).replace(str(inner), str(SCHEMA))
        before, after = jsonschema_rs.validator_for(schema), jsonschema_rs.validator_for(lean(schema))
        assert all(before.is_valid(value) == after.is_valid(value) for value in VALUES)
    grammar = read_structure({"guided_json": {**SCHEMA, **void, "type": "object"}})
    assert grammar is not None
    text.grammars.compile(grammar)


@pytest.mark.parametrize("binding", BINDING, ids=str)
def test_what_forbids_something_stays(binding: dict[str, Any]) -> None:
    assert lean({**SCHEMA, **binding}) == {**SCHEMA, **binding}


def test_what_only_looks_like_a_keyword_stays() -> None:
    schema = {
        "properties": {"uniqueItems": {"type": "string"}, "if": {}, "not": False},
        "enum": [{"uniqueItems": False}],
        "default": {"not": False},
        "required": ["if"],
    }
    assert lean(schema) == schema


def test_depth_is_no_limit() -> None:
    schema: Any = {"type": "integer", "not": False}
    for _ in range(5_000):
        schema = {"items": schema}
    found = lean(schema)
    for _ in range(5_000):
        found = found["items"]
    assert found == {"type": "integer"}
