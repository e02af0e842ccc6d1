"""Prices with date, currency and source, and what a call costs by them. No price is invented: unknown stays unknown.

Ours are in assets/gateway/prices.toml; a user's file of the same form wins. Own hardware's price comes from
plan/cost.py: its average for the books, its marginal price for the router. Knows no ledger.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qwench.errors import UsageError
from qwench.gateway.usage import Amount, Unknown, Usage
from qwench.plan.cost import MILLION, Terms, marginal, per_million
from qwench.plan.hardware import find_machine, load_machines
from qwench.plan.span import Span
from qwench.plan.tables import Table, read_table

SHIPPED = Path(__file__).resolve().parent.parent / "assets" / "gateway" / "prices.toml"
NAMES = ("provider", "model", "source", "date", "currency")
PRICED = (*NAMES, "input", "output", "cached", "written", "over")
OWNED = (
    *NAMES,
    "machine",
    "hourly",
    "energy",
    "use",
    "generates",
    "reads",
    "electricity",
    "years",
    "residual",
    "cached",
)
_DATE = re.compile(r"(\d{4})(?:-(\d{2}))?(?:-(\d{2}))?")


def beginning(date: str) -> float | None:
    """When YYYY, YYYY-MM or YYYY-MM-DD begins, in seconds since 1970; None for anything else."""
    found = _DATE.fullmatch(date)
    try:
        year, month, day = (int(part or 1) for part in found.groups()) if found else (0, 0, 0)
        return datetime(year, month, day, tzinfo=UTC).timestamp()
    except ValueError:
        return None


@dataclass(frozen=True)
class Price:
    """What a provider asks for a million tokens of a model, from ``date`` on (a year, a month or a day).

    ``cached``: of input read from a cache, None where the list names no other price than that of input.
    ``written``: of input put into a cache, None where that is not sold. ``marginal``: (input, output) of one more
    million while there is slack, None where that is the price itself. ``over``: it holds for calls with more input.
    """

    provider: str
    model: str
    input: float
    output: float
    currency: str
    source: str
    date: str
    cached: float | None = None
    written: float | None = None
    marginal: tuple[float, float] | None = None
    over: int = 0

    @property
    def since(self) -> float:
        """When ``date`` begins, in seconds since 1970."""
        found = beginning(self.date)
        assert found is not None, f"{self.date} is no date"
        return found


@dataclass(frozen=True)
class Cost:
    """What one call cost: ``amount`` for the books, ``marginal`` what one more like it would add, in ``currency``.

    ``basis``: "price" (tokens × the frozen ``price``), "provider" (the upstream said), "log" (an imported log said).
    """

    amount: Amount
    marginal: Amount
    currency: str = ""
    basis: str = ""
    price: Price | None = None

    @classmethod
    def told(cls, amount: float, currency: str, basis: str) -> Cost:
        """A cost that somebody else computed."""
        return cls(amount, amount, currency, basis)


UNPRICED = Cost(Unknown.NOT_PRICED, Unknown.NOT_PRICED)
FREE = Cost(0.0, 0.0)  # a call that never reached a model


@dataclass(frozen=True)
class Prices:
    """All prices that are known. Where ``mine`` names a provider's model, ``shipped`` is not asked."""

    mine: Sequence[Price] = ()
    shipped: Sequence[Price] = ()

    def find(self, provider: str, model: str, at: float, tokens: int = 0) -> Price | None:
        """The price of a call with ``tokens`` of input at the time ``at`` (seconds since 1970); None is unknown."""
        wanted = (provider.lower(), model)
        for rows in (self.mine, self.shipped):
            named = [row for row in rows if (row.provider.lower(), row.model) == wanted]
            valid = [row for row in named if row.since <= at]
            newest = max((row.since for row in valid), default=None)
            fitting = [row for row in valid if row.since == newest and (row.over == 0 or tokens > row.over)]
            if named:
                return max(fitting, key=lambda row: row.over, default=None)
        return None

    def charge(self, provider: str, model: str, usage: Usage, at: float) -> Cost:
        """What a call with this ``usage`` costs; unknown with its reason where price or usage is."""
        if all(getattr(usage, name) == 0 for name in ("input", "output", "cached", "written")):
            return FREE
        price = self.find(provider, model, at, usage.input if isinstance(usage.input, int) else 0)
        if price is None:
            return UNPRICED
        amount = _amount(usage, price.input, price.output, price.cached, price.written)
        more = amount
        if price.marginal is not None:
            more = _amount(usage, *price.marginal, None if price.cached is None else 0.0, price.written)
        return Cost(amount, more, price.currency, "price", price)


def _amount(usage: Usage, given: float, made: float, cached: float | None, written: float | None) -> Amount:
    """Tokens × prices. A number that would change the sum and is not known makes the sum unknown."""
    if isinstance(usage.input, Unknown) or isinstance(usage.output, Unknown):
        return Unknown.NOT_REPORTED
    rest, total = usage.input, usage.output * made
    for count, price in ((usage.cached, cached), (usage.written, written)):
        if isinstance(count, Unknown) and count is not Unknown.NOT_APPLICABLE and price is not None:
            return count
        if price is not None and isinstance(count, int):
            rest -= count
            total += count * price
    if written is None and isinstance(usage.written, int) and usage.written:
        return Unknown.NOT_PRICED  # it is dearer than input where it is sold
    return (max(rest, 0) * given + total) / MILLION


