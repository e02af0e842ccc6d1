"""Renders conversations with the model's own chat template; knows no token ids."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

from qwench.train.data.sample import Message, Tool

TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def raise_exception(message: str) -> None:
    raise ValueError(message)


def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


@lru_cache(maxsize=1)
def template() -> Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8").rstrip("\n"))


def render(messages: list[Message], tools: list[Tool] | None = None, **options: Any) -> str:
    """The conversation as text; `options` are the template's (`add_generation_prompt`, `enable_thinking`, ...)."""
    return template().render(messages=messages, tools=tools, **options)
