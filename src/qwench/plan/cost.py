"""What tokens cost on own hardware: average and marginal, by use, beside what others ask. Knows no model's shape.

H(u) = purchase without residual over the years, or rent, plus power between idle and load; a token costs H(u) over what
is made in the hour. Unknown power or price makes an unknown cost, never a low one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwench.plan.hardware import Machine
from qwench.plan.span import Span
from qwench.plan.tables import ASSETS, Table, read_table, span_of

HOURS = 8760  # of a year
MILLION = 1e6
USES = (1.0, 0.5, 0.3, 0.1, 0.03)


@dataclass(frozen=True)
class Terms:
    """How hardware is paid for. ``electricity`` in dollars per kWh; ``hosting`` in dollars per hour."""

    years: float = 3.0
    residual: float = 0.2
    electricity: float = 0.20
    overhead: float = 1.0  # watts at the meter per watt of the machine
    hosting: float = 0.0


@dataclass(frozen=True)
class Task:
    """Tokens of one attempt, and how many attempts succeed, if that is known."""

    prompt: int
    answer: int
    completion: float | None = None
    source: str = "as asked"


# 2,919 coding tasks with thinking on.
TYPICAL = Task(257, 2546, None, "qwen3.5-plus on CodeRouterBench, tokens per task")


@dataclass(frozen=True)
class Price:
    """What someone asks for a million tokens."""

    model: str
    offer: str
    input: Span
    output: Span
    source: str
    date: str

    def task(self, task: Task) -> Span:
        return (self.input * task.prompt + self.output * task.answer) / MILLION


def hourly(machine: Machine, terms: Terms, use: float) -> Span | None:
    """Dollars per hour with the machine at work for the share ``use`` of it; None where nothing says what it costs."""
    rent, price, watts = machine["rent_usd_hour"], machine["price_usd"], machine["watts"]
    if rent is not None:
        return rent + terms.hosting
    if price is None or watts is None:
        return None
    capital = price * ((1 - terms.residual) / (terms.years * HOURS))
    return capital + _power(machine, watts, use) * (terms.overhead * terms.electricity / 1000) + terms.hosting


def _power(machine: Machine, watts: Span, use: float) -> Span:
    """Mean watts. Idle power that no source tells is anything between nothing and full load."""
    idle = machine["idle_watts"] or Span(0.0, watts.high)
    return Span(idle.low + use * max(watts.low - idle.low, 0.0), idle.high + use * max(watts.high - idle.high, 0.0))


def per_million(machine: Machine, terms: Terms, rate: Span, use: float) -> Span | None:
    """Average dollars per million tokens at ``rate`` tokens per second while at work."""
    cost = hourly(machine, terms, use)
    return cost / (rate * (3600 * use)) * MILLION if cost is not None else None


def marginal(machine: Machine, terms: Terms, rate: Span) -> Span | None:
    """Dollars for one more million tokens while there is slack: the energy alone. Of rented hardware nothing."""
    if machine["rent_usd_hour"] is not None:
        return Span.of(0.0)
    watts = machine["watts"]
    if watts is None:
        return None
    idle = machine["idle_watts"] or Span(0.0, 0.0)
    more = Span(max(watts.low - idle.high, 0.0), max(watts.high - idle.low, 0.0))
    return more * (terms.overhead * terms.electricity / 1000) / (rate * 3600) * MILLION


def break_even(machine: Machine, terms: Terms, rate: Span, price: Span) -> Span | None:
    """The share of time at work from which own output tokens are cheaper than ``price`` for a million.

    Solved for the fixed part of the hour against what each hour at work saves; above 1 it never is.
    """
    idle, full = hourly(machine, terms, 0.0), hourly(machine, terms, 1.0)
    if idle is None or full is None:
        return None
    earned = rate * 3600 * price / MILLION  # an hour at work

    def at(fixed: float, working: float, saved: float) -> float:
        gain = saved - (working - fixed)
        return fixed / gain if gain > 0 else float("inf")

    hours = ((idle.low, full.low), (idle.high, full.high))
    ends = [at(fixed, working, saved) for fixed, working in hours for saved in (earned.low, earned.high)]
    return Span(min(ends), max(ends))


def own_task(cost: Span, total: Span, prefill: Span | None, task: Task) -> Span | None:
    """Dollars of one attempt at ``cost`` per hour, when all the machine's streams are busy."""
    if prefill is None:
        return None
    seconds = task.prompt / prefill + task.answer / total
    return cost / 3600 * seconds


def completed(attempt: Span, task: Task) -> Span | None:
    """Dollars per task that succeeds, failures paid for; None where nobody said how many do."""
    return attempt / task.completion if task.completion else None


def load_prices(extra: Path | None = None) -> list[Price]:
    """The user's file first: it wins where both name an offer. Raises UsageError with file, line and key."""
    found: dict[tuple[str, str, str], Price] = {}
    for path in (*([extra] if extra else []), ASSETS / "prices.toml"):
        table = read_table(path)
        table.only(table.content, ("sources", "price"), "")
        sources = table.content.get("sources", {})
        for index, row in enumerate(table.content.get("price", [])):
            price = _price(table, row, index, sources)
            found.setdefault((price.model, price.offer, price.source if path.parent == ASSETS else ""), price)
    return list(found.values())


def _price(table: Table, row: dict[str, Any], index: int, sources: dict[str, str]) -> Price:
    known = ("model", "offer", "input", "output", "source", "date")
    table.only(row, known, "price", index)
    for key in known:
        if key not in row:
            raise table.error("price", key, "is missing", index)
    spans = {}
    for key in ("input", "output"):
        span = span_of(row[key])
        if span is None:
            raise table.error("price", key, f"is {row[key]!r}; give dollars per million tokens, or [low, high]", index)
        spans[key] = span
    source = str(sources.get(row["source"], row["source"]))
    return Price(str(row["model"]), str(row["offer"]), spans["input"], spans["output"], source, str(row["date"]))


def prices_of(model: str, prices: Sequence[Price]) -> list[Price]:
    """Offers of this very model, and those that name none: they stand for a better one."""
    return [price for price in prices if price.model in (model, "")]
