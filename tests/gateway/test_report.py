"""Statistics held to their laws, and to a truth that is known."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwench.errors import UsageError
from qwench.gateway import words
from qwench.gateway.history import Call, Case
from qwench.gateway.records import Judge, Kind, Status, Verdict
from qwench.gateway.report import Estimate, Spent, make_report, per_completed, wilson
from qwench.gateway.usage import Unknown
from tests.gateway.books import NOVEMBER

NUMBERS = itertools.count()


def call(amount: float | None = 0.01, tier: str = "premium", **said: object) -> Call:
    known = Call(
        id=f"a{next(NUMBERS)}",
        kind=Kind.GENERATE,
        tier=tier,
        provider="shop",
        model=f"{tier}-model",
        thinking="off",
        recipe="",
        status=Status.COMPLETED,
        started=NOVEMBER,
        took=1.0,
        input=100,
        output=10,
        amount=amount,
        marginal=amount,
        currency="USD" if amount is not None else "",
        why=None if amount is not None else Unknown.NOT_REPORTED,
    )
    return replace(known, **said)  # type: ignore[arg-type]


def case(*calls: Call, accepted: bool | None = True, name: str = "code") -> Case:
    verdict = None if accepted is None else Verdict.ACCEPTED if accepted else Verdict.REJECTED
    return Case(
        f"t{next(NUMBERS)}", name, calls=list(calls) or [call()], verdict=verdict, judge=Judge.TEST if verdict else None
    )


COSTS = st.lists(st.tuples(st.floats(1e-6, 10.0), st.booleans()), min_size=1, max_size=60)


def estimate(tasks: list[tuple[float, bool]]) -> Estimate | None:
    return per_completed([cost for cost, _ in tasks], [done for _, done in tasks], np.random.default_rng(0))


@settings(deadline=None, max_examples=60)
@given(COSTS)
def test_the_cost_of_a_completed_task_is_everything_spent_over_what_was_completed(
    tasks: list[tuple[float, bool]],
) -> None:
    found, completed = estimate(tasks), sum(done for _, done in tasks)
    if not completed:
        assert found is None
        return
    assert found is not None
    assert found.value == pytest.approx(math.fsum(cost for cost, _ in tasks) / completed)
    if len(tasks) > 1:
        assert found.low is not None
        assert found.low <= found.value * (1 + 1e-9)
        assert found.high is None or found.high >= found.value * (1 - 1e-9)


@settings(deadline=None, max_examples=40)
@given(COSTS, st.floats(0.01, 100.0))
def test_dearer_prices_scale_the_estimate_and_its_interval(tasks: list[tuple[float, bool]], factor: float) -> None:
    found, scaled = estimate(tasks), estimate([(cost * factor, done) for cost, done in tasks])
    if found is None or scaled is None:
        assert found is scaled
        return
    for one, other in ((found.value, scaled.value), (found.low, scaled.low), (found.high, scaled.high)):
        assert (one is None) == (other is None)
        assert one is None or other == pytest.approx(one * factor)


@settings(deadline=None, max_examples=40)
@given(COSTS)
def test_a_failure_more_never_makes_completed_tasks_cheaper(tasks: list[tuple[float, bool]]) -> None:
    found, worse = estimate(tasks), estimate([*tasks, (0.5, False)])
    assert (found is None) == (worse is None)
    assert found is None or (worse is not None and worse.value > found.value)


@given(st.integers(0, 500), st.integers(1, 500))
def test_a_share_lies_in_its_interval_which_never_is_a_point(hits: int, trials: int) -> None:
    found = wilson(min(hits, trials), trials)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1
    assert found.high > found.low


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Tasks of known mean cost and completion; 200 reports of 60 tasks. A bootstrap is a little narrow at that size."""
    random = np.random.default_rng(7)
    hits, truth = 0, 0.02 / 0.6
    for _ in range(200):
        costs, done = random.exponential(0.02, 60), random.random(60) < 0.6
        found = per_completed(costs.tolist(), done.tolist(), random)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth <= found.high
    assert 0.89 <= hits / 200 <= 0.99


def test_everything_spent_on_a_task_counts_under_the_option_that_answered_it() -> None:
    task = case(
        call(0.01, "own", status=Status.FAILED),
        call(0.002, "own", kind=Kind.ROUTE),
        call(0.5, "premium"),
        call(0.03, "own", kind=Kind.VERIFY),
    )
    report = make_report([task])
    (line,) = next(grouping.lines for grouping in report.groupings if grouping.by == ("tier",))
    assert line.name == ("premium",)
    assert line.cost is not None
    assert line.cost.value == pytest.approx(0.542)
    assert line.cost.low is None, "one task has no interval"
    assert {(flow.kind, flow.tier): flow.spent.known for flow in report.flows} == {
        ("generate", "own"): 0.01,
        ("route", "own"): 0.002,
        ("generate", "premium"): 0.5,
        ("verify", "own"): 0.03,
    }


