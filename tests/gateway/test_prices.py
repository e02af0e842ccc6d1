"""No price is invented: what is not known stays unknown, and says in which of three ways."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwench.errors import UsageError
from qwench.gateway.prices import FREE, SHIPPED, Price, Prices, beginning, load_prices, read_prices
from qwench.gateway.usage import MOST, NOTHING, SILENT, Unknown, Usage, anthropic_usage, openai_usage
from qwench.plan.cost import Terms, marginal, per_million
from qwench.plan.hardware import load_machines
from qwench.plan.span import Span
from tests.gateway.books import NOVEMBER

PLAIN = Price("shop", "big", 2.0, 10.0, "USD", "its list", "2026-10")
NOT_REPORTED, NOT_PRICED, NOT_APPLICABLE = Unknown.NOT_REPORTED, Unknown.NOT_PRICED, Unknown.NOT_APPLICABLE


def cost(price: Price, usage: Usage) -> float | Unknown:
    return Prices([price]).charge("shop", "big", usage, NOVEMBER).amount


@pytest.mark.parametrize(
    ("price", "usage", "amount"),
    [
        (PLAIN, Usage(1_000_000, 100_000), 3.0),
        (PLAIN, Usage(1_000_000, 100_000, cached=500_000), 3.0),  # a list without a price for cached asks that of input
        (replace(PLAIN, cached=0.2), Usage(1_000_000, 100_000, cached=500_000), 2.1),
        (replace(PLAIN, cached=0.2), Usage(1_000_000, 0, cached=NOT_APPLICABLE), 2.0),
        (replace(PLAIN, cached=0.2), Usage(1_000_000, 0, cached=NOT_REPORTED), NOT_REPORTED),
        (replace(PLAIN, written=2.5), Usage(1_000_000, 0, written=400_000), 2.2),
        (PLAIN, Usage(1_000_000, 0, written=400_000), NOT_PRICED),
        (PLAIN, SILENT, NOT_REPORTED),
        (PLAIN, Usage(10, NOT_REPORTED), NOT_REPORTED),
        (PLAIN, NOTHING, 0.0),
        (replace(PLAIN, model="other"), Usage(10, 10), NOT_PRICED),
        (replace(PLAIN, date="2026-12"), Usage(10, 10), NOT_PRICED),  # it was not asked yet
    ],
)
def test_a_call_costs_what_the_list_says_or_is_unknown(price: Price, usage: Usage, amount: float | Unknown) -> None:
    found = cost(price, usage)
    assert found is amount if isinstance(amount, Unknown) else found == pytest.approx(amount)


def test_a_call_that_reached_nobody_is_free_at_any_price() -> None:
    assert Prices().charge("nobody", "nothing", NOTHING, NOVEMBER) == FREE


def test_the_newest_price_that_had_begun_counts() -> None:
    prices = Prices(
        [
            replace(PLAIN, date=date, input=value)
            for date, value in (("2026", 1.0), ("2026-11", 3.0), ("2026-10-31", 2.0))
        ]
    )
    for at, value in ((NOVEMBER - 1, 2.0), (NOVEMBER, 3.0), (NOVEMBER - 40 * 86_400, 1.0)):
        found = prices.find("shop", "big", at)
        assert found is not None
        assert found.input == value
    assert prices.find("shop", "big", NOVEMBER - 400 * 86_400) is None


def test_long_calls_have_a_price_of_their_own() -> None:
    prices = Prices([PLAIN, replace(PLAIN, over=1000, input=4.0)])
    for tokens, value in ((1000, 2.0), (1001, 4.0)):
        found = prices.find("Shop", "big", NOVEMBER, tokens)
        assert found is not None
        assert found.input == value


def test_the_users_price_wins_even_where_it_makes_unknown() -> None:
    prices = Prices([replace(PLAIN, date="2026-12")], [PLAIN])
    assert prices.charge("shop", "big", Usage(1, 1), NOVEMBER).amount is NOT_PRICED


@given(st.integers(0, 10**7), st.integers(0, 10**6), st.integers(0, 10**7), st.floats(0, 1000), st.floats(0, 1000))
def test_a_cost_is_never_negative_and_grows_with_the_answer(
    given_: int, made: int, cached: int, into: float, out: float
) -> None:
    price = replace(PLAIN, input=into, output=out, cached=into / 10)
    less, more = cost(price, Usage(given_, made, cached)), cost(price, Usage(given_, made + 1, cached))
    assert isinstance(less, float)
    assert isinstance(more, float)
    assert 0 <= less <= more


ROW = """[[price]]
provider = "shop"
model = "big"
input = 1
output = 2
currency = "USD"
source = "list"
date = "2026-11"
"""


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            'currency = "USD"\n',
            "",
            r"p\.toml, line 1: price\.currency is missing .*a number without a currency is no price",
        ),
        ('"USD"', '"dollars"', r"p\.toml, line 6: price\.currency is 'dollars'; give its three letters"),
        ("input = 1", "input = -1", r"line 4: price\.input is -1; give a number of at least 0"),
        ("input = 1", "inptu = 1", r"line 4: price\.inptu is not known; did you mean input\?"),
        ("output = 2", "output = nan", r"price\.output is nan"),
        ("output = 2\n", "", r"price\.output is missing"),
        ('"2026-11"', '"2026-13"', r"price\.date is '2026-13'; give YYYY"),
        ('source = "list"\n', "", r"price\.source is missing"),
        ("[[price]]", "[price]", r"price must be written as \[\[price\]\]"),
        ("output = 2", "output = 2\nover = 1.5", r"price\.over is 1.5"),
    ],
)
def test_a_mistake_in_a_price_file_is_told_with_its_line(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    path = tmp_path / "p.toml"
    path.write_text(ROW.replace(old, new), encoding="utf-8")
    with pytest.raises(UsageError, match=sentence):
        read_prices(path)


def test_what_a_row_lacks_is_not_told_of_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    lacking = ROW.replace('currency = "USD"\n', "")
    path.write_text(f"{ROW}{lacking}{ROW}", encoding="utf-8")
    with pytest.raises(UsageError, match=r"p\.toml, line 9: price\.currency is missing"):
        read_prices(path)


def test_every_shipped_price_has_a_source_that_is_spelt_out() -> None:
    shipped = load_prices().shipped
    assert shipped
    assert all(len(price.source) > 10 and price.since <= NOVEMBER + 30 * 86_400 for price in shipped)
    assert "unknown, never zero" in SHIPPED.read_text(encoding="utf-8")


OWN = """[[own]]
provider = "own"
model = "nano"
machine = "rtx-5090"
use = 0.3
generates = 200
reads = 4000
currency = "USD"
source = "measured with qwench bench"
date = "2026-11"
"""


def test_own_hardware_costs_what_the_plan_says(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(OWN, encoding="utf-8")
    (price,) = read_prices(path)
    machine = load_machines()["rtx-5090"]
    for rate, average, more in ((4000.0, price.input, 0), (200.0, price.output, 1)):
        planned, energy = per_million(machine, Terms(), Span.of(rate), 0.3), marginal(machine, Terms(), Span.of(rate))
        assert planned is not None
        assert energy is not None
        assert average == planned.high
        assert price.marginal is not None
        assert price.marginal[more] == energy.high
    charged = Prices([price]).charge("own", "nano", Usage(4000, 200), NOVEMBER)
    assert isinstance(charged.amount, float)
    assert isinstance(charged.marginal, float)
    assert 0 < charged.marginal < charged.amount
    assert "RTX 5090" in price.source


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('machine = "rtx-5090"\n', "", "own.machine or hourly is needed"),
        ('"rtx-5090"', '"rtx-5091"', "own.machine is not known.*nearest is rtx-5090"),
        ('"rtx-5090"', '"rtx-4090"', "no known price or power; give hourly instead"),
        ("use = 0.3", "use = 30", "own.use is 30; give a share of the time"),
        ("reads = 4000", "reads = 0", "own.reads is 0; give tokens per second"),
        ('"USD"', '"EUR"', "own.currency must be USD with a machine of the table"),
    ],
)
def test_a_mistake_about_own_hardware_is_told(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(OWN.replace(old, new), encoding="utf-8")
    with pytest.raises(UsageError, match=sentence):
        read_prices(path)


def test_an_hour_of_own_hardware_may_be_told_in_any_currency(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    hourly = OWN.replace('machine = "rtx-5090"', "hourly = 0.36\nenergy = 0.072").replace("USD", "EUR")
    path.write_text(hourly, encoding="utf-8")
    (price,) = read_prices(path)
    assert price.output == pytest.approx(0.36 / (3600 * 0.3 * 200) * 1e6)
    assert price.marginal == pytest.approx((0.072 / (3600 * 4000) * 1e6, 0.072 / (3600 * 200) * 1e6))


@pytest.mark.parametrize(
    ("said", "usage"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 5}, (10, 5, NOT_REPORTED, NOT_REPORTED)),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 4},
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
            (10, 5, 4, 3),
        ),
        (
            {
                "input_tokens": 10,
                "output_tokens": 5,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": 0},
            },
            (10, 5, 0, 0),
        ),
        ({"prompt_tokens": 7, "total_tokens": 7}, (7, 0, NOT_REPORTED, NOT_REPORTED)),  # embeddings
        ({"prompt_tokens": -1, "completion_tokens": "5"}, (NOT_REPORTED, NOT_REPORTED, NOT_REPORTED, NOT_REPORTED)),
        (
            {"prompt_tokens": True, "completion_tokens": MOST + 1},
            (NOT_REPORTED, NOT_REPORTED, NOT_REPORTED, NOT_REPORTED),
        ),
        (
            {"prompt_tokens": 3, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 4}},
            (3, 1, NOT_REPORTED, NOT_REPORTED),
        ),
        (None, (NOT_REPORTED, NOT_REPORTED, NOT_REPORTED, NOT_REPORTED)),
        ("lies", (NOT_REPORTED, NOT_REPORTED, NOT_REPORTED, NOT_REPORTED)),
    ],
)
def test_what_openai_speakers_report(said: object, usage: tuple[int | Unknown, ...]) -> None:
    found = openai_usage(said)
    assert (found.input, found.output, found.cached, found.reasoning) == usage


@pytest.mark.parametrize(
    ("said", "usage"),
    [
        ({"input_tokens": 10, "output_tokens": 5}, (10, 5, NOT_REPORTED, NOT_APPLICABLE)),
        (
            {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 90, "cache_creation_input_tokens": 7},
            (107, 5, 90, 7),
        ),
        (
            {
                "input_tokens": 10,
                "output_tokens": 5,
                "cache_read_input_tokens": 0,
                "cache_creation_input_tokens": 7,
                "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4},
            },
            (17, 5, 0, NOT_PRICED),  # lists here name the price of five minutes
        ),
        ({"output_tokens": 5, "cache_read_input_tokens": 90}, (NOT_REPORTED, 5, 90, NOT_APPLICABLE)),
        ({}, (NOT_REPORTED, NOT_REPORTED, NOT_REPORTED, NOT_APPLICABLE)),
    ],
)
def test_what_anthropic_reports_leaves_out_what_was_cached(said: object, usage: tuple[int | Unknown, ...]) -> None:
    found = anthropic_usage(said)
    assert (found.input, found.output, found.cached, found.written) == usage


@pytest.mark.parametrize("text", ["2026-02-30", "26", "2026-1", "November", ""])
def test_what_is_no_date(text: str) -> None:
    assert beginning(text) is None
