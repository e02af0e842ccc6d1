"""Gates and router by themselves: what is closed, what is chosen, and that the numbers are those of the rule."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwench.errors import ModelNotFound, RequestError
from qwench.gateway.conversations import Conversations, Held
from qwench.gateway.gates import BudgetExhausted, DataFinding, Limits, NothingAllowed, data_class
from qwench.gateway.ledger import Tally
from qwench.gateway.posterior import SIZES, Beta, Outcomes, Source, leanings, mixed
from qwench.gateway.prices import Price, Prices
from qwench.gateway.router import Ask, Decision, Router, Weighed, check
from qwench.gateway.signals import read_signals
from qwench.gateway.tiers import (
    Cascade,
    DataClass,
    DataRule,
    Option,
    Owner,
    Routing,
    Settings,
    TaskClass,
    Tier,
)
from qwench.server.keys import Key

EVERYTHING = frozenset(DataClass)
OWN = Tier("own", "openai", "http://127.0.0.1:1", EVERYTHING, "own", "qwen")
API = Tier("api", "openai", "https://api.example.com", frozenset({DataClass.PUBLIC}), "api", "effort")
SMALL = Option(OWN, "small", output=100, context=1000)
LARGE = Option(API, "large", output=100, modalities=frozenset({"text", "image"}))
PUBLIC = DataFinding(DataClass.PUBLIC, "a test")
SECRET = DataFinding(DataClass.SECRET, "a test")
SUMS = TaskClass("sums", 0.01, words=("sum",))
GENERAL = TaskClass("general", 0.01)


def price(provider: str, model: str, output: float, *, cached: float | None = None) -> Price:
    return Price(provider, model, 1.0, output, "USD", "test", "2026", cached=cached)


PRICES = Prices((price("own", "small", 1.0), price("api", "large", 50.0, cached=0.1)))


def made(*options: Option, **more: Any) -> Settings:
    classes = {"sums": SUMS, "general": GENERAL}
    named = {option.name: option for option in options}
    tiers = {option.tier.name: option.tier for option in options}
    default = more.pop("default", options[0])
    given = {"classes": classes, "unknown": GENERAL, "routing": Routing(enough=10), **more}
    return Settings(Path("t"), tiers, named, default, **given)


def counts(**seen: tuple[int, int]) -> list[Tally]:
    """Accepted and rejected of small and large in the class of sums."""
    tiers = {"small": "own", "large": "api"}
    return [
        Tally("sums", tiers[name], name, "", "", right, wrong, right + wrong, None)
        for name, (right, wrong) in seen.items()
    ]


def ask(text: str = "the sum of it", **more: Any) -> Ask:
    body = {"messages": [{"role": "user", "content": text}], **more.pop("body", {})}
    return Ask(read_signals(body), more.pop("data", PUBLIC), at=2e9, **more)


def decide(given: Settings, question: Ask, tallies: Sequence[Tally] = ()) -> Decision:
    return Router(given, PRICES, Outcomes(tallies), random.Random(0)).decide(question)


def test_between_two_classes_both_count_as_far_as_they_are_likely() -> None:
    texts = ("Add 3 and 4.", "Add 12 and 30.", "Add 7 and 9.")
    kinds = {name: TaskClass(name, value, examples=texts) for name, value in (("one", 1.0), ("two", 0.5))}
    given = made(SMALL, LARGE, classes={**kinds, "general": GENERAL})
    tallies = [
        Tally(name, tier, model, "", "", right, 20 - right, 20, None)
        for name, tier, model, right in (
            ("one", "own", "small", 4),
            ("one", "api", "large", 16),
            ("two", "own", "small", 10),
            ("two", "api", "large", 12),
        )
    ]
    question = ask("Add 5 and 6.")
    decision = decide(given, question, tallies)
    assert decision.task.task is GENERAL
    assert "are too near" in decision.task.because
    assert decision.value == pytest.approx(0.75)
    assert decision.option == LARGE, "not the default"
    large = decision.weighed[1]
    one, two = ((right + 0.5) / 21 for right in (16, 12))
    assert large.gain == pytest.approx(0.5 * one * 1.0 + 0.5 * two * 0.5 - (large.cost or 0))
    assert large.chance.mean == pytest.approx((one + two) / 2)
    wary = replace(given, routing=Routing(enough=11))
    assert decide(wary, question, tallies).option == LARGE
    assert decide(wary, question, tallies[:2]).option == SMALL, "20 outcomes of a class that is half likely count as 10"


def test_the_greatest_gain_is_chosen_and_the_numbers_are_those_of_the_rule() -> None:
    decision = decide(made(SMALL, LARGE), ask(), counts(small=(10, 10), large=(19, 1)))
    small, large = decision.weighed
    assert small.chance.mean == pytest.approx(10.5 / 21)
    assert small.cost == pytest.approx((question_size() * 1.0 + 100 * 1.0) / 1e6)
    assert small.gain == pytest.approx(small.chance.mean * 0.01 - (small.cost or 0))
    assert (large.gain or 0) < (small.gain or 0), "the dear one gains less at this value"
    assert decision.option == SMALL
    dear = decide(made(SMALL, LARGE), ask(value=1.0), counts(small=(10, 10), large=(19, 1)))
    assert dear.option == LARGE
    assert dear.fallbacks == (SMALL,)


def question_size() -> int:
    return ask().signals.prompt


@pytest.mark.parametrize("large", [(0, 0), (9, 0)])
def test_what_is_not_known_well_enough_is_not_chosen(large: tuple[int, int]) -> None:
    decision = decide(made(SMALL, LARGE), ask(value=100.0), counts(small=(5, 15), large=large))
    assert decision.option == SMALL
    assert decision.weighed[1].note == f"{large[0]} of the 10 outcomes it takes"


def test_an_unknown_class_and_unknown_outcomes_go_to_the_default() -> None:
    tallies = counts(small=(1, 30), large=(30, 1))
    assert decide(made(SMALL, LARGE), ask("hello"), tallies).option == SMALL
    assert decide(made(SMALL, LARGE, default=LARGE), ask("hello"), tallies).option == LARGE
    assert decide(made(SMALL, LARGE, default=LARGE), ask()).option == LARGE


def test_an_unknown_price_is_not_zero() -> None:
    router = Router(
        made(SMALL, LARGE), Prices((PRICES.mine[0],)), Outcomes(counts(small=(5, 15), large=(20, 0))), random.Random(0)
    )
    decision = router.decide(ask(value=100.0))
    assert decision.option == SMALL
    assert decision.weighed[1].note == "its cost is not known"


def test_another_currency_is_no_price() -> None:
    euros = Prices((PRICES.mine[0], replace(PRICES.mine[1], currency="EUR")))
    decision = Router(made(SMALL, LARGE), euros, Outcomes(), random.Random(0)).decide(ask())
    assert decision.weighed[1].cost is None


@pytest.mark.parametrize(
    ("question", "gate", "reason"),
    [
        (ask(data=SECRET), "data", "api may not see secret data, and a test"),
        (ask(limits=Limits(deadline=5.0)), "deadline", "how long it takes is not known; give its model seconds"),
        (ask(limits=Limits(money=0.001, purse="the request")), "budget", "is more than the request has left"),
    ],
)
def test_a_gate_closes_and_says_why(question: Ask, gate: str, reason: str) -> None:
    quick = replace(SMALL, seconds=1.0)
    decision = decide(made(quick, LARGE), question)
    (shut,) = decision.shut
    assert (shut.option, shut.gate) == (LARGE, gate)
    assert reason in shut.reason
    assert decision.option == quick
    assert LARGE not in decision.fallbacks, "a closed option may not stand in"


def test_pictures_long_prompts_and_thinking_close_what_cannot_do_them() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    body = {"messages": [{"role": "user", "content": [picture, {"type": "text", "text": "What is it?"}]}]}
    decision = decide(made(SMALL, LARGE), Ask(read_signals(body), PUBLIC))
    assert [shut.reason for shut in decision.shut] == ["small takes no image"]
    long = decide(made(SMALL, LARGE), ask("word " * 2000))
    assert [shut.gate for shut in long.shut] == ["context"]
    off, on = replace(SMALL, thinking="off"), replace(SMALL, thinking=256)
    wanted = decide(made(off, on), ask(body={"reasoning_effort": "none"}))
    assert (wanted.option, wanted.shut[0].gate) == (off, "thinking")


def test_what_nobody_knows_is_refused_rather_than_sent() -> None:
    body = {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}
    with pytest.raises(NothingAllowed, match="takes no input_audio"):
        decide(made(SMALL, LARGE), Ask(read_signals(body), PUBLIC))


def test_nothing_open_is_refused_with_every_reason() -> None:
    with pytest.raises(NothingAllowed, match="api may not see secret data"):
        decide(made(LARGE), ask(data=SECRET))
    with pytest.raises(BudgetExhausted, match="the day's budget has left"):
        decide(made(LARGE), ask(limits=Limits(money=0.0, purse="the day's budget")))


def test_offline_closes_what_is_not_on_this_machine() -> None:
    router = Router(made(LARGE, SMALL), PRICES, Outcomes(), random.Random(0), offline=True)
    decision = router.decide(ask())
    assert decision.option == SMALL
    assert [(shut.option, shut.gate) for shut in decision.shut] == [(LARGE, "offline")]


@given(
    key=st.sampled_from([None, *DataClass]),
    told=st.sampled_from([None, *DataClass]),
    rule=st.booleans(),
    usual=st.sampled_from(list(DataClass)),
)
@settings(max_examples=60, deadline=None)
def test_the_strictest_voice_decides_the_data_class(
    key: DataClass | None, told: DataClass | None, rule: bool, usual: DataClass
) -> None:
    import re

    rules = (DataRule("r", re.compile("word"), DataClass.PERSONAL),)
    owners: Mapping[str, Owner] = {"ann": Owner(Key("ann", "0" * 64), key)}
    found = data_class(
        made(SMALL, rules=rules, owners=owners, data=usual),
        "ann",
        str(told) if told is not None else None,
        "word" * rule,
    )
    voices = [each for each in (key, told) if each is not None] or [usual]
    assert found.data == max([*voices, *([DataClass.PERSONAL] if rule else [])])


def test_a_header_that_names_no_class_is_refused() -> None:
    with pytest.raises(RequestError, match="x-qwench-data is 'topsecret'; send one of public, internal"):
        data_class(made(SMALL), "", "topsecret", "")


def test_a_client_may_name_an_option_a_tier_or_a_model() -> None:
    router = Router(made(SMALL, LARGE), PRICES, Outcomes(), random.Random(0))
    assert router.decide(ask(model="api")).option == LARGE
    assert router.decide(ask(model="large")).fallbacks == ()
    with pytest.raises(ModelNotFound, match="did you mean own/small"):
        router.decide(ask(model="own/smal"))
    with pytest.raises(NothingAllowed):
        router.decide(ask(model="api/large", data=SECRET))


def cascade(right: float, wrong: float) -> Cascade:
    return Cascade(SMALL, LARGE, "json", right, wrong)


@pytest.mark.parametrize(
    ("small", "right", "wrong", "taken"),
    [
        ((15, 5), 1.0, 0.0, True),
        ((15, 5), 1.0, 1.0, False),  # a check that accepts everything is the cheap option with a detour
        ((1, 19), 1.0, 0.0, True),
        ((0, 40), 1.0, 0.0, False),  # nothing is accepted, so what it costs never pays
    ],
)
def test_a_cascade_is_taken_where_its_check_pays(
    small: tuple[int, int], right: float, wrong: float, taken: bool
) -> None:
    cheap = Prices((price("own", "small", 1.0), price("api", "large", 50.0)))
    settings_ = made(SMALL, LARGE, cascades=(cascade(right, wrong),))
    router = Router(settings_, cheap, Outcomes(counts(small=small, large=(19, 1))), random.Random(0))
    decision = router.decide(ask(value=1.0))
    assert (decision.cascade is not None) == taken
    streamed = router.decide(ask(value=1.0, body={"stream": True}))
    assert streamed.cascade is None, "what is passed on as it comes cannot be checked first"


@given(one=st.floats(0, 1), two=st.floats(0, 1), right=st.floats(0, 1), wrong=st.floats(0, 1), value=st.floats(0, 10))
@settings(max_examples=200, deadline=None)
def test_a_cascade_never_completes_more_than_its_better_option(
    one: float, two: float, right: float, wrong: float, value: float
) -> None:
    def weighed(option: Option, share: float, cost: float) -> Weighed:
        chance = Outcomes().posterior("", replace(option, prior=share, weight=1e6))
        return Weighed(option, chance, cost, None, 0, 0.0)

    found = check(cascade(right, wrong), weighed(SMALL, one, 0.1), weighed(LARGE, two, 1.0), value, None)
    assert found.chance <= max(one, two) + 0.01
    assert 0.1 <= found.cost <= 1.1
    assert (found.accepted > found.pays) == (found.cost < 1.0 - 1e-12) or abs(found.cost - 1.0) < 1e-9


def test_a_conversation_stays_where_its_prompt_is_held_unless_that_costs_too_much() -> None:
    now = [0.0]
    held = Conversations(300, lambda: now[0])
    first = read_signals({"messages": [{"role": "user", "content": "the sum " * 200}]})
    held.note(first, LARGE.name, "sums")
    longer = {"messages": [{"role": "user", "content": "the sum " * 200}, {"role": "assistant", "content": "2"}]}
    longer["messages"].append({"role": "user", "content": "and now?"})
    signals = read_signals(longer)
    found = held.find(signals)
    assert (found.last, found.task, found.cached) == (LARGE.name, "sums", {LARGE.name: first.prompt})
    tallies = counts(small=(20, 0), large=(20, 0))
    roomy = replace(SMALL, context=None)
    routing = Routing(enough=10, stay=0.5)
    staying = Ask(signals, PUBLIC, held=found, at=2e9)
    decision = decide(made(roomy, LARGE, routing=routing), staying, tallies)
    assert decision.task.because == "the conversation began so"
    assert decision.option == LARGE
    assert "it has the conversation" in decision.because
    assert decide(made(roomy, LARGE, routing=Routing(enough=10, stay=0.0)), staying, tallies).option == roomy
    cold = decide(made(roomy, LARGE), replace(staying, held=Held()), tallies)
    assert (decision.weighed[1].cost or 0) < (cold.weighed[1].cost or 0), "what is held is cheaper to read"
    now[0] = 301
    assert held.find(signals).cached == {}


def test_shadow_mode_uses_the_default_and_tells_what_it_would_do() -> None:
    routing = Routing(enough=10, shadow=True)
    decision = decide(made(SMALL, LARGE, routing=routing), ask(value=1.0), counts(small=(1, 19), large=(19, 1)))
    assert (decision.option, decision.shadow) == (SMALL, LARGE.name)


def test_exploring_takes_what_is_least_known_with_the_share_asked_for() -> None:
    routing = Routing(enough=10, explore=0.2)
    router = Router(
        made(SMALL, LARGE, routing=routing), PRICES, Outcomes(counts(small=(20, 0), large=(1, 0))), random.Random(0)
    )
    explored = sum(router.decide(ask()).option == LARGE for _ in range(1000))
    assert 150 < explored < 250


def test_who_rests_is_used_only_when_nobody_else_is_there() -> None:
    router = Router(made(SMALL, LARGE), PRICES, Outcomes(), random.Random(0))
    assert router.decide(ask(), lambda option: option == SMALL).option == LARGE
    assert router.decide(ask(), lambda option: True).option == SMALL


def test_a_prior_counts_until_outcomes_do() -> None:
    hopeful = replace(SMALL, prior=0.9, weight=10.0)
    assert Outcomes().posterior("sums", hopeful).mean == pytest.approx(0.9)
    after = Outcomes(counts(small=(0, 90))).posterior("sums", hopeful)
    assert after.mean == pytest.approx(9 / 100)
    assert after.quantile(0.05) < after.mean < after.quantile(0.95)


def size(found: Sequence[Source]) -> float:
    """How heavily the classes lean, over all that is believed."""
    return math.exp(math.fsum(belief * math.log(size) for belief, _, size in found))


def test_classes_lean_on_one_another_as_far_as_they_are_seen_to_be_alike() -> None:
    def alone(*classes: tuple[int, int]) -> float:
        return size(leanings({"m": classes})["m"])

    same = alone(*[(70, 30)] * 8)
    mixed = alone((80, 20), (60, 40), (75, 25), (55, 45), (70, 30), (85, 15))
    apart = alone((95, 5), (5, 95), (50, 50), (99, 1), (1, 99))
    few = alone((1, 0), (0, 1), (1, 0))
    assert SIZES[0] <= apart < 2 < mixed < 64 < same <= SIZES[-1]
    assert apart < few < same, "little that was seen tells little"


def test_how_alike_classes_are_is_told_by_all_options_and_how_good_by_each() -> None:
    apart = [(95, 5), (5, 95), (50, 50), (99, 1), (1, 99)]
    found = leanings({"one": apart, "two": [(3, 1), (1, 0), (4, 0)]})
    assert size(found["two"]) == pytest.approx(size(found["one"]), rel=0.05)
    assert size(found["two"]) < size(leanings({"two": [(3, 1), (1, 0), (4, 0)]})["two"])
    means = {name: math.fsum(belief * mean for belief, mean, _ in sources) for name, sources in found.items()}
    assert means["one"] < means["two"]
    for sources in found.values():
        assert math.fsum(belief for belief, _, _ in sources) == pytest.approx(1)


def test_two_classes_do_not_lean_on_one_another_and_three_do() -> None:
    def sums(*others: str) -> Beta:
        tallies = [Tally(name, "own", "small", "", "", 40, 20, 60, None) for name in others]
        return Outcomes([*counts(small=(0, 4)), *tallies]).posterior("sums", SMALL)

    assert sums().mean == sums("letters").mean == pytest.approx(0.5 / 5)
    leaning = sums("letters", "code", "chat", "search")
    assert 0.2 < leaning.mean < 0.6, "four failures against what four classes say"
    assert leaning.seen == 4


@given(
    st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.1, 500), st.floats(0.1, 500)), min_size=1, max_size=6),
)
def test_a_mixture_has_the_mean_and_the_variance_of_its_parts(drawn: list[tuple[float, float, float]]) -> None:
    total = math.fsum(share for share, _, _ in drawn)
    parts = [(share / total, Beta(a, b, 0)) for share, a, b in drawn]
    found = mixed(parts)
    mean = math.fsum(share * each.mean for share, each in parts)
    square = math.fsum(share * (each.variance + each.mean**2) for share, each in parts)
    assert found.mean == pytest.approx(mean)
    assert found.variance == pytest.approx(square - mean**2, rel=1e-4, abs=1e-9)
