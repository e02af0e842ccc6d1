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
    """One task. ``verdict`` None: nobody found anything yet."""

    id: str
    name: str = ""
    data: str = ""
    key: str = ""
    calls: list[Call] = field(default_factory=list)
    verdict: Verdict | None = None
    judge: Judge | None = None
    answered_by: str = ""  # the attempt that the verdict names

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


@dataclass(frozen=True)
class Tally:
    """How one option fared in one class of tasks.

    Tasks count under the option that answered them, as ACCEPTED or not; those without a verdict are in neither.
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
        told, judge = found.setdefault(row.task, Case(row.task)), Judge(row.judge)
        if told.judge is None or TRUST[judge] <= TRUST[told.judge]:
            told.verdict, told.judge, told.answered_by = Verdict(row.verdict), judge, row.attempt
    return [case for case in found.values() if case.calls and since <= min(c.started for c in case.calls) < until]


def tally(cases: Iterable[Case]) -> list[Tally]:
    """Count by class and option, in the order they first appeared."""
    calls: dict[tuple[str, ...], list[Call]] = {}
    verdicts: dict[tuple[str, ...], list[bool]] = {}
    for case in cases:
        for call in case.calls:
            if call.kind is Kind.GENERATE:
                calls.setdefault((case.name, *option(call)), []).append(call)
        answer = case.answer
        if case.verdict is not None and answer is not None:
            verdicts.setdefault((case.name, *option(answer)), []).append(case.accepted)
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
