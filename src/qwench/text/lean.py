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
    """``schema``, which allows what it allowed. Texts and values that only look like keywords stay as they are.

    Without recursion: a schema may be nested as deeply as JSON may.
    """
    whole: list[Any] = [schema]
    todo: list[tuple[Any, Any]] = [(whole, 0)]  # places of schemas: what holds them, and where
    while todo:
        holder, place = todo.pop()
        if not isinstance(holder[place], Mapping):
            continue
        found = holder[place] = {
            key: value for key, value in holder[place].items() if not _is_void(key, value, holder[place])
        }
        for key, value in found.items():
            if key in NESTED and isinstance(value, list):
                found[key] = inner = list(value)
                todo += [(inner, at) for at in range(len(inner))]
            elif key in NESTED:
                todo.append((found, key))
            elif key in NAMED and isinstance(value, Mapping):
                found[key] = named = dict(value)
                todo += [(named, name) for name in named]
    return whole[0]


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
