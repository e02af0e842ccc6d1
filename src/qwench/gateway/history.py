"""The ledger read as tasks: each with its calls, its verdict and what it cost. What reports and routers count with.

Knows no statistics; what an interval is belongs to report.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from qwench.gateway import tables
from qwench.gateway.records import Judge, Kind, Status, Verdict
from qwench.gateway.usage import Unknown

TRUST = {judge: rank for rank, judge in enumerate(Judge)}


@dataclass(frozen=True)
class Call:
    """One attempt as reports need it. ``amount`` None is unknown, and ``why`` says how."""

    id: str
    kind: Kind
    tier: str
    provider: str
    model: str
    thinking: str
    recipe: str
    status: Status
    started: float
    took: float | None
    input: int | None
    output: int | None
    amount: float | None
    marginal: float | None
    currency: str
    why: Unknown | None


@dataclass
class Case:
    """One task. ``verdict`` None: nobody found anything yet. ``findings``: of attempts that were judged by themselves,
    as the first answer of a cascade is."""

    id: str
    name: str = ""
    data: str = ""
    key: str = ""
    calls: list[Call] = field(default_factory=list)
    verdict: Verdict | None = None
    judge: Judge | None = None
    answered_by: str = ""  # the attempt that the verdict names
    findings: dict[str, tuple[Judge, Verdict]] = field(default_factory=dict)

    @property
    def answer(self) -> Call | None:
        """The call whose answer was taken: the one the verdict names, else the last whole one, else the last."""
        made = [call for call in self.calls if call.kind is Kind.GENERATE]
        named = [call for call in made if call.id == self.answered_by]
        whole = [call for call in made if call.status is Status.COMPLETED]
        return next((found[-1] for found in (named, whole, made) if found), None)

    @property
    def accepted(self) -> bool:
        return self.verdict is Verdict.ACCEPTED

    def find(self, judge: Judge, verdict: Verdict, attempt: str) -> None:
        """Take in what was found later than everything so far: of equal trust, the last counts."""
        if self.judge is None or TRUST[judge] <= TRUST[self.judge]:
            self.verdict, self.judge, self.answered_by = verdict, judge, attempt
        before = self.findings.get(attempt)
        if attempt and (before is None or TRUST[judge] <= TRUST[before[0]]):
            self.findings[attempt] = judge, verdict

    def verdict_on(self, call: Call) -> Verdict | None:
        """The task's, of the answer that was taken; else what was found about this very attempt."""
        return self.verdict if call is self.answer else self.findings.get(call.id, (None, None))[1]


@dataclass(frozen=True)
class Tally:
    """How one option fared in one class of tasks.

    An attempt counts as ACCEPTED or not if its task's answer was taken from it, or if it was judged by itself; those
    without a verdict are in neither.
    ``attempts``: generating attempts at all tasks of the class. ``cost``: their mean, of those whose cost is known, in
    the currency of most of them; None where none is known.
    """

    name: str
    tier: str
    model: str
    thinking: str
    recipe: str
    accepted: int
    rejected: int
    attempts: int
    cost: float | None


def read_cases(connection: sa.Connection, since: float = 0.0, until: float = math.inf) -> list[Case]:
    """The tasks whose first attempt began within these times (seconds since 1970), in the order of their rows."""
    task, attempt, outcome = tables.TASK.c, tables.ATTEMPT.c, tables.OUTCOME.c
    late = sa.select(attempt.task).where(attempt.at >= since)  # what began since then ended since then

    def within(wanted: sa.Select[Any], column: sa.ColumnElement[str]) -> sa.CursorResult[Any]:
        asked = wanted.where(column.in_(late)) if since else wanted
        return connection.execute(asked.execution_options(yield_per=1000))

    rows = within(sa.select(task.id, task.name, task.data, task.key).order_by(task.seq), task.id)
    found = {row.id: Case(row.id, row.name, row.data, row.key) for row in rows}
    names = [column for column in Call.__dataclass_fields__ if column != "why"]
    calls = sa.select(*(attempt[name] for name in names), attempt.task, attempt.unknown).order_by(attempt.seq)
    for row in within(calls, attempt.task):
        said = row._asdict()
        case, unknown = said.pop("task"), json.loads(said.pop("unknown"))
        why = Unknown(unknown["amount"]) if "amount" in unknown else None
        kind, status = Kind(said.pop("kind")), Status(said.pop("status"))
        found.setdefault(case, Case(case)).calls.append(Call(**said, kind=kind, status=status, why=why))
    for row in within(sa.select(tables.OUTCOME).order_by(outcome.seq), outcome.task):
        found.setdefault(row.task, Case(row.task)).find(Judge(row.judge), Verdict(row.verdict), row.attempt)
    return [case for case in found.values() if case.calls and since <= min(c.started for c in case.calls) < until]


def tally(cases: Iterable[Case]) -> list[Tally]:
    """Count by class and option, in the order they first appeared."""
    calls: dict[tuple[str, ...], list[Call]] = {}
    verdicts: dict[tuple[str, ...], list[bool]] = {}
    for case in cases:
        for call in case.calls:
            if call.kind is Kind.GENERATE:
                place = (case.name, *option(call))
                calls.setdefault(place, []).append(call)
                verdict = case.verdict_on(call)
                if verdict is not None:
                    verdicts.setdefault(place, []).append(verdict is Verdict.ACCEPTED)
    return [_tally(key, made, verdicts.get(key, [])) for key, made in calls.items()]


def option(call: Call) -> tuple[str, str, str, str]:
    """What a router can choose again."""
    return call.tier, call.model, call.thinking, call.recipe


def _tally(key: tuple[str, ...], made: list[Call], verdicts: list[bool]) -> Tally:
    currencies = [call.currency for call in made if call.amount is not None and call.currency]
    usual = max(set(currencies), key=currencies.count) if currencies else ""
    costs = [call.amount for call in made if call.amount is not None and call.currency in ("", usual)]
    name, tier, model, thinking, recipe = key
    mean = math.fsum(costs) / len(costs) if costs else None
    accepted = sum(verdicts)
    return Tally(name, tier, model, thinking, recipe, accepted, len(verdicts) - accepted, len(made), mean)
