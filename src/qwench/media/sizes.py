"""The sizes a picture or a video is brought to: multiples of a token's side within bounds of pixels.

The rule is that of the reference processor, so that the same picture comes to the same number of tokens.
"""

from __future__ import annotations

import math

MOST_RATIO = 200  # of the longer side to the shorter


class Unusable(Exception):
    """Media that cannot be used. ``reason`` is what follows the place of the part in a sentence, without its stop."""

    def __init__(self, reason: str, *, too_large: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.too_large = too_large


def fitting_size(
    width: int, height: int, factor: int, bounds: tuple[int, int], *, frames: int = 1, temporal: int = 1
) -> tuple[int, int]:
    """Width and height for ``frames`` frames that come to a number of pixels within ``bounds``.

    Frames count in whole groups of ``temporal``, except where the size is corrected. Raises Unusable.
    """
    if temporal > 1 and min(width, height) < factor:  # frames, unlike pictures, are first brought to a token's side
        scale = max(factor / height, factor / width)
        width, height = int(width * scale), int(height * scale)
    if max(width, height) > MOST_RATIO * min(width, height):
        raise Unusable(f"is {width} by {height} pixels; the longer side may be at most {MOST_RATIO} times the shorter")
    low, high = bounds
    fit_width, fit_height = (round(side / factor) * factor for side in (width, height))
    volume = round(frames / temporal) * temporal * fit_width * fit_height
    if volume > high:
        shrink = math.sqrt(frames * width * height / high)
        fit_width, fit_height = (max(factor, math.floor(side / shrink / factor) * factor) for side in (width, height))
    elif volume < low:
        grow = math.sqrt(low / (frames * width * height))
        fit_width, fit_height = (math.ceil(side * grow / factor) * factor for side in (width, height))
    return fit_width, fit_height
