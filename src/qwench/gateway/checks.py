"""Checks that cost nothing: whether an answer is whole, is JSON, or has a form. Knows no model and no price."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any


def check_answer(check: str, completion: Mapping[str, Any]) -> bool:
    """``finished``: it ended by itself and says something; ``json``: it is JSON; ``match:REGEX``: that is in it."""
    choice = completion["choices"][0]
    said = choice.get("message") or {}
    text = str(said.get("content") or "").strip()
    kind, _, pattern = check.partition(":")
    if kind == "json":
        try:
            json.loads(text)
        except ValueError:
            return False
        return True
    if kind == "match":
        return re.search(pattern, text) is not None
    return choice.get("finish_reason") in ("stop", "tool_calls") and bool(text or said.get("tool_calls"))
