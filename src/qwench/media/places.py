"""Points and boxes in an answer -> pixels of the original picture. Models count from 0 to 1000 along each side."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qwench.fields import is_real

SCALE = 1000
LISTS = re.compile(r"\[.*\]|\{.*\}", re.DOTALL)


@dataclass(frozen=True)
class Place:
    """What a model pointed at: ``box`` is left, top, right and bottom, of a point twice the same."""

    box: tuple[float, float, float, float]
    label: str = ""

    @property
    def is_point(self) -> bool:
        return self.box[:2] == self.box[2:]


def read_places(answer: str) -> list[Place]:
    """The boxes (``bbox_2d``) and points (``point_2d``) of an answer in JSON, whatever stands around it.

    What is no place is passed over; an answer without any gives none.
    """
    found = LISTS.search(answer)
    try:
        listed = json.loads(found[0]) if found else []
    except (ValueError, RecursionError):
        return []
    each = listed if isinstance(listed, list) else [listed]
    return [place for item in each if (place := _place(item)) is not None]


def box_pixels(box: Sequence[float], size: tuple[int, int], *, scale: int = SCALE) -> tuple[int, int, int, int]:
    """``box`` in pixels of a picture of ``size`` (width, height), with corners in order and inside of it."""
    across, down = ([_pixel(each, side, scale) for each in box[at::2]] for at, side in enumerate(size))
    return min(across), min(down), max(across), max(down)


def point_pixels(point: Sequence[float], size: tuple[int, int], *, scale: int = SCALE) -> tuple[int, int]:
    """``point`` in pixels of a picture of ``size`` (width, height)."""
    return box_pixels((*point, *point), size, scale=scale)[:2]


def _pixel(value: float, side: int, scale: int) -> int:
    return min(max(round(value * side / scale), 0), side)


def _place(item: Any) -> Place | None:
    match item:
        case {"bbox_2d": [left, top, right, bottom]}:
            numbers = (left, top, right, bottom)
        case {"point_2d": [left, top]}:
            numbers = (left, top, left, top)
        case _:
            return None
    if not all(is_real(each) and math.isfinite(each) for each in numbers):
        return None
    return Place(numbers, str(item.get("label", "")))
