"""What may be offered as a tool, and which of them a choice allows; what cannot be is one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from qwench.errors import RequestError
from qwench.text.arguments import kinds_of
from qwench.text.tools import read_tools

F: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
G: Any = {"type": "function", "function": {"name": "g"}}


def allowed(*names: Any) -> dict[str, Any]:
    return {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "auto", "tools": [{"type": "function", **n} for n in names]},
    }


def test_offers_and_choices() -> None:
    assert read_tools(None) is read_tools([]) is read_tools([F], "none") is None
    both = read_tools([F, G])
    assert both is not None
    assert (list(both.offered), dict(both.parameters), both.most) == ([F, G], {"f": {"type": "object"}, "g": {}}, None)
    for choice in (allowed({"function": {"name": "g"}}), allowed({"name": "g"})):
        one = read_tools([F, G], choice, parallel=False)
        assert one is not None
        assert (list(one.offered), list(one.parameters), one.most) == ([G], ["g"], 1)


@pytest.mark.parametrize(
    ("tools", "choice", "named"),
    [
        ("f", None, "tools is"),
        ([5], None, "tools[0]"),
        ([{"type": "web_search"}], None, "tools[0]"),
        ([{"type": "function", "function": {}}], None, "name is missing"),
        ([{"type": "function", "function": {"name": "a>b"}}], None, "angle brackets"),
        ([{"type": "function", "function": {"name": "f", "parameters": []}}], None, "JSON schema"),
        ([F, F], None, "another tool"),
        ([F], "always", "tool_choice"),
        ([F], 5, "tool_choice"),
        ([F], allowed({"name": "g"}), "none of tools"),
        ([F], allowed(), "tool_choice"),
        ([F], {"type": "allowed_tools", "allowed_tools": 5}, "tool_choice"),
    ],
)
def test_what_cannot_be_offered(tools: Any, choice: Any, named: str) -> None:
    with pytest.raises(RequestError) as refused:
        read_tools(tools, choice)
    assert named in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("schema", "kinds"),
    [
        ({"type": "string"}, {"string"}),
        ({"type": ["integer", "null"]}, {"integer", "null"}),
        ({"enum": [1, "a", None, True, {}]}, {"integer", "string", "null", "boolean", "object"}),
        ({"const": 2.5}, {"number"}),
        ({"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/a"}]}, {"integer", "array"}),
        ({"$ref": "#/$defs/loop"}, set()),
        ({"$ref": "#/missing/x"}, set()),
        ({"$ref": 5}, set()),
        ({"properties": {}}, {"object"}),
        ({}, set()),
        (True, set()),
        ({"type": 5, "anyOf": 5, "enum": 5}, set()),
        ({"type": [5], "anyOf": [5]}, set()),
    ],
)
def test_types_of_schemas(schema: Any, kinds: set[str]) -> None:
    root = {"$defs": {"a": {"type": "array"}, "loop": {"$ref": "#/$defs/loop"}}}
    assert kinds_of(schema, root) == kinds
