"""Quantities as people read them: spans, bytes, dollars. One way for the terminal and the page."""

from __future__ import annotations

from qwench.plan.span import Span

GB = 1e9


def number(value: float) -> str:
    """Three digits that mean something; no more than the figure deserves."""
    if value >= 1000:
        digits = 10 ** (len(str(int(value))) - 3)
        return f"{round(value / digits) * digits:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def span(value: Span | None, unit: str = "") -> str:
    if value is None:
        return "unknown"
    low, high = number(value.low), number(value.high)
    return (low if low == high else f"{low}–{high}") + (f" {unit}" if unit else "")


def size(value: float) -> str:
    return f"{value / GB:,.2f} GB" if value < 100 * GB else f"{value / GB:,.0f} GB"


def dollars(value: Span | None) -> str:
    if value is None:
        return "unknown"
    ends = [
        f"{end:,.0f}" if end >= 100 else f"{end:,.2f}" if end >= 0.1 else f"{end:.2g}"
        for end in (value.low, value.high)
    ]
    return f"${ends[0]}" if ends[0] == ends[1] else f"${'–'.join(ends)}"


def slack(marginal: Span | None) -> str:
    """What one more million costs a machine that is paid for anyway."""
    if marginal is None:
        return dollars(marginal)
    return f"{dollars(marginal)} (energy alone)" if marginal.high > 0 else "nothing (the rent is paid anyway)"


def share(value: Span | None) -> str:
    """A share of the time, as break-even is told."""
    if value is None:
        return "unknown"
    low, high = ("never" if end > 1 else f"{end:.0%}" if end >= 0.005 else "<1%" for end in (value.low, value.high))
    return low if low == high else f"{low}–{high}"


def tokens(count: int) -> str:
    for million in (2**20, 1_000_000):
        if count % million == 0:
            return f"{count // million}M"
    return f"{count >> 10}k" if count % 1024 == 0 else f"{count:,}"
