"""Ledgers filled for tests: a clock that is told, records with little in them, a chain with every kind of row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwench.gateway.chain import Finding, verify
from qwench.gateway.ledger import Ledger
from qwench.gateway.prices import Cost, Price
from qwench.gateway.records import Attempt, Ending, Event, Judge, Kind, Outcome, Receipt, Status, Task, Verdict
from qwench.gateway.store import connect
from qwench.gateway.usage import Unknown, Usage

NOVEMBER = 1_793_491_200.0  # 2026-11-01 00:00 UTC
PRICE = Price(
    "shop", "big", 2.0, 10.0, "USD", "its list", "2026-10", cached=0.2, written=2.5, marginal=(1.0, 5.0), over=8
)
USAGE = Usage(1000, 500, 100, 0, 200, '{"prompt_tokens":1000}')


class Clock:
    def __init__(self, now: float = NOVEMBER) -> None:
        self.now = now

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def attempt(**said: Any) -> Attempt:
    return Attempt(**{"kind": Kind.GENERATE, "tier": "premium", "provider": "shop", "model": "big", **said})


def ending(amount: float | Unknown = 0.01, **said: Any) -> Ending:
    cost = Cost(amount, amount, "USD" if isinstance(amount, float) else "", "price", PRICE)
    return Ending(**{"status": Status.COMPLETED, "usage": USAGE, "cost": cost, "stop": "stop", "took": 1.5, **said})


def fill(path: Path, tasks: int = 3) -> None:
    """Tasks with a failed and a whole attempt, a check, a verdict, kept texts and an event."""
    with Ledger.open(str(path), clock=Clock()) as ledger:
        for number in range(tasks):
            task = Task(f"task-{number}", name=("code", "chat")[number % 2], data="public", key="ann", value=0.5)
            first = attempt(id=f"first-{number}", tier="own", thinking="off", decision={"p": 0.25, "why": "cheap"})
            ledger.record(task, first, ending(Unknown.NOT_REPORTED, status=Status.FAILED, error="half_a_stream"))
            with ledger.attempt(task, attempt(id=f"second-{number}", parent=first.id)) as running:
                texts = {"request": f"What is {number}?", "response": f"It is {number}."}
                running.end(ending(0.02, contents=texts, first=0.25, queued=0.5, engine="e", weights="w"))
            ledger.record(task, attempt(id=f"check-{number}", kind=Kind.VERIFY, tier="own"), ending(0.001))
            verdict = Verdict.ACCEPTED if number % 2 == 0 else Verdict.REJECTED
            ledger.outcome(Outcome(task.id, verdict, Judge.TEST, f"second-{number}", "unit tests")).result()
        ledger.event(Event("refused", detail={"gate": "data class"})).result()


def checked(path: Path, anchor: Receipt | None = None) -> Finding:
    store = connect(str(path), make=False)
    try:
        return verify(store, anchor)
    finally:
        store.close()


def rows_of(path: Path, query: str) -> list[tuple[Any, ...]]:
    """Straight from the file, past everything of ours."""
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def change(path: Path, *statements: str) -> None:
    """What somebody with the file and a shell can do."""
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()
