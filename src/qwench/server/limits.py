"""How much may be asked: so many requests at a time of all, and for each API key so many a minute and at a time.

Knows no HTTP.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from qwench.errors import Overloaded

MINUTE = 60.0
SOON = 1.0  # seconds to wait for one of the key's own requests to end: when that is nobody knows


@dataclass
class Account:
    """``credit``: requests that may come at once, as of ``since``; ``running``: those that are being answered."""

    credit: float
    since: float
    running: int = 0


class Limits:
    """For each owner at most ``rate`` requests a minute and ``running`` at a time, and ``most`` of all together; None:
    as many as they like."""

    def __init__(
        self,
        rate: int | None,
        running: int | None,
        most: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate, self._running, self._most, self._clock = rate, running, most, clock
        self._total = 0
        self._accounts: dict[str, Account] = defaultdict(lambda: Account(rate or math.inf, clock()))

    @contextmanager
    def request(self, owner: str) -> Iterator[None]:
        """One request of ``owner``, from its beginning to its end. Raises Overloaded where it is one too many."""
        account = self._accounts[owner]
        if self._most is not None and self._total >= self._most:
            told = f"The server has {self._total} requests at a time, the most it takes; send the request again later."
            raise Overloaded(told, retry_after=SOON)
        if self._running is not None and account.running >= self._running:
            told = f"This key has {account.running} requests running, the most it may; wait for one to end."
            raise Overloaded(told, retry_after=SOON, code="concurrency_limit")
        self._spend(account)
        account.running += 1
        self._total += 1
        try:
            yield
        finally:
            account.running -= 1
            self._total -= 1

    def _spend(self, account: Account) -> None:
        if self._rate is None:
            return
        now, each = self._clock(), MINUTE / self._rate
        account.credit = min(self._rate, account.credit + (now - account.since) / each)
        account.since = now
        if account.credit < 1:
            told = f"This key may send {self._rate} requests a minute and has; wait a little."
            raise Overloaded(told, retry_after=(1 - account.credit) * each, code="rate_limit_exceeded")
        account.credit -= 1
