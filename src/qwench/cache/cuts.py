"""Where a prompt is cut so that its state can be kept: a function of the request alone, so that a request finds what
an earlier one with the same beginning left, and reads in the same pieces whether it finds it or not.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence


def cut_points(prompt_len: int, marks: Sequence[int], orders: Sequence[int], near: int) -> list[int]:
    """Ascending positions inside the prompt, ``near`` tokens apart or more: a state is not worth so few.

    At ``orders`` and at the last mark it is always cut, at other ``marks`` and on a grid only where the last cut is
    farther behind, since a state takes as much memory as a thousand tokens or more. Whether it is cut at a position
    depends only on what stands before it, except for the last mark.
    """
    spacing, grid = 4 * near, 16 * near
    inside = sorted({mark for mark in marks if 0 < mark < prompt_len})
    wanted = dict.fromkeys((*inside, *_grid(prompt_len, grid)), False)
    wanted |= dict.fromkeys((order for order in orders if 0 < order < prompt_len), True)
    cuts = [0]
    for position in sorted(wanted):
        distance = near if wanted[position] else max(spacing, position // 8)
        if position - cuts[-1] >= distance:
            cuts.append(position)
    if inside and inside[-1] not in cuts:
        last = inside[-1]
        if last - max(cut for cut in cuts if cut < last) >= near:
            cuts.insert(bisect_left(cuts, last), last)
    return cuts[1:]


def _grid(prompt_len: int, spacing: int) -> Iterator[int]:
    """``spacing`` apart at first, from then on two or three in every doubling."""
    position = spacing
    while position < prompt_len:
        yield position
        position += max(spacing, 2 ** (position.bit_length() - 2))
