"""One training or evaluation sample, and the rule that keeps the two apart.

Knows nothing of tokens or templates: a sample is a conversation whose last message is the wanted answer.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwench.train.data.pictures import Drawing

Message = dict[str, Any]
Tool = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """A conversation that ends with the assistant's answer, or (`text`) a plain piece of writing.

    `drawings` are what its parts show, in order; where it is `spelled`, the answer is written letter by letter.
    """

    skill: str
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    thinking: bool = False
    text: str = ""
    drawings: tuple[Drawing, ...] = ()
    spelled: bool = False


Generator = Callable[[Random, bool], Sample]


def held_out(*key: object) -> bool:
    """True for the tenth of all keys that only evaluation may use; the same on every machine."""
    return zlib.crc32(repr(key).encode()) % 10 == 0


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str, reasoning: str = "") -> Message:
    message: Message = {"role": "assistant", "content": content}
    if reasoning:
        message["reasoning_content"] = reasoning
    return message


def system(content: str) -> Message:
    return {"role": "system", "content": content}
