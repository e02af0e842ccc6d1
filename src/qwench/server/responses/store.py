"""Stored responses: in memory, up to a number of bytes, each for the key it was asked with.

A response holds what was new when it was asked, and the response it goes on. When there is no room the least lately
used goes, of those that nothing else goes on from. Knows no HTTP and no engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwench.server.errors import NoSuchResponse, encode
from qwench.server.responses.items import Item
from qwench.server.schemas import show

ITEM = 512  # bytes that an entry takes beside its content


@dataclass(eq=False)
class Kept:
    """One response. ``given`` are the items that came with it, ``size`` their bytes; ``task`` answers it in the
    background.

    ``later`` counts those that go on from it; ``deleted``: only they still use it.
    """

    owner: str
    body: dict[str, Any]
    given: list[Item]
    size: int
    earlier: Kept | None = None
    task: asyncio.Task[None] | None = None
    deleted: bool = False
    later: int = 0

    @property
    def id(self) -> str:
        return str(self.body["id"])

    @property
    def bytes(self) -> int:
        return self.size + len(encode(self.body)) + ITEM

    def line(self) -> list[Kept]:
        """This one and all before it, the first first."""
        line: list[Kept] = []
        here: Kept | None = self
        while here is not None:
            line.append(here)
            here = here.earlier
        return line[::-1]

    def conversation(self) -> list[Item]:
        """All that was said up to and with this response."""
        return [item for kept in self.line() for item in (*kept.given, *kept.body["output"])]

    def shown(self) -> list[Item]:
        """All that the model was given for this response."""
        return [*(self.earlier.conversation() if self.earlier else ()), *self.given]


class ResponseStore:
    """At most ``most`` bytes of responses; 0 keeps none. Used from one thread."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: dict[str, Kept] = {}  # the least lately used first
        self.used = 0

    def get(self, name: str, owner: str, param: str = "response_id") -> Kept:
        """The response of that id, if it is the owner's. Raises NoSuchResponse."""
        kept = self._kept.get(name)
        if kept is None or kept.deleted or kept.owner != owner:
            reason = f"they stay in memory, at most {self.most >> 20} MiB of them"
            told = f"No response {show(name)} is kept here, or no longer: {reason}"
            raise NoSuchResponse(f"{told}; send the whole conversation in input.", param=param)
        self._kept[name] = self._kept.pop(name)
        return kept

    def put(self, kept: Kept) -> bool:
        """Keep it, and let others go that were used less lately. False if there is no room for it all the same, or if
        what it goes on from was let go meanwhile."""
        if kept.bytes > self.most or (kept.earlier is not None and kept.earlier.id not in self._kept):
            return False
        if kept.earlier is not None:
            kept.earlier.later += 1
        self._kept[kept.id] = kept
        self.used += kept.bytes
        self._make_room()
        return kept.id in self._kept

    def change(self, kept: Kept, body: Mapping[str, Any]) -> None:
        """Another ``body`` for what is kept; nothing if it was let go meanwhile."""
        if kept.id not in self._kept:
            return
        self.used -= kept.bytes
        kept.body = dict(body)
        self.used += kept.bytes
        self._make_room()

    def delete(self, kept: Kept) -> None:
        """Nobody can ask for it any more; it goes with the last response that goes on from it."""
        kept.deleted = True
        if not kept.later:
            self._drop(kept)

    def running(self, owner: str) -> int:
        """How many of the owner's are being answered in the background."""
        return sum(kept.owner == owner and kept.task is not None for kept in self._kept.values())

    def items(self, owner: str) -> dict[str, Item]:
        """All items of the owner's responses, by their ids."""
        mine = [kept for kept in self._kept.values() if kept.owner == owner and not kept.deleted]
        return {str(item["id"]): item for kept in mine for item in (*kept.given, *kept.body["output"]) if "id" in item}

    def _make_room(self) -> None:
        while self.used > self.most:
            self._drop(next(kept for kept in self._kept.values() if not kept.later))

    def _drop(self, kept: Kept) -> None:
        if kept.task is not None:
            kept.task.cancel()
        del self._kept[kept.id]
        self.used -= kept.bytes
        if kept.earlier is not None:
            kept.earlier.later -= 1
            if kept.earlier.deleted and not kept.earlier.later and kept.earlier.id in self._kept:
                self._drop(kept.earlier)