def test_what_is_unknown_is_never_a_number() -> None:
    report = make_report([case(call(0.01)), case(call(None))])
    assert report.total.cost is None
    assert report.total.at_least is not None
    assert report.total.at_least.value == pytest.approx(0.005)
    assert report.total.spent == Spent(0.01, 1)
    assert words.cost(report.total, "USD").startswith("≥ $0.005")
    assert report.unknown == {"not reported": 1}
    nothing = make_report([case(call(None))])
    assert words.cost(nothing.total, "USD") == words.spent(nothing.total.spent, "USD") == "unknown"


def test_tasks_without_a_verdict_count_neither_way() -> None:
    decided = [case(call(0.01)), case(call(0.03), accepted=False)]
    report = make_report([*decided, case(call(5.0), accepted=None)])
    assert (report.total.tasks, report.total.decided, report.total.accepted) == (3, 2, 1)
    assert report.total.cost is not None
    assert report.total.cost.value == pytest.approx(0.04)
    assert report.total.wasted == pytest.approx(0.75)
    assert report.total.spent.known == pytest.approx(5.04)
    assert any("1 of 3 tasks have no verdict" in remark for remark in words.remarks(report))


def test_currencies_are_not_added_up() -> None:
    tasks = [case(call(0.01)), case(call(0.01)), case(call(9.0, currency="EUR")), case(call(0.0, currency=""))]
    report = make_report(tasks)
    assert (report.currency, report.foreign) == ("USD", {"EUR": 1})
    assert report.total.spent == Spent(0.02, 1)
    assert make_report(tasks, currency="EUR").total.spent == Spent(9.0, 2)


def test_groups_may_be_joined_and_unknown_dimensions_are_named() -> None:
    tasks = [case(call(tier=tier), name=name) for tier in ("own", "premium") for name in ("code", "")]
    (grouping,) = make_report(tasks, by=["class", "tier"]).groupings
    assert [line.name for line in grouping.lines] == sorted([(n, t) for n in ("code", "–") for t in ("own", "premium")])
    with pytest.raises(UsageError, match="--by color is no way to group tasks; use class"):
        make_report(tasks, by=["color"])


def test_what_routing_saved_is_found_where_the_truth_is_known() -> None:
    """Two classes: own hardware does the easy one for a tenth, and fails at the hard one, which went to premium."""
    random = np.random.default_rng(3)

    def some(name: str, tier: str, cost: float, share: float, count: int) -> list[Case]:
        return [case(call(cost, tier), accepted=bool(random.random() < share), name=name) for _ in range(count)]

    tasks = [
        *some("easy", "own", 0.01, 0.9, 400),
        *some("easy", "premium", 0.10, 0.9, 40),
        *some("hard", "premium", 0.10, 0.8, 200),
        *some("hard", "own", 0.01, 0.02, 40),
    ]
    premium, own = sorted(make_report(tasks).comparisons, key=lambda each: each.tier != "premium")
    assert (premium.covered, premium.of) == (680, 680)
    assert premium.saved is not None
    assert premium.saved.low is not None
    assert premium.saved.low > 0, "routing was cheaper for each completed task"
    assert own.completion is not None
    assert own.routed_completion is not None
    assert own.completion < own.routed_completion - 0.15, "and own hardware alone would have completed less"
    expected = 0.10 / ((440 * 0.9 + 240 * 0.8) / 680)
    assert premium.cost is not None
    assert premium.cost.value == pytest.approx(expected, rel=0.1)


def test_a_tier_without_a_record_in_a_class_is_not_compared_there() -> None:
    tasks = [case(call(tier="own"), name="easy") for _ in range(9)] + [case(call(), name="hard") for _ in range(9)]
    for each in make_report(tasks).comparisons:
        assert (each.covered, each.of) == (9, 18)
    few = [case(call(tier="own")) for _ in range(9)] + [case(call()) for _ in range(4)]
    premium = make_report(few).comparisons[1]
    assert (premium.tier, premium.covered, premium.saved) == ("premium", 0, None)
    assert words.saved(premium, "USD") == "unknown"


def test_an_empty_ledger_is_a_report() -> None:
    report = make_report([])
    assert (report.total.tasks, report.total.cost, report.first) == (0, None, None)
    assert words.window(report) == "nothing yet"


def test_the_same_ledger_gives_the_same_report() -> None:
    tasks = [case(call(0.01 * number), accepted=number % 3 > 0) for number in range(20)]
    assert make_report(tasks) == make_report(tasks)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.0, "$0.00"),
        (0.0123456, "$0.0123"),
        (0.000001234, "$1.23e-6"),
        (12.345, "$12.35"),
        (1234.5, "$1,234.50"),
        (-0.5, "−$0.500"),
    ],
)
def test_money_has_three_digits_and_is_never_rounded_to_nothing(value: float, told: str) -> None:
    assert words.money(value, "USD") == told


def test_money_of_other_countries() -> None:
    assert words.money(2.0, "EUR") == "€2.00"
    assert words.money(2.0, "CHF") == "2.00 CHF"
