"""What a request shows before anybody answers it: words, size, modalities, thinking, and the conversation it goes on.

Works on the body of a chat completion, the form that every face is brought to. Reads, and decides nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwench.errors import RequestError
from qwench.gateway.tiers import Thinking
from qwench.media.parts import KINDS
from qwench.text.grammar import KINDS as STRUCTURE
from qwench.text.thinking import UNBOUNDED, read_thinking

# A token is four bytes of text, give or take: Qwen's and OpenAI's tokenizers make 3.3 of code and 4.5 of English. Good
# enough to weigh costs; what an answer did cost comes from the usage that the upstream reports.
BYTES_PER_TOKEN = 4
TOKENS_PER_PICTURE = 1000
NARROW = (
    "prompt",
    "response_format",
    "structured_outputs",
    *STRUCTURE,
    "n",
    "logprobs",
    "logit_bias",
    "reasoning_strategy",
)
TEXTS = frozenset({"text", "input_text", "output_text", "refusal", "thinking", "redacted_thinking"})


@dataclass(frozen=True)
class Signals:
    """``said``: the last message of the user, by which the class is found; ``text``: all words, for the data rules.

    ``prompt``: tokens of the prompt, estimated. ``asked``: how the request wants thinking, None where it does not say.
    ``narrow``: fields that only OpenAI's dialect has and that change what the caller gets.
    ``prefixes``: a hash for every length of the conversation, the whole last; ``sizes``: its tokens up to there.
    """

    said: str
    text: str
    prompt: int
    limit: int | None
    modalities: frozenset[str]
    tools: bool
    json: bool
    stream: bool
    asked: Thinking | None
    narrow: tuple[str, ...]
    prefixes: tuple[str, ...]
    sizes: tuple[int, ...]


def read_signals(body: Mapping[str, Any]) -> Signals:
    """Raises RequestError naming the field that cannot be used."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
        raise RequestError("messages must be a list of objects with role and content.", param="messages")
    modalities, sizes, prefixes = {"text"}, list[int](), list[str]()
    offered = _canonical(body.get("tools") or [])
    before, running = len(offered), hashlib.sha256(offered)
    for message in messages:
        shown, raw = list(_shown(message)), _canonical(message)
        modalities.update(shown)
        # What shows something is counted by the piece: its bytes say nothing.
        before += len(_words(message)) + len(shown) * TOKENS_PER_PICTURE * BYTES_PER_TOKEN if shown else len(raw)
        running.update(raw)
        sizes.append(math.ceil(before / BYTES_PER_TOKEN))
        prefixes.append(running.hexdigest())
    said = next((_words(message) for message in reversed(messages) if message.get("role") == "user"), "")
    form = body.get("response_format")
    return Signals(
        said=said,
        text="\n".join(map(_words, messages)),
        prompt=sizes[-1],
        limit=_limit(body),
        modalities=frozenset(modalities),
        tools=bool(body.get("tools")),
        json=_shapes(form),
        stream=body.get("stream") is True,
        asked=_thinking(body),
        narrow=tuple(name for name in NARROW if _narrows(name, body.get(name))),
        prefixes=tuple(prefixes),
        sizes=tuple(sizes),
    )


def _shapes(form: object) -> bool:
    return isinstance(form, dict) and form.get("type") in ("json_object", "json_schema")


def _narrows(name: str, value: object) -> bool:
    if name == "response_format":
        return isinstance(value, dict) and value.get("type") not in (None, "text")
    return value not in (None, False, 0) and (name, value) != ("n", 1)


def _limit(body: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RequestError(f"{name} must be a whole number, 1 or more.", param=name)
            return value
    return None


def _thinking(body: Mapping[str, Any]) -> Thinking | None:
    """Off, on, or a budget, by whichever field the request says it."""
    plan = read_thinking(body)
    if plan.enabled is None and plan.budget is None:
        return None
    if plan.enabled is False or plan.budget == 0:
        return "off"
    return "on" if plan.budget in (None, UNBOUNDED) else plan.budget


def _parts(message: Mapping[str, Any]) -> Sequence[object]:
    content = message.get("content")
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _words(message: Mapping[str, Any]) -> str:
    texts = (part.get("text") for part in _parts(message) if isinstance(part, dict))
    called = [_arguments(call) for call in message.get("tool_calls") or () if isinstance(call, dict)]
    return "\n".join([*(text for text in texts if isinstance(text, str)), *called])


def _arguments(call: Mapping[str, Any]) -> str:
    function = call.get("function")
    return str(function.get("arguments", "")) if isinstance(function, dict) else ""


def _shown(message: Mapping[str, Any]) -> Iterator[str]:
    """The modality of every part that is not text; of a kind that nobody knows, its own name."""
    for part in _parts(message):
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind not in TEXTS:
            yield KINDS.get(str(kind), str(kind))


def _canonical(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True).encode("utf-8", "replace")
