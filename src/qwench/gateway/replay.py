"""Recorded requests through the router as it is now: who would answer how many, and what that should cost.

Beside it stands what all of them would cost with the default. Nobody is asked anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from qwench.errors import QwenchError
from qwench.gateway.prices import shown
from qwench.gateway.router import Ask, Router
from qwench.gateway.tiers import Settings


@dataclass
class Replayed:
    """``chosen``: requests by class and option. ``costs``, ``usual``: expected cost of the choices and of always the
    default, over the requests for which both are known (``priced``)."""

    requests: int = 0
    chosen: Counter[tuple[str, str]] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    priced: int = 0
    costs: float = 0.0
    usual: float = 0.0

    def document(self, currency: str) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "chosen": [{"class": k, "option": o, "requests": n} for (k, o), n in self.chosen.most_common()],
            "refused": dict(self.refused),
            "priced": self.priced,
            "expected_cost": self.costs if self.priced else None,
            "expected_cost_of_the_default": self.usual if self.priced else None,
            "currency": currency,
        }


def replay(router: Router, settings: Settings, asks: Iterable[Ask]) -> Replayed:
    found = Replayed()
    for ask in asks:
        found.requests += 1
        try:
            decision = router.decide(ask)
        except QwenchError as error:
            found.refused[error.code or error.type] += 1
            continue
        chosen = decision.cascade.name if decision.cascade else decision.option.name
        found.chosen[decision.task.task.name, decision.shadow or chosen] += 1
        costs = {each.option: each.cost for each in decision.weighed}
        one, other = costs.get(decision.option), costs.get(settings.default)
        if one is not None and other is not None:
            found.priced += 1
            found.costs += one
            found.usual += other
    return found


def report(found: Replayed, currency: str) -> Iterator[str]:
    yield f"{found.requests} requests"
    for (task, option), number in found.chosen.most_common():
        yield f"  {number:6}  {task:20}  {option}"
    for code, number in found.refused.most_common():
        yield f"  {number:6}  refused: {code}"
    if found.priced:
        costs, usual = shown(found.costs), shown(found.usual)
        yield f"expected cost of {found.priced}: {costs} {currency}; all to the default: {usual}"
    else:
        yield "what they would cost is not known"
