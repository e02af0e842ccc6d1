"""Classes of tasks, and the posterior's arithmetic."""

from __future__ import annotations

import random
import re

import pytest

from qwench.gateway.classes import Classifier
from qwench.gateway.posterior import Beta, Outcomes
from qwench.gateway.signals import Signals, read_signals
from qwench.gateway.tiers import Option, TaskClass, Tier

SUMS = (
    "What is 3 + 4?",
    "Add 12 and 30.",
    "How much is 7 plus 9?",
    "What do 5 and 6 make together?",
    "Sum 1, 2 and 3.",
)
LETTERS = (
    "Write a letter to my landlord about the heating.",
    "Please draft an email to the school.",
    "Write a polite reply to this message.",
    "Draft a letter of complaint to the bank.",
    "Compose an email asking for a refund.",
)
CLASSES = {
    "tools": TaskClass("tools", 1.0, tools=True),
    "code": TaskClass("code", 1.0, words=("python", "c++"), pattern=re.compile(r"\bdef \w+\(")),
    "sums": TaskClass("sums", 1.0, examples=SUMS),
    "letters": TaskClass("letters", 1.0, examples=LETTERS),
}
GENERAL = TaskClass("general", 0.0)


def signals(text: str, **more: object) -> Signals:
    return read_signals({"messages": [{"role": "user", "content": text}], **more})


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier({**CLASSES, "general": GENERAL}, GENERAL, 0.15)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("What is 8 plus 13?", "sums"),
        ("How much do 4 and 9 make?", "sums"),
        ("Draft an email to my neighbour, please.", "letters"),
        ("Write a letter to the bank.", "letters"),
        ("Explain this Python error", "code"),
        ("Which C++ compiler?", "code"),
        ("def add(a, b): return", "code"),
        ("Who painted the ceiling of that chapel?", "general"),
        ("Pythons are snakes", "general"),
        ("", "general"),
        ("zzz qqq xxx", "general"),
    ],
)
def test_a_request_finds_its_class(classifier: Classifier, text: str, name: str) -> None:
    found = classifier.find(signals(text))
    assert found.task.name == name, found


def test_rules_come_before_likeness_and_the_client_before_both(classifier: Classifier) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert classifier.find(signals("What is 8 plus 13?", tools=tools)).task.name == "tools"
    assert classifier.find(signals("What is 8 plus 13?"), "letters").because == "the client named it"
    wrong = classifier.find(signals("What is 8 plus 13?"), "lettres")
    assert (wrong.task, wrong.because) == (GENERAL, "the client named 'lettres', which is no class")


def test_a_guess_between_two_classes_is_not_made() -> None:
    twins = {"one": TaskClass("one", 1.0, examples=SUMS), "two": TaskClass("two", 1.0, examples=SUMS)}
    found = Classifier(twins, GENERAL, 0.1).find(signals("What is 3 + 4?"))
    assert found.task is GENERAL
    assert "too near" in found.because
    assert [(task.name, share) for task, share in found.shares] == [("one", 0.5), ("two", 0.5)]


def test_of_classes_that_are_near_the_more_like_is_the_more_likely() -> None:
    both = {
        "sums": TaskClass("sums", 1.0, examples=SUMS),
        "letters": TaskClass("letters", 1.0, examples=LETTERS),
    }
    found = Classifier(both, GENERAL).find(signals("Write to the bank what is 7"))
    assert found.task is GENERAL
    (first, more), (_, less) = found.shares
    assert first.name == found.likeness[0][0]
    assert 0.5 < more < 1
    assert more + less == pytest.approx(1)


def test_examples_tell_what_little_likeness_is() -> None:
    """A request need not be more like examples than they are, which share one word of twenty."""
    words = [f"w{number}" for number in range(19)]
    loose = tuple(" ".join(("same", *(f"{word}x{place}" for word in words))) for place in range(40))
    asked = signals(" ".join(("same", *words)))
    kinds = {"loose": TaskClass("loose", 1.0, examples=loose)}
    assert Classifier(kinds, GENERAL).find(asked).task.name == "loose"
    assert Classifier(kinds, GENERAL, 0.5).find(asked).task is GENERAL, "the operator's word counts"
    assert Classifier(kinds, GENERAL).find(signals(" ".join(words))).task is GENERAL
    few = {"loose": TaskClass("loose", 1.0, examples=loose[:5])}
    assert Classifier(few, GENERAL).find(asked).task is GENERAL, "five examples do not tell"


def test_quantiles_are_those_of_the_distribution() -> None:
    """Against draws: the share of draws below a quantile is the quantile's share."""
    rng = random.Random(3)
    for a, b in ((0.5, 0.5), (1, 1), (2, 8), (30, 3), (400, 600)):
        beta = Beta(a, b, 0)
        draws = [rng.betavariate(a, b) for _ in range(4000)]
        for share in (0.05, 0.5, 0.95):
            bound = beta.quantile(share)
            below = sum(draw < bound for draw in draws) / len(draws)
            assert below == pytest.approx(share, abs=0.02), (a, b, share)


def test_the_means_of_answers_fall_back_from_class_to_option_to_the_operators_word() -> None:
    option = Option(Tier("own", "openai", "http://127.0.0.1:1", frozenset(), "own", "qwen"), "m", output=10, seconds=1)
    outcomes = Outcomes()
    assert (outcomes.output("sums", option), outcomes.seconds("sums", option)) == (10, 1)
    outcomes.note("letters", option, 100.0, 4.0)
    assert (outcomes.output("sums", option), outcomes.seconds("sums", option)) == (100, 4)
    outcomes.note("sums", option, None, 2.0)
    assert (outcomes.output("sums", option), outcomes.seconds("sums", option)) == (100, 2)
