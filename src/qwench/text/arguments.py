"""What a call's argument means: its text or value, brought to the type that the tool's JSON schema gives it.

Qwen3.5 writes every value as bare text, so ``5`` may be a number or a string, and models write Python's ``True`` and
``None`` too. Whatever comes out is valid JSON; what fits no type stays text. Knows no tags.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

Schema = Mapping[str, Any]
MOST_REFERENCES = 16  # schemas may refer to themselves
WORDS = {"true": True, "false": False}
KINDS = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null", list: "array"}
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
LONGEST_NUMBER = 400  # digits; Python refuses whole numbers of some thousand
CLOSING = {"{": "}", "[": "]"}
STEPS = {"{": 1, "[": 1, "}": -1, "]": -1}
DEEPEST = 100
# A text that is not closed goes to the end, so that none is looked at twice.
PYTHON = re.compile(r'"(?:\\.|[^"\\])*"?|\'((?:\\.|[^\'\\])*)(\'?)|\b(?:True|False|None)\b', re.DOTALL)


def kinds_of(schema: object, root: Schema, depth: int = 0) -> frozenset[str]:
    """JSON's types that ``schema`` allows; none where it does not say. ``root`` holds what it refers to."""
    if not isinstance(schema, Mapping) or depth > MOST_REFERENCES:
        return frozenset()
    if "$ref" in schema:
        return kinds_of(_referred(schema["$ref"], root), root, depth + 1)
    declared = schema.get("type")
    named = [declared] if isinstance(declared, str) else _list(declared)
    if found := {name for name in named if isinstance(name, str)}:
        return frozenset(found)
    values = [schema["const"]] if "const" in schema else _list(schema.get("enum"))
    found = {KINDS.get(type(value), "object") for value in values}
    for name in ("anyOf", "oneOf", "allOf"):
        for each in _list(schema.get(name)):
            found |= kinds_of(each, root, depth + 1)
    return frozenset(found or ({"object"} if "properties" in schema else ()))


def is_free_text(schema: object, root: Schema) -> bool:
    """Whether a value of it is its text as it stands, so that it may be told while it is being written."""
    return kinds_of(schema, root) == {"string"} and not (isinstance(schema, Mapping) and "enum" in schema)


def from_text(text: str, schema: object, root: Schema) -> tuple[Any, bool]:
    """The value that ``text`` stands for, and whether it fits the schema's types.

    Without a type it is text, unless it is a JSON object or list.
    """
    kinds, bare = kinds_of(schema, root), text.strip()
    for value in _meanings(bare, kinds or frozenset(("object", "array", "string"))):
        return value, True
    if "string" in kinds or not kinds:
        return _without_quotes(text, schema), True
    return text, False


def from_value(value: Any, schema: object, root: Schema) -> tuple[Any, bool]:
    """The same for a value that came as JSON: only what does not fit is brought to a type that does."""
    kinds = kinds_of(schema, root)
    kind = KINDS.get(type(value), "object")
    if not kinds or kind in kinds or (kind == "integer" and "number" in kinds):
        return value, True
    if isinstance(value, str):
        return from_text(value, schema, root)
    if kind == "number" and "integer" in kinds and value == int(value):
        return int(value), True
    if "string" in kinds:
        return json.dumps(value, ensure_ascii=False), True
    return value, False


def read_object(text: str) -> dict[str, Any] | None:
    """A JSON object, or what was meant to be one: Python's spelling, raw line breaks, brackets left open."""
    value = _json(text)
    return value if isinstance(value, dict) else None


def _meanings(bare: str, kinds: frozenset[str]) -> Iterator[Any]:
    if "null" in kinds and (bare in ("null", "None") or (not bare and "string" not in kinds)):
        yield None
    if "boolean" in kinds and bare.lower() in WORDS:
        yield WORDS[bare.lower()]
    if kinds & {"integer", "number"} and len(bare) < LONGEST_NUMBER and NUMBER.fullmatch(bare):
        number = float(bare)  # at most infinite
        if re.fullmatch(r"[+-]?\d+", bare):
            yield int(bare)
        elif number.is_integer() and "number" not in kinds:
            yield int(number)
        elif "number" in kinds and math.isfinite(number):
            yield number
    if kinds & {"object", "array"} and bare[:1] in CLOSING and ("string" not in kinds or _is_json(bare)):
        value = _json(bare)
        if isinstance(value, dict | list):
            yield value


def _json(text: str) -> Any:
    """The value of ``text`` read as JSON, as Python writes it, or with its brackets closed; None if it is none."""
    if max(accumulate(STEPS.get(character, 0) for character in text), default=0) > DEEPEST:
        return None
    plain = PYTHON.sub(_as_json, text)
    for attempt in (text, plain, _closed(plain)):
        try:
            return _strict(attempt, raw_controls=True)
        except ValueError:
            continue
    return None


def _strict(text: str, *, raw_controls: bool = False) -> Any:
    return json.loads(text, strict=not raw_controls, parse_constant=_finite, parse_float=_finite)


def _is_json(text: str) -> bool:
    try:
        _strict(text)
    except ValueError:
        return False
    return True


def _finite(number: str) -> float:
    """JSON has no infinity, so what is read as one could not be written again."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(number)
    return value


def _as_json(token: re.Match[str]) -> str:
    text = token[0]
    if text[0] == "'":
        return '"' + token[1].replace("\\'", "'").replace('"', '\\"') + ('"' if token[2] else "")
    return {"True": "true", "False": "false", "None": "null"}.get(text, text)


def _closed(text: str) -> str:
    """``text`` with a comma at its end taken away and what it left open closed."""
    opened: list[str] = []
    quoted = escaped = False
    for character in text:
        if quoted:
            quoted, escaped = escaped or character != '"', not escaped and character == "\\"
        elif character == '"':
            quoted = True
        elif character in CLOSING:
            opened.append(CLOSING[character])
        elif opened and character == opened[-1]:
            opened.pop()
    text = text[:-1] if escaped else text
    return (f'{text}"' if quoted else re.sub(r",\s*$", "", text)) + "".join(reversed(opened))


def _without_quotes(text: str, schema: object) -> str:
    """One of a list of texts that the model put into quotation marks or between blanks."""
    options = schema.get("enum") if isinstance(schema, Mapping) else None
    bare = text.strip().strip("\"'")
    return bare if isinstance(options, list) and text not in options and bare in options else text


def _referred(path: object, root: Schema) -> object:
    found: object = root
    for part in path.removeprefix("#").strip("/").split("/") if isinstance(path, str) else ():
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) and part else found
    return found


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
