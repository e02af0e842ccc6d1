"""JSON schemas without the keywords that forbid nothing where they stand. llguidance refuses them all the same, and
generators of schemas write them everywhere: ``propertyNames: {"type": "string"}``, ``uniqueItems: false``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NESTED = frozenset(
    "additionalItems additionalProperties allOf anyOf contains else if items not oneOf prefixItems propertyNames then "
    "unevaluatedItems unevaluatedProperties".split()
)  # keywords that hold a schema, or a list of them
NAMED = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})  # schemas by name
NEEDS = {"then": "if", "else": "if", "minContains": "contains", "maxContains": "contains"}  # nothing without the other
NAMES = {"type": "string"}  # what every property's name is


def lean(schema: Any) -> Any:
    """``schema``, which allows what it allowed. Texts and values that only look like keywords stay as they are."""
    if not isinstance(schema, Mapping):
        return schema
    return {key: _inside(key, value) for key, value in schema.items() if not _is_void(key, value, schema)}


def _inside(key: str, value: Any) -> Any:
    if key in NESTED:
        return [lean(each) for each in value] if isinstance(value, list) else lean(value)
    if key in NAMED and isinstance(value, Mapping):
        return {name: lean(each) for name, each in value.items()}
    return value


def _is_void(key: str, value: Any, schema: Mapping[str, Any]) -> bool:
    if key in NEEDS:
        return NEEDS[key] not in schema
    match key:
        case "if":
            return not schema.keys() & {"then", "else"}
        case "not" | "uniqueItems":
            return value is False
        case "propertyNames":
            return _allows_all(value) or value == NAMES
        case "unevaluatedItems" | "unevaluatedProperties":
            return _allows_all(value)
        case "dependencies" | "dependentRequired" | "dependentSchemas":
            return isinstance(value, Mapping) and all(each == [] or _allows_all(each) for each in value.values())
    return False


def _allows_all(schema: Any) -> bool:
    return schema is True or schema == {}
