"""Everything one gateway consists of, put together once: ledger, prices, router, upstreams, budgets, stop button.

Knows no route.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from qwench.errors import LedgerUnavailable
from qwench.gateway.budgets import ALL, Budgets, Purse
from qwench.gateway.conversations import Conversations
from qwench.gateway.courier import Books, Courier
from qwench.gateway.halt import Halt
from qwench.gateway.ledger import Ledger
from qwench.gateway.posterior import Outcomes
from qwench.gateway.prices import Prices
from qwench.gateway.records import Event
from qwench.gateway.router import Router
from qwench.gateway.tiers import DAY, Option, Settings
from qwench.gateway.upstream import Upstream
from qwench.server.service import ServerSettings

FORGET = 3600.0  # seconds between two looks for texts that are too old


@dataclass(frozen=True)
class House:
    """One gateway. ``server`` is what the gate in front of it goes by."""

    settings: Settings
    books: Books
    router: Router
    courier: Courier
    upstreams: dict[str, Upstream]
    halt: Halt
    server: ServerSettings

    def resting(self, option: Option) -> bool:
        return self.upstreams[option.tier.name].breaker.resting

    async def learn(self) -> None:
        """Believe the outcomes that are in the ledger by now."""
        await asyncio.to_thread(lambda: self.books.outcomes.replace(self.books.ledger.tallies()))

    async def forget(self) -> None:
        """Erase, again and again, the texts that are older than the settings allow; where they keep none, nothing."""
        while self.books.keeps:
            with suppress(LedgerUnavailable):  # the next time will do
                before = self.books.now() - self.settings.contents * DAY
                await asyncio.to_thread(self.books.ledger.erase, before=before)
            await asyncio.sleep(FORGET)

    def close(self) -> None:
        for upstream in self.upstreams.values():
            upstream.close()


def furnish(
    settings: Settings,
    ledger: Ledger,
    prices: Prices,
    server: ServerSettings,
    *,
    offline: bool = False,
    rng: random.Random | None = None,
    now: Callable[[], float] = time.time,
) -> House:
    """A gateway of these parts; what was spent today and how options fared is read from the ledger."""
    drawn = rng or random.Random()

    def alert(name: str, share: float, purse: Purse) -> None:
        detail = {"purse": name or "all", "share": share, "spent": purse.spent, "limit": purse.limit}
        ledger.event(Event("alert", detail=detail))

    limits = {ALL: settings.budget, **{name: owner.budget for name, owner in settings.owners.items()}}
    budgets = Budgets(limits, settings.alerts, now, alert)
    for name in limits:
        spending = ledger.spent(key=name or None, since=budgets.since)
        budgets.restore(name, spending.amounts.get(settings.routing.currency, 0.0), spending.unknown)
    upstreams = {
        name: Upstream(tier, offline=offline, clock=time.monotonic)
        for name, tier in settings.tiers.items()
        if tier.local or not offline
    }
    outcomes = Outcomes(ledger.tallies())
    conversations = Conversations(settings.routing.cache, time.monotonic)
    books = Books(ledger, prices, budgets, outcomes, conversations, now, keeps=settings.contents > 0)
    router = Router(settings, prices, outcomes, drawn, offline=offline)
    return House(settings, books, router, Courier(upstreams, books, drawn), upstreams, Halt(), server)
