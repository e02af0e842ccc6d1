"""The seams of a rendered prompt: where its messages begin, found among its token ids, and what is told about reuse.

Knows no template: every prompt of the Qwen line opens a message with the same special token, whoever rendered it.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qwench.engine.request import Marks, Reuse
from qwench.errors import QwenchError, RequestError
from qwench.text.tokenizer import Tokenizer

OPENING = "<|im_start|>"
LONGEST_ROLE = 8  # tokens
MOST_ORDERS = 4  # in one request, as many as Anthropic's API takes


@dataclass(frozen=True)
class Layout:
    """Messages of a prompt of ``size`` tokens: ``starts`` counts the tokens before each, ``roles`` says whose it is.

    ``orders`` are positions where the client wants the state to be kept.
    """

    size: int
    starts: tuple[int, ...] = ()
    roles: tuple[str, ...] = ()
    orders: tuple[int, ...] = ()

    @property
    def marks(self) -> Marks:
        """Message ends; and what must be kept: the end of system prompt and tools, and what the client orders."""
        ends = tuple(start for start in self.starts if start)
        system = ends[:1] if self.roles[:1] == ("system",) and self.starts[0] == 0 else ()
        return Marks(ends, (*system, *self.orders))

    def place(self, position: int) -> str:
        """In which message the token at ``position`` lies; nothing for raw text."""
        index = bisect_right(self.starts, position)
        return f" inside message {index} ({self.roles[index - 1]})" if index else ""

    def told(self, reuse: Reuse) -> str:
        """One sentence: how much was reused, and why not more."""
        source = " from disk" if reuse.tier == "disk" else ""
        sentence = f"reused {reuse.cached:,} of {self.size:,} tokens{source}"
        if reuse.differs and reuse.matched < self.size:
            return f"{sentence}; differs at token {reuse.matched + 1:,}{self.place(reuse.matched)}"
        return sentence


def layout(token_ids: Sequence[int], tokenizer: Tokenizer) -> Layout:
    """Where the messages of a prompt begin."""
    opening = tokenizer.id_of(OPENING)
    starts = tuple(at for at, token in enumerate(token_ids) if token == opening)
    roles = tuple(_role(token_ids[start + 1 : start + 1 + LONGEST_ROLE], tokenizer) for start in starts)
    return Layout(len(token_ids), starts, roles)


def with_orders(
    found: Layout,
    token_ids: Sequence[int],
    messages: Sequence[object],
    render: Callable[[Sequence[object]], Sequence[int]],
) -> tuple[Layout, list[str]]:
    """``found`` with the client's marks, each at the end of its message: as far as ``render`` gives the same ids for
    the messages up to there. And a warning for each mark that cannot be kept."""
    orders, warnings = [], []
    for left, index in reversed(list(enumerate(reversed(marked_messages(messages))))):
        try:
            if left >= MOST_ORDERS:
                raise RequestError(f"the last {MOST_ORDERS} count")
            ids = render(messages[: index + 1])
        except QwenchError as error:
            warnings.append(f"messages[{index}]: cache mark ignored, {error.message.rstrip('.')}")
            continue
        same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(ids, token_ids, strict=False)))
        start = max((start for start in found.starts if start <= same), default=0)
        orders.append(start if same - start <= LONGEST_ROLE else same)  # how the next message opens is not its end
    return replace(found, orders=tuple(orders)), warnings


def marked_messages(messages: Sequence[object]) -> list[int]:
    """Those where a part or the whole bears Anthropic's ``cache_control`` or OpenAI's ``prompt_cache_breakpoint``."""
    return [index for index, message in enumerate(messages) if _is_marked(message)]


def _is_marked(message: object) -> bool:
    content: Any = message.get("content") if isinstance(message, Mapping) else None
    parts = content if isinstance(content, list) else []
    names = ("cache_control", "prompt_cache_breakpoint")
    return any(isinstance(part, Mapping) and any(part.get(name) for name in names) for part in (message, *parts))


def _role(token_ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The word after the opening token, as it may stand in a header."""
    name = tokenizer.decode(token_ids, skip_special_tokens=False).partition("\n")[0]
    return name.encode("ascii", "replace").decode()[:32]
