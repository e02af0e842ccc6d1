"""What keys may spend in a day (UTC), what they have spent, and who is told when it runs low.

What a running request is expected to cost is set aside while it runs, so that many at once do not spend the same money.
Days only move forward: a clock that goes back gives nobody a second budget. Knows neither prices nor HTTP.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from qwench.gateway.tiers import DAY

logger = logging.getLogger(__name__)

ALL = ""  # the purse that everybody spends from


@dataclass
class Purse:
    """``limit`` for a day, None without one. ``unknown``: attempts of the day whose cost nobody knows."""

    limit: float | None
    spent: float = 0.0
    reserved: float = 0.0
    unknown: int = 0
    told: float = 0.0  # the share of the last alert

    @property
    def left(self) -> float | None:
        return None if self.limit is None else max(self.limit - self.spent - self.reserved, 0.0)


class Budgets:
    """The purses of all keys. ``tell`` hears of every alert: the purse's name, the share, the purse."""

    def __init__(
        self,
        limits: dict[str, float | None],
        shares: Sequence[float],
        clock: Callable[[], float],
        tell: Callable[[str, float, Purse], None],
    ) -> None:
        self._limits, self._shares, self._clock, self._tell = limits, sorted(shares), clock, tell
        self._day = int(clock() // DAY)
        self._purses = self._fresh()

    def _fresh(self) -> dict[str, Purse]:
        purses: dict[str, Purse] = defaultdict(lambda: Purse(None))
        purses.update({name: Purse(limit) for name, limit in self._limits.items()})
        return purses

    @property
    def since(self) -> float:
        """When the day began."""
        return float(self._day * DAY)

    def purses(self) -> dict[str, Purse]:
        today = int(self._clock() // DAY)
        if today > self._day:
            before, self._day, self._purses = self._purses, today, self._fresh()
            for name, purse in before.items():
                self._purses[name].reserved = purse.reserved  # what still runs is paid for today
        return self._purses

    def left(self, owner: str) -> tuple[float | None, str]:
        """What a request of ``owner`` may cost, and whose purse says so."""
        purses = self.purses()
        found = [(purses[name].left, name) for name in {ALL, owner}]
        limited = [(left, name) for left, name in found if left is not None]
        if not limited:
            return None, ""
        left, name = min(limited)
        return left, f"the key {name}" if name else "the day's budget"

    @contextmanager
    def reserved(self, owner: str, amount: float) -> Iterator[None]:
        """``amount`` is set aside while the request runs."""
        for name in {ALL, owner}:
            self.purses()[name].reserved += amount
        try:
            yield
        finally:
            for name in {ALL, owner}:
                self.purses()[name].reserved = max(self.purses()[name].reserved - amount, 0.0)

    def spend(self, owner: str, amount: float | None) -> None:
        """An attempt ended; None is a cost that nobody knows."""
        for name in {ALL, owner}:
            purse = self.purses()[name]
            if amount is None:
                purse.unknown += 1
                continue
            purse.spent += amount
            if purse.limit:
                self._alert(name, purse)

    def restore(self, owner: str, amount: float, unknown: int) -> None:
        """What the ledger says was spent of the day's money before this process began; nobody is told again."""
        purse = self.purses()[owner]
        purse.spent, purse.unknown = amount, unknown
        purse.told = amount / purse.limit if purse.limit else 0.0

    def _alert(self, name: str, purse: Purse) -> None:
        assert purse.limit
        reached = purse.spent / purse.limit
        passed = [share for share in self._shares if purse.told < share <= reached]
        if passed:
            purse.told = reached
            whose = f"the key {name} has" if name else "all keys together have"
            logger.warning("%s spent %.0f %% of the day's budget of %g", whose, 100 * reached, purse.limit)
            self._tell(name, passed[-1], purse)
