"""Which answers are the same opinion, and which sums are true. Neither is ever slow, whatever the text."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwench.reason.answers import answer_key
from qwench.reason.arithmetic import equations, expressions, value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("85", "The answer is 85."),
        ("85", "47 and 38 make more than 80.\nAnswer: 85"),
        ("1,200", "1200.0"),
        ("\\boxed{x^{2}}", "So it is \\boxed{x^{2}}"),
        ('{"a": 1, "b": [2]}', '{"b":[2],"a":1}'),
        ("Blue  whale.", "**blue whale**"),
        ("#### -3", "−3"),
    ],
)
def test_one_opinion(one: str, other: str) -> None:
    assert answer_key(one) == answer_key(other) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("85", "86"),
        ("red apple 3", "green apple 3"),
        ("1.5", "15"),
        ("{}", "[]"),
        ("the answer is 1", "2"),
        ("1/2", "12"),
    ],
)
def test_two_opinions(one: str, other: str) -> None:
    assert answer_key(one) != answer_key(other)


def test_no_opinion_and_what_is_compared() -> None:
    assert answer_key(" \n") is None
    assert answer_key("no number", "number") is None
    assert answer_key("first 3, then 4.50", "number") == "9/2"
    assert answer_key("{broken", "json") is None
    assert answer_key("The answer is 5", "text") == "the answer is 5"


@given(st.text(max_size=200))
def test_every_text_has_a_key_or_none(text: str) -> None:
    for kind in ("auto", "number", "json", "text"):
        key = answer_key(text, kind)
        assert key is None or key == key.strip() or kind == "json"


def test_true_and_false_equations() -> None:
    text = "3 + 4 = 7, 2*3=7. And 1,200 + 3 = 1,203; (2+3)×4 = 20; 0.1+0.2=0.3; 7 x 6 = 41"
    assert [holds for _, _, holds in equations(text)] == [True, False, True, True, True, False]
    assert [holds for _, _, holds in equations("0+7=7+8=15")] == [True]  # of a running total, its end


def test_what_there_is_to_work_out() -> None:
    assert expressions("What is 47 + 38?") == ["47 + 38"]
    assert expressions("I have 3 apples and 4 pears.") == []
    assert value("2^10") == 1024
    assert value("1/3 + 1/6") == Fraction(1, 2)


@pytest.mark.parametrize(
    "text", ["9**9**9", "1/0", "(" * 200 + "1" + ")" * 200, "__import__", "2**(1/2)", "10**400*1" * 20]
)
def test_what_cannot_be_worked_out_is_none(text: str) -> None:
    assert value(text) is None


@pytest.mark.parametrize(
    "text", ["(" * 30000, "1+" * 15000, "(1)+" * 8000, "(-(1))*" * 5000, "1 x " * 8000, "-(" * 15000]
)
def test_no_text_makes_the_search_slow(text: str) -> None:
    started = time.process_time()
    equations(text)
    expressions(text)
    answer_key(text, "number")
    assert time.process_time() - started < 3
