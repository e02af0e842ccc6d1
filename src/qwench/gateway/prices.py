"""Prices with date, currency and source, and what a call costs by them. No price is invented: unknown stays unknown.

Ours are in assets/gateway/prices.toml; a user's file of the same form wins. Own hardware's price comes from
plan/cost.py: its average for the books, its marginal price for the router.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qwench.gateway.usage import Amount, Unknown, Usage


@dataclass(frozen=True)
class Price:
    """What a provider asks for a million tokens of a model, from ``date`` on.

    ``cached``: of input read from a cache, None where the list names no other price than that of input.
    ``written``: of input put into a cache, None where that is not sold. ``marginal``: (input, output) of one more million
    while there is slack, None where that is the price itself. ``over``: it holds for calls with more input than this.
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
    """All prices that are known, the user's first."""

    rows: Sequence[Price]

    def find(self, provider: str, model: str, at: float, tokens: int = 0) -> Price | None:
        """The price of a call with ``tokens`` of input at the time ``at`` (seconds since 1970); None is unknown."""
        raise NotImplementedError

    def charge(self, provider: str, model: str, usage: Usage, at: float) -> Cost:
        """What a call with this ``usage`` costs; unknown with its reason where price or usage is."""
        raise NotImplementedError


def load_prices(extra: Path | None = None) -> Prices:
    """Ours and the user's. Raises UsageError with file, line and key; a price without a currency is refused."""
    raise NotImplementedError
