"""What completed tasks cost, and the share that was completed: by class, tier, model, thinking; what routing saved.

Statistics only. A task counts under the option whose answer was taken, with everything that was spent on it: failed
attempts, checks, routing. Costs per completed task are ratios of sums over tasks with a verdict; their intervals are
bootstrapped over tasks, those of shares are Wilson's, which stay honest where everything or nothing succeeded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from qwench.errors import UsageError
from qwench.gateway.history import Call, Case
from qwench.gateway.records import Kind, Status

RESAMPLES = 1000
AT_ONCE = 2**20  # draws that lie in memory together
LEVEL = 0.95
Z = 1.959964  # of the normal distribution at that level
ENOUGH = 5  # tasks with a verdict in a class, from which on a tier's record there is one
UNNAMED = "–"

Array = NDArray[np.float64]


def _of_answer(name: str) -> Callable[[Case], str]:
    return lambda case: getattr(case.answer, name) if case.answer is not None else ""


DIMENSIONS: dict[str, Callable[[Case], str]] = {
    "class": lambda case: case.name,
    "tier": _of_answer("tier"),
    "model": _of_answer("model"),
    "thinking": _of_answer("thinking"),
    "provider": _of_answer("provider"),
    "recipe": _of_answer("recipe"),
    "data": lambda case: case.data,
    "key": lambda case: case.key,
}
USUAL = ("class", "tier", "model", "thinking")


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; ``high`` None has no upper end, both None: too few tasks for one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Spent:
    """``known``: the sum of what is known. ``unknown``: attempts of unknown cost; with them it is at least that."""

    known: float
    unknown: int = 0


@dataclass(frozen=True)
class Line:
    """One group of tasks. ``decided``: those with a verdict; only they count towards completion and its cost."""

    name: tuple[str, ...]
    tasks: int
    decided: int
    accepted: int
    attempts: int
    spent: Spent
    decided_spent: Spent
    wasted: float | None  # the share of what was spent on decided tasks that went to those not accepted
    completion: Estimate | None
    cost: Estimate | None  # for a completed task; None where none was, or where ``decided_spent`` has unknowns
    at_least: Estimate | None  # what is known of it then


@dataclass(frozen=True)
class Grouping:
    """The tasks by some dimensions."""

    by: tuple[str, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Flow:
    """Where money went, attempt by attempt."""

    kind: str
    tier: str
    model: str
    attempts: int
    failed: int
    input: int
    output: int
    spent: Spent


@dataclass(frozen=True)
class Comparison:
    """Had every task of these classes gone to ``tier``, judged by its own record in the same classes.

    ``covered``: tasks in the classes where the tier has a record, of those ``of`` that have a verdict and a known cost;
    the other numbers are about these.
    ``saved``: what a completed task would have cost more there than it did.
    """

    tier: str
    covered: int
    of: int
    cost: Estimate | None
    completion: float | None
    routed_cost: float | None
    routed_completion: float | None
    saved: Estimate | None


@dataclass(frozen=True)
class Report:
    """``currency``: of all amounts; attempts in another one are unknown here and counted in ``foreign``."""

    currency: str
    total: Line
    groupings: tuple[Grouping, ...]
    flows: tuple[Flow, ...]
    comparisons: tuple[Comparison, ...]
    days: tuple[tuple[str, dict[str, float]], ...]  # UTC day -> tier -> what was spent
    unknown: dict[str, int]  # why costs are unknown
    foreign: dict[str, int]
    judges: dict[str, int]
    first: float | None
    last: float | None


def make_report(cases: Sequence[Case], by: Sequence[str] = (), currency: str = "", seed: int = 0) -> Report:
    """Count and estimate. ``by``: one grouping by these dimensions together; without, one by each of the usual.

    Every interval is drawn from ``seed`` anew, so the same tasks have the same interval wherever they are shown.
    """
    for name in by:
        if name not in DIMENSIONS:
            raise UsageError(f"--by {name} is no way to group tasks; use {', '.join(DIMENSIONS)}.", param="by")
    calls = [call for case in cases for call in case.calls]
    currencies = Counter(call.currency for call in calls if call.currency and call.amount is not None)
    used = currency or (currencies.most_common(1)[0][0] if currencies else "USD")
    groups = [tuple(by)] if by else [(name,) for name in USUAL]
    began = [call.started for call in calls]
    return Report(
        currency=used,
        total=_line(("all",), cases, used, seed),
        groupings=tuple(_grouping(cases, group, used, seed) for group in groups),
        flows=_flows(calls, used),
        comparisons=_comparisons(cases, used, seed),
        days=_days(calls, used),
        unknown=dict(Counter(call.why.value for call in calls if call.amount is None and call.why is not None)),
        foreign={name: count for name, count in currencies.items() if name != used},
        judges=dict(Counter(case.judge.value for case in cases if case.judge is not None)),
        first=min(began, default=None),
        last=max(began, default=None),
    )


def wilson(hits: int, trials: int) -> Estimate | None:
    """A share with its interval."""
    if not trials:
        return None
    share, z2 = hits / trials, Z * Z
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    return Estimate(share, max(middle - half, 0.0), min(middle + half, 1.0))


def per_completed(costs: Sequence[float], accepted: Sequence[bool], random: np.random.Generator) -> Estimate | None:
    """What was spent over what was completed; None where nothing was."""
    completed = sum(accepted)
    if not completed:
        return None
    value = math.fsum(costs) / completed
    spent, done = _resampled(np.array([costs, accepted], dtype=float), random)
    return Estimate(value, *_ends(_ratio(spent, done))) if len(costs) > 1 else Estimate(value)


def _resampled(values: Array, random: np.random.Generator, rounds: int = RESAMPLES) -> Array:
    """Sums of each row of ``values`` (quantities, tasks) over tasks drawn with replacement: (quantities, rounds)."""
    count = values.shape[1]
    at_once = max(AT_ONCE // count, 1)
    drawn = (random.integers(0, count, (min(at_once, rounds - done), count)) for done in range(0, rounds, at_once))
    return np.concatenate([values[:, each].sum(axis=2) for each in drawn], axis=1)


def _ratio(spent: Array, done: Array) -> Array:
    """Infinite where nothing was completed."""
    return np.divide(spent, done, out=np.full_like(spent, np.inf), where=done > 0)


def _ends(samples: Array) -> tuple[float | None, float | None]:
    """The middle 95 % of them; an infinite end is none."""
    ordered = np.sort(samples)
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return (float(low) if math.isfinite(low) else None, float(high) if math.isfinite(high) else None)


def _known(call: Call, currency: str) -> float | None:
    """What the call cost in this currency. Nothing is nothing in each."""
    return call.amount if call.currency == currency or call.amount == 0 else None


def _spent(calls: Iterable[Call], currency: str) -> Spent:
    amounts = [_known(call, currency) for call in calls]
    return Spent(math.fsum(each for each in amounts if each is not None), amounts.count(None))


def _cost(case: Case, currency: str) -> float:
    return _spent(case.calls, currency).known


def _line(name: tuple[str, ...], cases: Sequence[Case], currency: str, seed: int) -> Line:
    decided = [case for case in cases if case.verdict is not None]
    costs, accepted = [_cost(case, currency) for case in decided], [case.accepted for case in decided]
    known = per_completed(costs, accepted, np.random.default_rng(seed))
    decided_spent = _spent((call for case in decided for call in case.calls), currency)
    whole = math.fsum(costs)
    lost = math.fsum(cost for cost, done in zip(costs, accepted, strict=True) if not done)
    return Line(
        name=name,
        tasks=len(cases),
        decided=len(decided),
        accepted=sum(accepted),
        attempts=sum(len(case.calls) for case in cases),
        spent=_spent((call for case in cases for call in case.calls), currency),
        decided_spent=decided_spent,
        wasted=lost / whole if whole else None,
        completion=wilson(sum(accepted), len(decided)),
        cost=None if decided_spent.unknown else known,
        at_least=known if decided_spent.unknown else None,
    )


def _grouping(cases: Sequence[Case], by: tuple[str, ...], currency: str, seed: int) -> Grouping:
    groups: dict[tuple[str, ...], list[Case]] = {}
    for case in cases:
        groups.setdefault(tuple(DIMENSIONS[name](case) or UNNAMED for name in by), []).append(case)
    lines = [_line(name, groups[name], currency, seed) for name in sorted(groups)]
    return Grouping(by, tuple(lines))


def _flows(calls: Iterable[Call], currency: str) -> tuple[Flow, ...]:
    groups: dict[tuple[str, str, str], list[Call]] = {}
    for call in calls:
        groups.setdefault((call.kind.value, call.tier, call.model), []).append(call)
    flows = [
        Flow(
            *name,
            attempts=len(made),
            failed=sum(call.status is not Status.COMPLETED for call in made),
            input=sum(call.input or 0 for call in made),
            output=sum(call.output or 0 for call in made),
            spent=_spent(made, currency),
        )
        for name, made in groups.items()
    ]
    return tuple(sorted(flows, key=lambda flow: -flow.spent.known))


def _days(calls: Iterable[Call], currency: str) -> tuple[tuple[str, dict[str, float]], ...]:
    days: dict[str, dict[str, float]] = {}
    for call in calls:
        tiers = days.setdefault(f"{datetime.fromtimestamp(call.started, UTC):%Y-%m-%d}", {})
        tiers[call.tier] = tiers.get(call.tier, 0.0) + (_known(call, currency) or 0.0)
    return tuple(sorted(days.items()))


def _pure(case: Case) -> str:
    """The one tier that answered this task, or none."""
    tiers = {call.tier for call in case.calls if call.kind is Kind.GENERATE}
    return tiers.pop() if len(tiers) == 1 else ""


def _comparisons(cases: Sequence[Case], currency: str, seed: int) -> tuple[Comparison, ...]:
    decided = [case for case in cases if case.verdict is not None and not _spent(case.calls, currency).unknown]
    tiers = sorted({_pure(case) for case in decided} - {""})
    return tuple(_compare(decided, tier, currency, seed) for tier in tiers) if len(tiers) > 1 else ()


def _compare(decided: Sequence[Case], tier: str, currency: str, seed: int) -> Comparison:
    """Class by class, every task at the mean cost and completion of those this tier answered alone."""
    classes: dict[str, list[Case]] = {}
    for case in decided:
        classes.setdefault(case.name, []).append(case)
    routed, always = [], []
    for members in classes.values():
        own = [case for case in members if _pure(case) == tier]
        if len(own) >= ENOUGH:
            routed.append(_values(members, currency))
            always.append((len(members), _values(own, currency)))
    covered = sum(count for count, _ in always)
    if not covered:
        return Comparison(tier, 0, len(decided), None, None, None, None, None)
    random = np.random.default_rng(seed)
    sums = np.sum([values.sum(axis=1) for values in routed], axis=0)
    would = np.sum([values.mean(axis=1) * count for count, values in always], axis=0)
    drawn = np.sum([_resampled(values, random) for values in routed], axis=0)
    imagined = np.sum([_resampled(values, random) * (count / values.shape[1]) for count, values in always], axis=0)
    if not sums[1] or not would[1]:
        cost = saved = None
    else:
        there = _ratio(imagined[0], imagined[1])
        cost = Estimate(float(would[0] / would[1]), *_ends(there))
        here = _ratio(drawn[0], drawn[1])
        finite = np.isfinite(there) & np.isfinite(here)
        ends = _ends((there - here)[finite]) if finite.all() else (None, None)
        saved = Estimate(float(would[0] / would[1] - sums[0] / sums[1]), *ends)
    return Comparison(
        tier,
        covered,
        len(decided),
        cost,
        float(would[1] / covered),
        float(sums[0] / sums[1]) if sums[1] else None,
        float(sums[1] / covered),
        saved,
    )


def _values(cases: Sequence[Case], currency: str) -> Array:
    """(cost and completion, tasks)"""
    return np.array([[_cost(case, currency), float(case.accepted)] for case in cases]).T
