"""What a prompt shows: pictures and moments of videos, where they stand among its tokens, and how they are told apart.

Knows neither torch nor how anything is looked at.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

from qwench.model.positions import Layout

MAX_IDENTITY = 2**63 - 1


class Media(Protocol):
    """A picture or a video, ready to be looked at: ``patches`` fp32 [t * h * w, width] for a ``grid`` of t, h, w."""

    @property
    def patches(self) -> Any: ...

    @property
    def grid(self) -> tuple[int, int, int]: ...

    @property
    def digest(self) -> bytes:
        """Of the content, and of how it was prepared."""

    @property
    def kind(self) -> str:
        """Either "image" or "video"."""

    @property
    def seconds(self) -> tuple[float, ...]:
        """Of a video: when each of its t moments is."""


class Shows(Protocol):
    """Where something is shown: in ``count`` tokens from ``first`` to its last placeholder."""

    @property
    def first(self) -> int: ...

    @property
    def count(self) -> int: ...

    @property
    def media(self) -> Media: ...


@dataclass(frozen=True)
class Span:
    """A picture or a moment of a video, in place of ``height`` times ``width`` tokens of a prompt from ``first`` on.

    Their rows are those of the media ``digest`` from row ``offset`` on.
    """

    first: int
    height: int
    width: int
    digest: bytes
    offset: int = 0

    @property
    def stop(self) -> int:
        return self.first + self.height * self.width

    @cached_property
    def identities(self) -> array[int]:
        """What tells its tokens from those of other pictures, where their ids are all the same: below zero, no id."""
        shown = b"%b %d %d %d" % (self.digest, self.height, self.width, self.offset)
        found = array("q", hashlib.shake_256(shown).digest(8 * self.height * self.width))
        return array("q", (-1 - (number & MAX_IDENTITY) for number in found))


@dataclass(frozen=True)
class Sight:
    """What a prompt shows: ``spans`` in ascending order, and what is to be looked at for them, by digest."""

    spans: tuple[Span, ...] = ()
    media: Mapping[bytes, Media] = field(default_factory=dict)

    @classmethod
    def of(cls, token_ids: Sequence[int], shown: Iterable[Shows], merge: int) -> Sight:
        """Where each moment stands of what lies in a prompt: its tokens are those like the first of all; ``merge``: how
        many patches wide and high one is."""
        spans: list[Span] = []
        media: dict[bytes, Media] = {}
        for each in shown:
            moments, height, width = each.media.grid
            height, width = height // merge, width // merge
            lies = range(each.first, each.first + each.count)
            places = [place for place in lies if token_ids[place] == token_ids[each.first]]
            size = height * width
            assert len(places) == moments * size, f"{len(places)} placeholders for {moments} times {size} tokens"
            firsts = enumerate(places[::size])
            spans += (Span(first, height, width, each.media.digest, moment * size) for moment, first in firsts)
            media[each.media.digest] = each.media
        return cls(tuple(spans), media)

    @cached_property
    def layout(self) -> Layout:
        return Layout(self.spans)

    @property
    def seams(self) -> tuple[int, ...]:
        """Behind each picture and each video, with the token that closes it."""
        return tuple(
            span.stop + 1
            for span, after in pairwise((*self.spans, None))
            if span and (after is None or after.digest != span.digest or after.offset <= span.offset)
        )

    def within(self, places: range) -> Iterator[tuple[Span, range]]:
        """The spans that reach into ``places``, each with the places that they share."""
        first = bisect_right(self.spans, places.start, key=lambda span: span.stop)
        for span in self.spans[first:]:
            if span.first >= places.stop:
                return
            yield span, range(max(span.first, places.start), min(span.stop, places.stop))


NOTHING = Sight()