def shown(amount: float, digits: int = 6) -> str:
    """With so many digits behind the point; what would be nothing then by its power of ten: only zero is zero."""
    return f"{amount:.{digits}f}" if amount == 0 or abs(amount) >= 10 ** (2 - digits) else f"{amount:.2e}"


def load_prices(extra: Path | None = None) -> Prices:
    """Ours and the user's. Raises UsageError with file, line and key; a price without a currency is refused."""
    return Prices(read_prices(extra) if extra is not None else (), read_prices(SHIPPED))


def read_prices(path: Path) -> list[Price]:
    """The [[price]] and [[own]] tables of one file. Raises UsageError with file, line and key."""
    table = read_table(path)
    table.only(table.content, ("sources", "price", "own"), "")
    sources = table.content.get("sources", {})
    kinds: dict[str, Callable[[Table, Mapping[str, Any], int], Price]] = {"price": _price, "own": _own}
    found = []
    for kind, read in kinds.items():
        rows = table.content.get(kind, [])
        if not isinstance(rows, list) or not isinstance(sources, dict):
            raise table.error("", kind, f"must be written as [[{kind}]], and [sources] as a table")
        for index, row in enumerate(rows):
            named = {**row, "source": str(sources.get(row.get("source"), row.get("source", "")))}
            found.append(read(table, named, index))
    return found


def _price(table: Table, row: Mapping[str, Any], index: int) -> Price:
    table.only(row, PRICED, "price", index)
    words = _words(table, row, "price", index)
    numbers: dict[str, Any] = {
        name: _number(table, row, "price", name, index)
        for name in ("input", "output", "cached", "written")
        if name in row or name in ("input", "output")
    }
    over = row.get("over", 0)
    if not isinstance(over, int) or isinstance(over, bool) or over < 0:
        raise table.error("price", "over", f"is {over!r}; give a number of input tokens", index)
    return Price(**words, **numbers, over=over)


def _own(table: Table, row: Mapping[str, Any], index: int) -> Price:
    """Own hardware: what an hour costs over what is made in it. Of a range the dear end, so no cost is too low."""
    table.only(row, OWNED, "own", index)
    words = _words(table, row, "own", index)
    if ("machine" in row) == ("hourly" in row):
        raise table.error("own", "machine", "or hourly is needed, and not both: what does an hour cost?", index)
    use, generates, reads = (_number(table, row, "own", name, index) for name in ("use", "generates", "reads"))
    if not 0 < use <= 1 or not generates or not reads:
        wrong = "use" if not 0 < use <= 1 else "generates" if not generates else "reads"
        need = "a share of the time above 0 and at most 1" if wrong == "use" else "tokens per second above 0"
        raise table.error("own", wrong, f"is {row[wrong]!r}; give {need}", index)
    cached = _number(table, row, "own", "cached", index) if "cached" in row else None
    if "hourly" in row:
        hour = _number(table, row, "own", "hourly", index)
        energy = _number(table, row, "own", "energy", index) if "energy" in row else 0.0
        average = [hour / (3600 * use * rate) * MILLION for rate in (reads, generates)]
        more = [energy / (3600 * rate) * MILLION for rate in (reads, generates)]
    else:
        average, more, of = _of_machine(table, row, use, (reads, generates), index)
        words["source"] += f" ({of})"
    return Price(**words, input=average[0], output=average[1], cached=cached, marginal=(more[0], more[1]))


def _of_machine(
    table: Table, row: Mapping[str, Any], use: float, rates: Sequence[float], index: int
) -> tuple[list[float], list[float], str]:
    if row["currency"] != "USD":
        raise table.error("own", "currency", "must be USD with a machine of the table, whose prices are dollars", index)
    try:
        machine = find_machine(str(row["machine"]), load_machines())
    except UsageError as error:
        raise table.error("own", "machine", f"is not known: {error.message.rstrip('.')}", index) from None
    given = {
        name: _number(table, row, "own", name, index) for name in ("electricity", "years", "residual") if name in row
    }
    terms = Terms(**given)
    average = [per_million(machine, terms, Span.of(rate), use) for rate in rates]
    more = [marginal(machine, terms, Span.of(rate)) for rate in rates]
    ends = [span.high for span in (*average, *more) if span is not None]
    if len(ends) < 4:
        raise table.error("own", "machine", f"{machine.name} has no known price or power; give hourly instead", index)
    of = f"{machine.title}, at work {use:.0%} of {terms.years:g} years, ${terms.electricity:g}/kWh"
    return ends[:2], ends[2:], of


def _words(table: Table, row: Mapping[str, Any], place: str, index: int) -> dict[str, Any]:
    for name in NAMES:
        if not isinstance(row.get(name), str) or not row[name].strip():
            need = "; a number without a currency is no price" if name == "currency" else ""
            raise table.error(place, name, f"is missing or no text{need}", index)
    if not re.fullmatch(r"[A-Z]{3}", row["currency"]):
        raise table.error(place, "currency", f"is {row['currency']!r}; give its three letters, such as USD", index)
    if beginning(row["date"]) is None:
        raise table.error(place, "date", f"is {row['date']!r}; give YYYY, YYYY-MM or YYYY-MM-DD", index)
    return {name: row[name] for name in NAMES}


def _number(table: Table, row: Mapping[str, Any], place: str, name: str, index: int) -> float:
    value = row.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        told = "is missing" if name not in row else f"is {value!r}"
        raise table.error(place, name, f"{told}; give a number of at least 0 (prices are for a million tokens)", index)
    return float(value)
