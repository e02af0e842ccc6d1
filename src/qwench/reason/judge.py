"""Does a text fit a JSON schema, or a regular expression? Run as a process of its own: a pattern may take for ever.

Standard input is {"schema" | "pattern": ..., "text": ...}; exit code 0 means it fits, else standard error says what
does not. The standard library only.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "integer": lambda value: TYPES["number"](value) and value == math.floor(value),
}
ANNOTATIONS = {"title", "description", "default", "examples", "$schema", "$id", "$defs", "definitions", "$comment"}
BOUNDS: dict[str, tuple[str, Callable[[Any], Any], Callable[[Any, Any], bool]]] = {
    "minimum": ("number", lambda value: value, lambda value, bound: value >= bound),
    "maximum": ("number", lambda value: value, lambda value, bound: value <= bound),
    "exclusiveMinimum": ("number", lambda value: value, lambda value, bound: value > bound),
    "exclusiveMaximum": ("number", lambda value: value, lambda value, bound: value < bound),
    "multipleOf": ("number", lambda value: value, lambda value, bound: value % bound == 0),
    "minLength": ("string", len, lambda value, bound: value >= bound),
    "maxLength": ("string", len, lambda value, bound: value <= bound),
    "minItems": ("array", len, lambda value, bound: value >= bound),
    "maxItems": ("array", len, lambda value, bound: value <= bound),
    "minProperties": ("object", len, lambda value, bound: value >= bound),
    "maxProperties": ("object", len, lambda value, bound: value <= bound),
}
PLURAL = {"allOf", "anyOf", "oneOf", "prefixItems"}
SINGLE = {"items", "additionalProperties", "not"}
OTHER = {"type", "enum", "const", "properties", "required", "pattern", "uniqueItems", "$ref"}
KNOWN = ANNOTATIONS | BOUNDS.keys() | PLURAL | SINGLE | OTHER


def unknown_keyword(schema: Any, place: str = "schema") -> str | None:
    """The first thing in ``schema`` that would not be checked, with its place; None if all of it is understood."""
    if isinstance(schema, bool):
        return None
    if not isinstance(schema, dict):
        return f"{place} is no schema"
    for name, inner in schema.items():
        below: Iterator[tuple[str, Any]] = iter(())
        if name not in KNOWN or not _well_formed(name, inner):
            return f"{place}.{name}"
        if name == "$ref" and not (isinstance(inner, str) and inner.startswith("#")):
            return f"{place}.$ref (only references into the schema itself)"
        if name in {"properties", "$defs", "definitions"}:
            below = iter(inner.items())
        elif name in PLURAL:
            below = ((str(at), each) for at, each in enumerate(inner))
        elif name in SINGLE:
            below = iter((("", inner),))
        for at, each in below:
            if found := unknown_keyword(each, f"{place}.{name}.{at}".rstrip(".")):
                return found
    return None


def _well_formed(name: str, inner: Any) -> bool:
    if name == "type":
        kinds = inner if isinstance(inner, list) else [inner]
        return all(isinstance(kind, str) and kind in TYPES for kind in kinds)
    if name in BOUNDS:
        return TYPES["number"](inner) and (name != "multipleOf" or inner > 0)
    if name in {"properties", "$defs", "definitions"}:
        return isinstance(inner, dict)
    if name in {"enum", "required"} | PLURAL:
        return isinstance(inner, list)
    return name != "pattern" or isinstance(inner, str)


def complaints(value: Any, schema: Any, root: Any, place: str = "$") -> Iterator[str]:
    """What in ``value`` does not fit ``schema``, with its place."""
    if schema is False:
        yield f"{place} must not be there"
    if isinstance(schema, bool):
        return
    if "$ref" in schema:
        yield from complaints(value, _resolve(schema["$ref"], root), root, place)
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(TYPES[kind](value) for kind in kinds):
        yield f"{place} should be of type {' or '.join(kinds)}"
        return
    if "enum" in schema and not any(_same(value, each) for each in schema["enum"]):
        yield f"{place} should be one of {json.dumps(schema['enum'], ensure_ascii=False)}"
    if "const" in schema and not _same(value, schema["const"]):
        yield f"{place} should be {json.dumps(schema['const'], ensure_ascii=False)}"
    for name, (kind, measure, fits) in BOUNDS.items():
        if name in schema and TYPES[kind](value) and not fits(measure(value), schema[name]):
            yield f"{place} does not keep {name} {schema[name]}"
    if "pattern" in schema and isinstance(value, str) and not re.search(schema["pattern"], value):
        yield f"{place} does not match {schema['pattern']!r}"
    yield from _combined(value, schema, root, place)
    if isinstance(value, dict):
        yield from _object(value, schema, root, place)
    if isinstance(value, list):
        yield from _array(value, schema, root, place)


def _combined(value: Any, schema: dict[str, Any], root: Any, place: str) -> Iterator[str]:
    def fit(each: Any) -> bool:
        return next(complaints(value, each, root, place), None) is None

    for each in schema.get("allOf", ()):
        yield from complaints(value, each, root, place)
    if "anyOf" in schema and not any(map(fit, schema["anyOf"])):
        yield f"{place} fits none of anyOf"
    if "oneOf" in schema and (count := sum(map(fit, schema["oneOf"]))) != 1:
        yield f"{place} fits {count} of oneOf and should fit one"
    if "not" in schema and fit(schema["not"]):
        yield f"{place} fits what it must not"


def _object(value: dict[str, Any], schema: dict[str, Any], root: Any, place: str) -> Iterator[str]:
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{place}.{name} is missing"
    for name, inner in value.items():
        yield from complaints(
            inner, properties.get(name, schema.get("additionalProperties", True)), root, f"{place}.{name}"
        )


def _array(value: list[Any], schema: dict[str, Any], root: Any, place: str) -> Iterator[str]:
    first = schema.get("prefixItems", [])
    for at, inner in enumerate(value):
        yield from complaints(
            inner, first[at] if at < len(first) else schema.get("items", True), root, f"{place}[{at}]"
        )
    if schema.get("uniqueItems") and any(_same(a, b) for at, a in enumerate(value) for b in value[:at]):
        yield f"{place} holds something twice"


def _same(a: Any, b: Any) -> bool:
    """JSON's equality: 1 and true differ, 1 and 1.0 do not."""
    if isinstance(a, (list, dict)) or isinstance(b, (list, dict)):
        return type(a) is type(b) and json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _resolve(reference: str, root: Any) -> Any:
    for part in reference.removeprefix("#").strip("/").split("/") if reference != "#" else ():
        name = part.replace("~1", "/").replace("~0", "~")
        root = root[int(name)] if isinstance(root, list) else root[name]
    return root


def main() -> None:
    """Exit code 0 if it fits."""
    task = json.load(sys.stdin)
    if "pattern" in task:
        if not re.search(task["pattern"], task["text"], re.DOTALL):
            sys.exit(f"The answer does not match the pattern {task['pattern']}")
        return
    try:
        value = json.loads(task["text"])
    except ValueError as error:
        sys.exit(f"The answer is not JSON: {error}")
    found = list(complaints(value, task["schema"], task["schema"]))
    if found:
        sys.exit("\n".join(found[:10]))


if __name__ == "__main__":
    main()
