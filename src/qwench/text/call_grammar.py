"""The grammar of tool calls: the form that the model's template taught it, with the tools' names and schemas in it.

A call under it is always one that calls.py reads without mending. Of Qwen3.5's form, values that are text are free up
to their closing tag, others are JSON of their schema; parameters come in any order, or as ``strict`` wants, all
required ones in the schema's order. Knows no model's state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from qwench.errors import RequestError
from qwench.text.arguments import Schema, kinds_of
from qwench.text.grammar import Grammar, json_rule, lark_source
from qwench.text.tools import Tools

Form = Literal["tags", "json"]
TEXT = 'text[suffix="\\n</parameter>\\n"]: /(?s:.*)/'
ANY = 'any: "<parameter=" /[^<>\\n]{1,64}/ ">\\n" text'
TAIL = '"\\n</parameter>\\n"'
OTHERS: Mapping[Form, tuple[str, ...]] = {"tags": (ANY, TEXT), "json": ()}
WORDS = {"boolean": '"true" | "false" | "True" | "False"', "null": '"null" | "None"'}
OF_TEXT = ("pattern", "format", "minLength", "maxLength", "const")  # what is not looked at in free text


class CallGrammar:
    """``open_id`` and ``close_id`` are the tags' tokens. ``loose``: tools of whose schemas only the types of parameters
    count."""

    def __init__(
        self, tools: Tools, form: Form, open_id: int, close_id: int, *, loose: frozenset[str] = frozenset()
    ) -> None:
        self._tools = tools
        self._form = form
        self._loose = loose
        self._tags = f"<[{open_id}]>", f"<[{close_id}]>"
        self._open_id = open_id
        self._rules: list[str] = []

    def whenever(self) -> Grammar:
        """For an answer in which the model may call: from the tag on that begins a call to the one that ends it."""
        return Grammar(self._source("call"), "tools", begins_with=self._open_id)

    def must(self, answer: str | None = None) -> Grammar:
        """For an answer that is calls; or, with ``answer`` (a rule in Lark's form), either."""
        calls = "call" if self._tools.most == 1 else 'call ("\\n" call)*'
        return Grammar(self._source(calls if answer is None else f"({calls}) | {answer}"), "tools")

    def _source(self, start: str) -> str:
        names = [self._function(f"f{at}", name) for at, name in enumerate(self._tools.parameters)]
        return lark_source("\n".join([f"start: {start}", self._call(names), *self._rules, *OTHERS[self._form]]))

    def _call(self, functions: list[str]) -> str:
        opened, closed = self._tags
        either = " | ".join(functions)
        if self._form == "json":
            return f'call: {opened} "\\n" ({either}) "\\n" {closed}'
        return f'call: {opened} "\\n<function=" ({either}) "</function>\\n" {closed}'

    def _function(self, rule: str, name: str) -> str:
        schema, strict, loose = self._tools.parameters[name], name in self._tools.strict, name in self._loose
        if self._form == "json":
            arguments = {"type": "object"} if loose else {**schema, "type": "object"}
            body = {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            self._rules.append(f"{rule}: {_json(body, schema)}")
            return rule
        head, properties, required = _quoted(f"{name}>\n"), schema.get("properties"), schema.get("required")
        if not isinstance(properties, Mapping):
            self._rules.append(f"{rule}: {head}{'' if schema.get('additionalProperties') is False else ' any*'}")
            return rule
        parts = []
        for at, (key, inner) in enumerate(properties.items()):
            self._parameter(f"{rule}p{at}", key, inner, schema, strict=strict, loose=loose)
            optional = not isinstance(required, list) or key not in required
            parts.append(f"{rule}p{at}{'?' if strict and optional else ''}")
        order = " ".join(parts) if strict or not parts else f"({' | '.join(parts)})*"
        self._rules.append(f"{rule}: {head} {order}")
        return rule

    def _parameter(self, rule: str, key: str, schema: Any, root: Schema, *, strict: bool, loose: bool) -> None:
        head, kinds = _quoted(f"<parameter={key}>\n"), kinds_of(schema, root)
        if kinds == {"string"} and isinstance(options := schema.get("enum"), list):
            either = " | ".join(_quoted(each) for each in options)
            self._rules.append(f"{rule}: {head} ({either}) {TAIL}")
        elif not kinds or "string" in kinds:
            if strict and isinstance(schema, Mapping) and (found := [name for name in OF_TEXT if name in schema]):
                reason = (
                    f"the strict schema of {key!r:.80} has {found[0]}, to which text in this model's calls is not held"
                )
                raise RequestError(f"tools: {reason}; leave out {found[0]} or strict.", param="tools")
            self._rules.append(f"{rule}: {head} text")
        else:
            values = [WORDS[kind] for kind in sorted(kinds & WORDS.keys())]
            if others := sorted(kinds - WORDS.keys()):
                values.append(_json({"type": others} if loose else schema, root))
            self._rules.append(f"{rule}: {head} ({' | '.join(values)}) {TAIL}")


def _json(schema: Schema, root: Schema) -> str:
    """A rule for JSON of ``schema``, which may refer to the definitions of ``root``."""
    definitions = {name: root[name] for name in ("$defs", "definitions") if name in root}
    return json_rule({**schema, **definitions})


def _quoted(text: object) -> str:
    return json.dumps(str(text), ensure_ascii=False)
