"""Wishes in words, and what would do for them."""

from __future__ import annotations

import pytest

from qwench.errors import ModelNotFound, UsageError
from qwench.plan.choose import nearest_yes, offers, runs
from qwench.plan.cost import Terms
from qwench.plan.hardware import load_machines
from qwench.plan.memory import Load
from qwench.plan.wish import Wish, read_wish

MACHINES = load_machines()


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("35b-a3b at 32k, 8 users, 20 tok/s", Wish("qwen3.5:35b-a3b", 32768, 8, 20.0)),
        ("qwen3.5:27b q4", Wish("qwen3.5:27b", precision="q4")),
        ("397b in 8 bits for 4 streams under $9k", Wish("qwen3.5:397b-a17b", users=4, precision="q8", price=9000)),
        ("27b under 6k USD", Wish("qwen3.5:27b", price=6000)),
        ("27b for 350 dollars", Wish("qwen3.5:27b", price=350)),
        ("9b at 1m tokens, 5.5 tps, $3.50/h", Wish("qwen3.5:9b", 2**20, 1, 5.5, rent=3.5)),
        ("Qwen/Qwen3-8B with 16 bit and 12 tokens per second", Wish("qwen3:8b", rate=12.0, precision="bf16")),
    ],
)
def test_a_wish_is_understood(text: str, wish: Wish) -> None:
    assert read_wish(text) == wish


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("35b-a3b on the moon", r"--for: 'moon' is not understood; write it like"),
        ("32k, 8 users", r"--for '32k, 8 users' names no model; write it like"),
        ("27b in 7 bits", r"--for asks for 7 bits; there are 16, 8, 6, 5, 4, 3 and 2"),
        ("35b-a3b at 32k, under k", r"--for lost its price: between double quotes a shell reads \$5 as a name"),
        ("35b-a3b at 32k, under 000", r"Use single quotes, or 5000 USD"),
        ("27b at 32k, 4 users, /h", r"--for lost its price"),
        ("27b for 0 users", r"--for asks for 0 users; give at least 1"),
    ],
)
def test_a_wish_that_is_not_is_told_which_words(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        read_wish(text)


def test_an_unknown_model_in_a_wish_is_answered_with_the_nearest() -> None:
    with pytest.raises(ModelNotFound, match=r"nearest: .*35b-a3b"):
        read_wish("35b-a4b at 32k")


def test_what_would_do_comes_first_and_the_cheapest_of_it_before() -> None:
    found = offers(read_wish("35b-a3b at 32k, 8 users, 20 tok/s"), MACHINES.values(), Terms())
    verdicts = [offer.verdict for offer in found]
    assert verdicts == sorted(verdicts, key=["yes", "perhaps", "unknown", "no"].index)
    good = [offer.monthly.low for offer in found if offer.verdict == "yes" and offer.monthly]
    assert good
    assert good == sorted(good)
    for offer in found:
        if offer.verdict == "yes":
            assert offer.placement.fits
            assert offer.speed.each is not None
            assert offer.speed.each.low >= 20


def test_finer_weights_are_preferred_where_they_are_fast_enough() -> None:
    machine = MACHINES["rtx-pro-6000"]
    slow, fast = (offers(Wish("qwen3.5:27b", rate=rate), [machine], Terms())[0] for rate in (5, 40))
    assert (slow.subject.precision, slow.verdict) == ("bf16", "yes")
    assert fast.subject.precision != "bf16"


def test_no_is_said_with_its_reason_and_the_nearest_yes() -> None:
    wish = read_wish("397b in 16 bits at 32k under $5000")
    found = offers(wish, MACHINES.values(), Terms())
    assert all(offer.verdict == "no" for offer in found)
    reasons = {offer.machine.name: offer.reason for offer in found}
    assert reasons["8x-h100"].startswith("needs 79")
    assert reasons["8x-h200"] == "for rent, not for sale"
    near = nearest_yes(wish, MACHINES.values(), Terms())
    assert near is not None
    assert near[0] == "without the limit of the price"
    assert near[1].verdict == "yes"


def test_the_nearest_yes_may_be_a_smaller_model_or_nothing() -> None:
    small = [MACHINES["rtx-4090"]]
    near = nearest_yes(Wish("qwen3.5:397b-a17b"), small, Terms())
    assert near is not None
    assert near[0] == "with qwen3.5:27b"
    assert nearest_yes(Wish("qwen3.5:0.8b", rate=1e6), small, Terms()) is None


def test_a_machine_lists_every_model_and_the_best_that_fits_first() -> None:
    found = runs(MACHINES["rtx-4090"], Load(8192))
    assert len(found) == 16
    assert found[0].subject.name == "qwen3.5:27b"
    assert [offer.verdict for offer in found].index("no") == 13
    assert all(offer.placement.needed <= offer.placement.there for offer in found if offer.verdict == "yes")
