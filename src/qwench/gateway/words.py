"""Reports in words: money, shares, intervals, unknowns. One way for the terminal and the pages."""

from __future__ import annotations

from datetime import UTC, datetime

from qwench.gateway.report import Comparison, Estimate, Line, Report, Spent

SIGNS = {"USD": "$", "EUR": "€", "GBP": "£"}
NOBODY = "none completed"
MOST_DIGITS = 6  # behind the point; smaller amounts are told by their power of ten


def money(value: float, currency: str) -> str:
    """Three digits that mean something, and never 0 for what is not."""
    size = abs(value)
    short, _, power = f"{size:.2e}".partition("e")
    digits = 2 if size >= 1 or size == 0 else 2 - int(power)
    told = f"{size:,.{digits}f}" if digits <= MOST_DIGITS else f"{short}e{int(power)}"
    signed = f"{SIGNS[currency]}{told}" if currency in SIGNS else f"{told} {currency}"
    return f"−{signed}" if value < 0 else signed


def spent(value: Spent, currency: str) -> str:
    """A sum; where attempts of unknown cost are in it, it is at least that."""
    if value.unknown and not value.known:
        return "unknown"
    return ("≥ " if value.unknown else "") + money(value.known, currency)


def cost(line: Line, currency: str) -> str:
    """Of a completed task, with its interval."""
    known = line.cost or line.at_least
    if known is None:
        return NOBODY if line.decided else ""
    if line.at_least is not None and not line.decided_spent.known:
        return "unknown"
    return ("≥ " if line.at_least is not None else "") + estimate(known, currency)


def estimate(value: Estimate, currency: str) -> str:
    if value.low is None:
        return money(value.value, currency)
    high = money(value.high, currency) if value.high is not None else "∞"
    between = " to " if value.low < 0 else "–"
    return f"{money(value.value, currency)} ({money(value.low, currency)}{between}{high})"


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def completion(line: Line) -> str:
    if line.completion is None:
        return ""
    low, high = line.completion.low or 0.0, line.completion.high or 0.0
    return f"{line.completion.value:.0%} ({low:.0%}–{high:.0%})"


def covered(comparison: Comparison) -> str:
    """How many tasks it is about."""
    some = f"{comparison.covered:,}"
    return some if comparison.covered == comparison.of else f"{some} of {comparison.of:,}"


def saved(comparison: Comparison, currency: str) -> str:
    """What routing saved for each completed task."""
    if comparison.saved is None:
        return "unknown"
    return estimate(comparison.saved, currency)


def remarks(report: Report) -> list[str]:
    """What a reader of the numbers has to know."""
    told = []
    for why, count in sorted(report.unknown.items()):
        told.append(f"{_attempts(count)} of unknown cost: {why}. Sums with such attempts are at least as shown (≥).")
    for currency, count in sorted(report.foreign.items()):
        told.append(f"{_attempts(count)} in {currency}: unknown in {report.currency}; see --currency {currency}.")
    if report.total.decided < report.total.tasks:
        open_ = report.total.tasks - report.total.decided
        told.append(f"{open_:,} of {report.total.tasks:,} tasks have no verdict; they count neither way.")
    if report.judges:
        judges = ", ".join(f"{judge} ({count:,})" for judge, count in sorted(report.judges.items()))
        told.append(f"Verdicts by {judges}.")
    return told


def window(report: Report) -> str:
    if report.first is None or report.last is None:
        return "nothing yet"
    ends = [f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}" for at in (report.first, report.last)]
    return f"{ends[0]} to {ends[1]} UTC"


def _attempts(count: int) -> str:
    return f"{count:,} attempt{'s' if count != 1 else ''}"
