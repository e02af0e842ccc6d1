"""Charts as inline SVG: a stacked bar, bands over a logarithmic axis, bars with intervals, columns over days.

Knows numbers and labels, no plan and no ledger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from qwench.plan.span import Span
from qwench.plan.words import number

WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM = 720, 260, 84, 24, 34
COLOURS = ("#2f6f9f", "#5b9bd5", "#8e6bbf", "#3d9970", "#d9a441", "#9aa5b1", "#c0504d", "#4bacc6", "#b07aa1", "#76933c")

Axis = Callable[[float], float]


@dataclass(frozen=True)
class Series:
    """A band between the ends of its spans; one number is a line."""

    name: str
    points: Sequence[tuple[float, Span]]


def stack(parts: Sequence[tuple[str, float]], limit: float, unit: float, label: str) -> str:
    """One bar of ``parts`` beside the ``limit`` it must stay below; what is too small to see is only in the legend."""
    whole = max(sum(size for _, size in parts), limit)
    bar, x, legend = [], 0.0, []
    for index, (name, value) in enumerate(parts):
        colour, width = COLOURS[index % len(COLOURS)], value / whole * WIDTH
        told = f"{name}: {value / unit:,.2f} {label}"
        bar.append(
            f'<rect x="{x:.1f}" y="8" width="{width:.1f}" height="46" fill="{colour}">'
            f"<title>{escape(told)}</title></rect>"
        )
        legend.append(f'<li><i style="background:{colour}"></i>{escape(told)}</li>')
        x += width
    mark = limit / whole * WIDTH
    bar.append(f'<line x1="{mark:.1f}" x2="{mark:.1f}" y1="0" y2="62" class="limit"/>')
    bar.append(
        f'<text x="{max(mark, 150):.1f}" y="76" text-anchor="end">{limit / unit:,.1f} {label} may be used</text>'
    )
    return f'<svg viewBox="0 0 {WIDTH} 82" role="img">{"".join(bar)}</svg><ul class="legend">{"".join(legend)}</ul>'


def bands(
    series: Sequence[Series], x_label: str, y_label: str, ticks: Sequence[tuple[float, str]], *, log_y: bool = False
) -> str:
    """Bands over a logarithmic axis with these ``ticks``."""
    shown = [each for each in series if each.points]
    if not shown:
        return "<p>Nothing to draw: the speed is unknown.</p>"
    top = max(span.high for each in shown for _, span in each.points)
    least = min(span.low for each in shown for _, span in each.points)
    left, right = (math.log(tick) for tick in (ticks[0][0], ticks[-1][0]))
    base = math.log(least) if log_y else 0.0
    rise = (math.log(top) if log_y else top) - base or 1.0

    def x(value: float) -> float:
        return LEFT + (math.log(value) - left) / ((right - left) or 1.0) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return 10 + (1 - ((math.log(value) if log_y else value) - base) / rise) * (HEIGHT - BOTTOM - 20)

    drawn = [
        f'<text x="{x(at):.1f}" y="{HEIGHT - 18}" text-anchor="middle">{escape(told)}</text>' for at, told in ticks
    ]
    for part in range(5):
        value = math.exp(base + rise * part / 4) if log_y else top * part / 4
        drawn.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{number(value)}</text>')
    for index, each in enumerate(shown):
        drawn.append(_band(each, COLOURS[index % len(COLOURS)], x, y))
    drawn.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 2}" text-anchor="middle">{escape(x_label)}</text>')
    legend = "".join(
        f'<li><i style="background:{COLOURS[index % len(COLOURS)]}"></i>{escape(each.name)}</li>'
        for index, each in enumerate(shown)
    )
    figure = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(y_label)}</title>{"".join(drawn)}</svg>'
    return f'{figure}<ul class="legend">{legend}</ul>'


@dataclass(frozen=True)
class Bar:
    """``told``: the value in words. ``low`` and ``high``: the ends of its interval, None where it has none."""

    name: str
    value: float
    told: str
    low: float | None = None
    high: float | None = None


def bars(rows: Sequence[Bar]) -> str:
    """One bar below the other, each with its interval; an interval without an end runs out of the picture."""
    if not rows:
        return "<p>Nothing to draw yet.</p>"
    row, left, right = 26, 190, 170
    whole = max(max(each.value, each.high or 0.0) for each in rows) or 1.0
    drawn = []
    for index, each in enumerate(rows):
        y, scale = index * row, (WIDTH - left - right) / whole
        width = each.value * scale
        drawn.append(f'<text x="{left - 8}" y="{y + 17}" text-anchor="end">{escape(each.name)}</text>')
        drawn.append(f'<rect x="{left}" y="{y + 4}" width="{width:.1f}" height="18" fill="{COLOURS[0]}"/>')
        if each.low is not None:
            ends = left + each.low * scale, left + each.high * scale if each.high is not None else WIDTH - right
            drawn.append(f'<line class="ends" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{y + 13}" y2="{y + 13}"/>')
        drawn.append(f'<text x="{WIDTH - right + 8}" y="{y + 17}">{escape(each.told)}</text>')
    return f'<svg viewBox="0 0 {WIDTH} {row * len(rows)}" role="img">{"".join(drawn)}</svg>'


def columns(days: Sequence[tuple[str, Mapping[str, float]]], told: Callable[[float], str]) -> str:
    """Stacked columns, one a day; ``told`` says a sum in words."""
    names = sorted({name for _, parts in days for name in parts})
    top = max((sum(parts.values()) for _, parts in days), default=0.0)
    if not top:
        return "<p>Nothing to draw yet.</p>"
    height, wide = HEIGHT - BOTTOM, (WIDTH - LEFT - RIGHT) / len(days)
    drawn = []
    for part in range(5):
        y = height - part / 4 * (height - 16)
        drawn.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(told(top * part / 4))}</text>')
    for index, (day, parts) in enumerate(days):
        x, y = LEFT + index * wide, float(height)
        for name, value in sorted(parts.items()):
            tall = value / top * (height - 16)
            y -= tall
            colour = COLOURS[names.index(name) % len(COLOURS)]
            drawn.append(
                f'<rect x="{x + wide * 0.1:.1f}" y="{y:.1f}" width="{wide * 0.8:.1f}" height="{tall:.1f}" '
                f'fill="{colour}"><title>{escape(f"{day}, {name}: {told(value)}")}</title></rect>'
            )
        if index % max(1, math.ceil(len(days) / 8)) == 0:
            middle = x + wide / 2
            drawn.append(f'<text x="{middle:.1f}" y="{HEIGHT - 16}" text-anchor="middle">{escape(day[5:])}</text>')
    legend = "".join(
        f'<li><i style="background:{COLOURS[index % len(COLOURS)]}"></i>{escape(name)}</li>'
        for index, name in enumerate(names)
    )
    figure = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(drawn)}</svg>'
    return f'{figure}<ul class="legend">{legend}</ul>'


def _band(series: Series, colour: str, x: Axis, y: Axis) -> str:
    upper = [f"{x(at):.1f},{y(span.high):.1f}" for at, span in series.points]
    lower = [f"{x(at):.1f},{y(span.low):.1f}" for at, span in reversed(series.points)]
    if len(upper) == 1:
        at, span = series.points[0]
        place = f'x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{y(span.low):.1f}" y2="{y(span.high):.1f}"'
        return f'<line {place} stroke="{colour}" stroke-width="6"/>'
    return f'<polygon points="{" ".join(upper + lower)}" fill="{colour}" fill-opacity="0.45" stroke="{colour}"/>'
