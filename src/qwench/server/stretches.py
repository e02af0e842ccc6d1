"""An answer as stretches of one kind each: thoughts, text, one call. APIs that number their blocks are written from it.

The same fold whether it is told while it comes or as a whole. Knows no response format.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qwench.engine.request import TokenLogprob
from qwench.server.answer import Delta
from qwench.text.stream import Call


@dataclass
class Stretch:
    """``kind`` is reasoning, content or tool_call; of a call, the text is its arguments."""

    kind: str
    call: Call | None = None
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts)


class Stretches(list[Stretch]):
    """Those that are known so far; ``end`` is the answer's last delta, once it has come."""

    end: Delta | None = None

    def add(self, delta: Delta) -> bool:
        """Take ``delta`` in. Whether another stretch begins with it."""
        if delta.kind == "end":
            self.end = delta
            return False
        begins = not self or (self[-1].kind, self[-1].call) != (delta.kind, delta.call)
        if begins:
            self.append(Stretch(delta.kind, delta.call))
        self[-1].texts.append(delta.text)
        self[-1].logprobs += delta.logprobs
        return begins
