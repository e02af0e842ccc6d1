"""Sampling: what may be drawn, how often, and that a seed decides it whatever the company."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from qwench.engine.request import Request, SamplingParams
from qwench.engine.sampling import sample, token_logprobs, uniform


def request(seed: int = 0, generated: tuple[int, ...] = (), prompt: tuple[int, ...] = (1,), **params: Any) -> Request:
    sampling = SamplingParams(**params)
    return Request(
        id=0,
        prompt_len=len(prompt),
        token_ids=[*prompt, *generated],
        sampling=sampling,
        stop_token_ids=frozenset(sampling.stop_token_ids or ()),
        seed=seed,
        max_total=100,
    )


def draws(logits: torch.Tensor, count: int = 400, **params: Any) -> Counter[int]:
    rows = logits.expand(count, -1)
    return Counter(sample(rows, [request(seed, **params) for seed in range(count)]))


LOGITS = torch.log(torch.tensor([0.4, 0.3, 0.2, 0.06, 0.04]))


def test_plain_sampling_follows_the_distribution() -> None:
    """Pearson's statistic of 4,000 draws; 18.5 is exceeded once in a thousand with 4 degrees of freedom."""
    found = draws(LOGITS, 4000)
    statistic = sum((found[i] - 4000 * p) ** 2 / (4000 * p) for i, p in enumerate(LOGITS.exp().tolist()))
    assert statistic < 18.5


def test_temperature_sharpens_as_the_formula_says() -> None:
    powered = LOGITS.exp() ** 2
    expected = (powered / powered.sum())[0].item()
    found = draws(LOGITS, 4000, temperature=0.5)[0] / 4000
    assert found == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 4000))


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 1}, {0}),
        ({"top_p": 0.69}, {0, 1}),
        ({"top_p": 0.71}, {0, 1, 2}),
        ({"top_p": 1e-9}, {0}),
        ({"min_p": 0.49}, {0, 1, 2}),
        ({"min_p": 1.0}, {0}),
        ({"top_k": 3, "top_p": 0.7}, {0, 1}),  # 0.4 + 0.3 is 0.78 of the three
        ({"top_k": -1}, {0, 1, 2, 3, 4}),
        ({"top_k": 99, "temperature": 100.0}, {0, 1, 2, 3, 4}),
        ({"temperature": 0}, {0}),
        ({"logit_bias": {4: 100.0}}, {4}),
        ({"logit_bias": {0: -100.0, 1: -100.0, 2: -100.0}}, {3, 4}),
    ],
)
def test_filters_allow_exactly_what_they_say(params: dict[str, Any], allowed: set[int]) -> None:
    assert set(draws(LOGITS, **params)) == allowed


def test_a_seed_draws_the_same_whatever_the_company() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(2))
    alone = [sample(logits[i : i + 1], [request(i, top_p=0.9)])[0] for i in range(6)]
    together = sample(logits, [request(i, top_p=0.9) for i in range(6)])
    backwards = sample(logits.flip(0), [request(5 - i, top_p=0.9) for i in range(6)])
    assert alone == together == backwards[::-1]


def test_every_position_of_a_seed_draws_anew() -> None:
    numbers = [uniform(5, index) for index in range(2000)]
    assert len(set(numbers)) == 2000
    assert all(0 <= number < 1 for number in numbers)
    assert sum(numbers) / 2000 == pytest.approx(0.5, abs=0.03)
    assert uniform(-3, 0) == uniform(2**64 - 3, 0)


def test_penalties_follow_their_definitions() -> None:
    logits = torch.tensor([[1.0, 0.9, 0.8, -0.1]])
    # presence and frequency see generated tokens only: 0 is in the prompt, 1 was generated twice
    assert sample(logits, [request(prompt=(0,), generated=(1, 1), temperature=0, presence_penalty=2.0)]) == [0]
    assert sample(logits, [request(prompt=(3,), generated=(0, 0), temperature=0, frequency_penalty=0.06)]) == [1]
    assert sample(logits, [request(prompt=(3,), generated=(0,), temperature=0, frequency_penalty=0.06)]) == [0]
    # repetition divides positive and multiplies negative logits of everything seen, the prompt too
    assert sample(logits, [request(prompt=(0,), generated=(1,), temperature=0, repetition_penalty=1.3)]) == [2]


def test_min_tokens_bans_the_end_until_then() -> None:
    logits = torch.tensor([[5.0, 1.0]])
    early = request(generated=(1,), temperature=0, min_tokens=2, stop_token_ids=[0])
    late = request(generated=(1, 1), temperature=0, min_tokens=2, stop_token_ids=[0])
    assert sample(logits, [early]) == [1]
    assert sample(logits, [late]) == [0]


def test_logprobs_are_raw_ranked_and_always_hold_the_drawn_token() -> None:
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(4))
    expected = torch.log_softmax(logits.double(), -1)
    for row, entry in enumerate(token_logprobs(logits, [3, 7], [2, 0])):
        token = (3, 7)[row]
        order = expected[row].argsort(descending=True).tolist()
        assert entry.logprob == pytest.approx(expected[row, token].item(), abs=1e-5)
        assert entry.rank == order.index(token) + 1
        assert [i for i, _ in entry.top] == order[: (2, 0)[row]]


@pytest.mark.parametrize("temperature", [1e-308, 1e-6, 1e-5, 1e-4])
def test_the_smallest_temperatures_are_greedy_not_garbage(temperature: float) -> None:
    logits = torch.tensor([[0.0, 5.0, 1.0, 2.0]])
    assert sample(logits, [request(temperature=temperature)]) == [1]
