"""Where the tokens of a sequence stand on the three axes (time, height, width): text in a line, pictures as areas.

A picture is one moment: all its tokens share the time at which it begins, and spread over rows and columns from there.
Text goes on behind its longer side, so a sequence is farther in tokens than in positions. Knows no torch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol

Axes = tuple[list[int], list[int], list[int]]


class Area(Protocol):
    """``height`` times ``width`` tokens, row by row, from place ``first`` of the sequence on."""

    @property
    def first(self) -> int: ...

    @property
    def height(self) -> int: ...

    @property
    def width(self) -> int: ...


class Layout:
    """The positions of a sequence in which ``areas`` lie, in ascending order; all else is text."""

    def __init__(self, areas: Sequence[Area] = ()) -> None:
        self._areas = areas
        self._ends = [area.first + area.height * area.width for area in areas]
        self._shifts = [0]  # of the text behind so many areas: its position less its place
        for area in areas:
            self._shifts.append(self._shifts[-1] + max(area.height, area.width) - area.height * area.width)

    def positions(self, places: range) -> Axes:
        """Of the tokens at ``places``: their times, heights and widths."""
        axes: Axes = ([], [], [])
        place = places.start
        while place < places.stop:
            passed = bisect_right(self._ends, place)
            shift = self._shifts[passed]
            area = self._areas[passed] if passed < len(self._areas) else None
            if area is None or place < area.first:
                stop = places.stop if area is None else min(places.stop, area.first)
                for axis in axes:
                    axis.extend(range(place + shift, stop + shift))
            else:
                stop = min(places.stop, self._ends[passed])
                start, inside = area.first + shift, range(place - area.first, stop - area.first)
                axes[0].extend([start] * len(inside))
                axes[1].extend(start + each // area.width for each in inside)
                axes[2].extend(start + each % area.width for each in inside)
            place = stop
        return axes
