"""The generators: right answers, decided by the seed, evaluation apart from training, tokens as at inference."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random

import pytest
from tokenizers import Tokenizer

import qwench
from qwench.train.data import arithmetic, recall, tools
from qwench.train.data.mix import GENERATORS, LATE, Mixture
from qwench.train.data.sample import Sample, held_out
from qwench.train.encode import Row, disturbed, encode, parts
from qwench.train.suites import Suite, suites

NANO = Path(qwench.__file__).parent / "assets" / "nano"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(NANO / "tokenizer.json"))


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_a_seed_decides_everything(name: str) -> None:
    first, second = ([GENERATORS[name](rng, False) for _ in range(20)] for rng in (Random(4), Random(4)))
    assert first == second


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_training_tokens_are_those_of_the_whole_text(name: str, tokenizer: Tokenizer) -> None:
    rng = Random(9)
    for _ in range(40):
        sample = GENERATORS[name](rng, False)
        row = encode(tokenizer, sample)
        whole = "".join(text for text, _ in parts(sample))
        assert row.ids == tokenizer.encode(whole, add_special_tokens=False).ids
        assert any(row.learn)


def test_slips_change_what_is_read_and_nothing_else() -> None:
    row = Row(list(range(2000)), [index % 4 > 0 for index in range(2000)], list(range(2000)))
    shown = disturbed(row, Random(3), 0.1)
    slips = [index for index, token in enumerate(shown.read) if token != row.ids[index]]
    assert (shown.ids, shown.learn) == (row.ids, row.learn)
    assert all(row.learn[index] for index in slips)
    assert 100 < len(slips) < 200


def test_thoughts_and_answers_are_right() -> None:
    rng = Random(2)
    for index in range(300):
        sign, sizes = (("+", (3, 3)), ("+", (2, 2, 2, 2)), ("*", (2, 2)), ("-", (3, 3)))[index % 4]
        numbers = [arithmetic.number(rng, size) for size in sizes]
        sample = arithmetic.problem(rng, "sum", sign, numbers, True)
        wanted = {"+": sum(numbers), "-": numbers[0] - numbers[1], "*": numbers[0] * numbers[1]}[sign]
        message = sample.messages[-1]
        assert message["content"] == str(wanted)
        assert message["reasoning_content"].endswith(f"={wanted}")
        for left, right in re.findall(r"(?<![\d=*+-])(\d[\d*+-]*)=(-?\d+)(?=\n|$)", message["reasoning_content"]):
            if left.count("+") + left.count("*") + left.count("-") and "=" not in left:
                assert eval(left) == int(right)  # noqa: S307 - digits and signs that we wrote ourselves


def test_sums_and_products_of_evaluation_are_never_trained() -> None:
    rng = Random(5)
    for _ in range(400):
        for sign, sizes in (("+", (3, 3)), ("*", (2, 2)), ("+", (2, 2, 2, 2))):
            assert not held_out(sign, tuple(sorted(arithmetic.draw(rng, sizes, False, sign))))
            assert held_out(sign, tuple(sorted(arithmetic.draw(rng, sizes, True, sign))))


def test_unseen_tool_names_are_unseen() -> None:
    rng = Random(6)
    trained = set()
    for _ in range(1500):
        for name in ("tool call", "invented tool", "tool answer", "no tool"):
            trained |= {tool["function"]["name"] for tool in GENERATORS[name](rng, False).tools}
    for _ in range(200):
        sample = tools.tool_call(rng, True, unseen=True)
        called = sample.messages[-1]["tool_calls"][0]["function"]["name"]
        assert called not in trained


def test_held_out_words_are_disjoint() -> None:
    rng = Random(7)
    trained = {recall.copy(rng, False, 3).messages[-1]["content"] for _ in range(2000)}
    assert not trained & {recall.copy(rng, True, 3).messages[-1]["content"] for _ in range(500)}


@pytest.mark.parametrize("suite", suites(), ids=lambda suite: f"{suite.name}-{suite.thinking}")
def test_the_wanted_answer_is_judged_exact_and_a_wrong_one_is_not(suite: Suite) -> None:
    for sample in suite.samples(10, 1):
        wanted = parts(sample)[-1][0].removesuffix("<|im_end|>")
        assert suite.verdict(sample, wanted).exact
        assert not suite.verdict(sample, wanted + " x x").exact


def test_json_that_does_not_parse_is_counted() -> None:
    suite = next(suite for suite in suites() if suite.name == "JSON")
    sample = suite.samples(1, 1)[0]
    assert suite.verdict(sample, "{").parsed is False
    assert suite.verdict(sample, json.dumps("other")).parsed is True


def test_shares_are_of_tokens() -> None:
    mixture = Mixture(Random(0), len_of_text, LATE)
    rng, seen = Random(1), dict.fromkeys(("story", "json"), 0)
    for _ in range(6000):
        sample = mixture.draw(rng)
        if sample.skill in seen:
            seen[sample.skill] += len_of_text(sample)
    assert seen["story"] / seen["json"] == pytest.approx(LATE["story"] / LATE["json"], rel=0.25)


def len_of_text(sample: Sample) -> int:
    return sum(len(text) for text, _ in parts(sample))
