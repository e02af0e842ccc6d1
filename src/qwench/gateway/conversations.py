"""Which option answered which conversation so far: upstreams keep prompts for a while, and what they kept is cheaper.

A conversation is known by the hash of its messages, so a longer one finds its own beginning whoever sends it. Holds no
words. Knows no price.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from qwench.gateway.signals import Signals

MOST = 50_000  # beginnings that are remembered


@dataclass(frozen=True)
class Held:
    """What is known of a conversation. ``cached``: tokens of its beginning by option that read them not long ago.
    ``last``: the option that answered last, ``task``: the class it was of; empty where it is new."""

    cached: Mapping[str, int] = field(default_factory=dict)
    last: str = ""
    task: str = ""


class Conversations:
    """A bounded memory of beginnings; ``keep`` is how many seconds an upstream keeps a prompt."""

    def __init__(self, keep: float, clock: Callable[[], float]) -> None:
        self._keep, self._clock = keep, clock
        self._known: OrderedDict[str, tuple[dict[str, float], str, str]] = OrderedDict()

    def find(self, signals: Signals) -> Held:
        now = self._clock()
        cached: dict[str, int] = {}
        last = task = ""
        for prefix, size in zip(reversed(signals.prefixes), reversed(signals.sizes), strict=True):
            readers, name, kind = self._known.get(prefix, ({}, "", ""))
            for option, when in readers.items():
                if now - when <= self._keep:
                    cached.setdefault(option, size)
            last, task = last or name, task or kind
        return Held(cached, last, task)

    def note(self, signals: Signals, option: str, task: str) -> None:
        """``option`` read this conversation just now."""
        readers = self._known.pop(signals.prefixes[-1], ({}, "", ""))[0]
        readers[option] = self._clock()
        self._known[signals.prefixes[-1]] = readers, option, task
        while len(self._known) > MOST:
            self._known.popitem(last=False)
