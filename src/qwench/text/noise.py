"""What known clients write into the system prompt anew with every request, and nothing reads: it is taken out before
the template, since one changed token at the beginning of a prompt means reading all of it again.

Only system prompts are touched; a user may well write about such lines.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

# Both are Claude Code's: an accounting line with a random number (issue 68900 of claude-code), and a countdown of a
# token budget, of which the old values stay in the prompt (issue 2881 of omlx).
KNOWN = {
    "Claude Code's billing line": re.compile(r"^x-anthropic-billing-header:[^\n]*\n*", re.MULTILINE),
    "a countdown of tokens": re.compile(r"(?<!\n)\n*<total_tokens>[^<\n]{0,60}</total_tokens>"),
}

# How a chat program's own errands begin (titles, tags, follow-up questions of Open WebUI): nobody goes on from them.
ERRANDS = ("### Task:",)

logger = logging.getLogger(__name__)


def without_noise(messages: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Normalised ``messages`` without what changes from request to request, and one warning for each kind of it."""
    kept: list[Mapping[str, Any]] = []
    found: list[str] = []
    for message in messages:
        content = message["content"]
        if message["role"] == "system":
            for name, pattern in KNOWN.items():
                content, count = pattern.subn("", content)
                if count and name not in found:
                    found.append(name)
        if content or content == message["content"]:  # of a system prompt that was nothing else nothing stays
            kept.append({**message, "content": content})
    warnings = [f"messages: {name} is taken out of the system prompt, so that it can be reused" for name in found]
    for warning in warnings:
        logger.info("%s (--keep-noise leaves it in)", warning)
    return kept, warnings


def is_errand(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a conversation is one a chat program has with itself: a single message that begins like one."""
    said = [message for message in messages if message.get("role") not in ("system", "developer")]
    content = said[0].get("content") if len(said) == 1 else None
    return isinstance(content, str) and content.lstrip().startswith(ERRANDS)
