"""What tokens cost: the worked examples of the analysis, laws of use, and unknown that stays unknown."""

from __future__ import annotations

import pytest

from qwench.plan import trends, words
from qwench.plan.cost import (
    MILLION,
    Price,
    Task,
    Terms,
    break_even,
    completed,
    hourly,
    marginal,
    own_task,
    per_million,
)
from qwench.plan.hardware import Cell, Machine, load_machines
from qwench.plan.span import Span

MACHINES, TERMS = load_machines(), Terms()


def machine(**cells: float) -> Machine:
    return Machine("x", "X", "gpu", {name: Cell(Span.of(value), "s", "2026") for name, value in cells.items()})


def test_a_rented_machine_costs_its_rent_over_its_use() -> None:
    """8 H200 at $4.06: $0.90 a million at 10,000 tokens/s, 3.01 at 30 %, 9.02 at 10 %."""
    for use, dollars in ((1.0, 0.90), (0.3, 3.01), (0.1, 9.02)):
        cost = per_million(MACHINES["8x-h200"], TERMS, Span.of(10_000), use)
        assert cost is not None
        assert cost.low == cost.high == pytest.approx(dollars, abs=0.01)
    assert marginal(MACHINES["8x-h200"], TERMS, Span.of(10_000)) == Span.of(0)


def test_a_bought_machine_costs_what_is_written_off_and_its_power() -> None:
    """M3 Ultra at $7,600 and 270 W, 39 tokens/s: energy alone $0.38, at full use 2.03."""
    mac = MACHINES["mac-studio-m3-ultra-256"]
    energy, full = marginal(mac, TERMS, Span.of(39)), per_million(mac, TERMS, Span.of(39), 1.0)
    assert energy is not None
    assert energy.high == pytest.approx(0.38, abs=0.01)
    assert full is not None
    assert full.low == full.high == pytest.approx(2.03, abs=0.01)


def test_less_use_is_dearer_tokens_and_unknown_idle_power_is_a_span() -> None:
    box = machine(memory_gb=24, price_usd=2000, watts=400)
    costs = [per_million(box, TERMS, Span.of(50), use) for use in (1.0, 0.5, 0.1)]
    assert all(cost is not None for cost in costs)
    lows = [cost.low for cost in costs if cost]
    assert lows == sorted(lows)
    assert costs[1] is not None
    assert not costs[1].exact
    known = per_million(machine(memory_gb=24, price_usd=2000, watts=400, idle_watts=40), TERMS, Span.of(50), 0.5)
    assert known is not None
    assert known.exact
    assert costs[1].low < known.low < costs[1].high


@pytest.mark.parametrize("lacks", ["price_usd", "watts"])
def test_what_nobody_knows_makes_no_cost(lacks: str) -> None:
    cells = {"memory_gb": 24.0, "price_usd": 2000.0, "watts": 400.0}
    del cells[lacks]
    box = machine(**cells)
    assert hourly(box, TERMS, 1.0) is None
    assert per_million(box, TERMS, Span.of(10), 1.0) is None
    assert break_even(box, TERMS, Span.of(10), Span.of(3)) is None
    assert (marginal(box, TERMS, Span.of(10)) is None) == (lacks == "watts")


@pytest.mark.parametrize("price", [1.0, 3.0])
def test_at_break_even_both_cost_the_same(price: float) -> None:
    box = machine(memory_gb=24, price_usd=2000, watts=400, idle_watts=40)
    use = break_even(box, TERMS, Span.of(200), Span.of(price))
    assert use is not None
    assert use.exact
    own = per_million(box, TERMS, Span.of(200), use.low)
    assert own is not None
    assert own.low == pytest.approx(price)


def test_8_h200_win_above_30_percent_and_one_stream_at_home_never() -> None:
    use = break_even(MACHINES["8x-h200"], TERMS, Span.of(10_000), Span(3.0, 3.6))
    assert use is not None
    assert 0.24 < use.low < use.high < 0.31
    home = break_even(MACHINES["epyc-9005-768-rtx-pro-6000"], TERMS, Span.of(22.5), Span(3.0, 3.6))
    assert home is not None
    assert words.share(home) == "never"


@pytest.mark.parametrize(
    ("prices", "dollars"), [((0.26, 1.56), 0.0192), ((0.40, 2.40), 0.0295), ((2.50, 15.0), 0.0246)]
)
def test_a_completed_task_pays_for_the_failures(prices: tuple[float, float], dollars: float) -> None:
    """CodeRouterBench: 21.0 % of 2,546 tokens solved, or 23.1 % of 337 by the dear model."""
    price = Price("m", "o", Span.of(prices[0]), Span.of(prices[1]), "s", "2026")
    task = Task(257, 337, 0.231) if prices[0] > 1 else Task(257, 2546, 0.210)
    found = completed(price.task(task), task)
    assert found is not None
    assert found.low == pytest.approx(dollars, rel=0.03)
    assert completed(price.task(task), Task(257, 2546)) is None


def test_an_attempt_is_paid_by_the_time_it_takes() -> None:
    assert own_task(Span.of(3.6), Span.of(100), Span.of(1000), Task(2000, 500)) == Span.of(0.007)
    assert own_task(Span.of(3.6), Span.of(100), None, Task(2000, 500)) is None
    assert MILLION == 1e6


def test_waiting_is_a_span_that_holds_the_published_rates() -> None:
    """3.5 months of doubling are 3.28 times in six months, 3.3 are 3.53; a quarter of the price needs 3.0."""
    found = trends.wait(397e9, 6)
    assert found.fewer.low < 3.28
    assert found.fewer.high == pytest.approx(4.0)
    assert found.parameters.low == pytest.approx(397e9 / 4)
    assert trends.density(26).low < 172 < trends.density(26).high


def test_atlas_is_what_was_published_and_for_languages_of_qwen() -> None:
    assert [round(each, 2) for each in trends.languages(2)] == [1.18, 1.66, 1.96]
    assert [round(each, 2) for each in trends.languages(201 / 119)] == [1.14, 1.46, 1.66]


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (words.span(Span(98.9, 126)), "98.9–126"),
        (words.span(None), "unknown"),
        (words.span(Span.of(1792)), "1,790"),
        (words.dollars(Span(1999, 5000)), "$1,999–5,000"),
        (words.dollars(Span(0.0078, 0.0093)), "$0.0078–0.0093"),
        (words.slack(Span(0.076, 0.11)), "$0.076–0.11 (energy alone)"),
        (words.slack(Span.of(0.0)), "nothing (the rent is paid anyway)"),
        (words.slack(None), "unknown"),
        (words.share(Span(0.001, 0.02)), "<1%–2%"),
        (words.share(Span(0.001, 0.002)), "<1%"),
        (words.share(Span(1.5, float("inf"))), "never"),
        (words.share(Span(0.5, float("inf"))), "50%–never"),
        (words.tokens(32768), "32k"),
        (words.tokens(2**20), "1M"),
        (words.size(2.5e9), "2.50 GB"),
    ],
)
def test_quantities_as_people_read_them(told: str, text: str) -> None:
    assert told == text
