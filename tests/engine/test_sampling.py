"""Sampling: what may be drawn, how often, and that a seed decides it whatever the company."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Self

import pytest
import torch

from qwench.engine import sampling
from qwench.engine.request import Request, SamplingParams
from qwench.engine.sampling import token_logprobs, uniform
from qwench.engine.thinking import ThinkingRules, Thought
from qwench.ops.choosing import Chooser, NativeChooser, TorchChooser
from qwench.ops.native import Native, instruction_sets


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


@functools.cache
def choosers() -> list[Chooser]:
    """The reference, and the native one where the library is there."""
    try:
        return [TorchChooser(), NativeChooser(Native(instruction_sets()[0], 1))]
    except OSError:
        return [TorchChooser()]


def sample(logits: torch.Tensor, requests: list[Request]) -> list[int]:
    """The tokens of all choosers, which agree."""
    first, *others = (sampling.sample(logits, requests, each.largest(logits), each) for each in choosers())
    assert all(other == first for other in others)
    return first


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
    found = [token_logprobs(logits, [3, 7], [2, 0], chooser) for chooser in choosers()]
    for row, entry in [pair for each in found for pair in enumerate(each)]:
        token = (3, 7)[row]
        order = expected[row].argsort(descending=True).tolist()
        assert entry.logprob == pytest.approx(expected[row, token].item(), abs=1e-5)
        assert entry.rank == order.index(token) + 1
        assert [i for i, _ in entry.top] == order[: (2, 0)[row]]


def test_a_rank_is_told_among_the_likeliest_only() -> None:
    for chooser in choosers():
        found = [sampling.rank_among(LOGITS.flip(0), token, 3, chooser) for token in range(5)]
        assert found == [None, None, 3, 2, 1]
        assert sampling.rank_among(LOGITS, 0, 99, chooser) == 1


ALL = (0, 0.0)
STOPS = frozenset({0, 3})


@pytest.mark.parametrize(
    ("params", "count"),
    [
        ({"temperature": 0.0}, (4, 0)),
        ({"top_k": 20, "top_p": 0.95}, (21, 0)),
        ({"top_k": 20, "top_p": 0.95, "presence_penalty": 1.5}, (21, 1.5)),
        ({"temperature": 0.0, "frequency_penalty": 0.5}, (4, 1.5)),
        ({"temperature": 0.0, "frequency_penalty": 0.5, "presence_penalty": 2.0}, (4, 3.5)),
        ({"temperature": 0.0, "min_tokens": 5}, (4 + len(STOPS), 0)),
        ({"top_k": 255}, (256, 0)),
        ({"top_k": 256}, ALL),
        ({"top_k": 2**64}, ALL),
        ({"top_p": 0.9}, ALL),
        ({"min_p": 0.1}, ALL),
        ({"presence_penalty": 1.0}, ALL),
        ({"temperature": 0.0, "logprobs": 1}, ALL),
        ({"top_k": 20, "logit_bias": {3: 1.0}}, ALL),
        ({"top_k": 20, "repetition_penalty": 1.1}, ALL),
        ({"top_k": 20, "presence_penalty": -0.1}, ALL),
        ({"top_k": 20, "frequency_penalty": -0.1}, ALL),
    ],
)
def test_a_row_tells_how_many_of_its_logits_count(params: dict[str, Any], count: tuple[int, float]) -> None:
    asked = request(generated=(1, 2, 1, 1), stop_token_ids=list(STOPS), **params)
    assert sampling.logits_that_count(asked, 0) == count
    if count != ALL and count[0] < 256:
        assert sampling.logits_that_count(asked, 1) == (count[0] + 1, count[1])
    held = sampling.logits_that_count(asked, 243)
    assert held == ((count[0] + 16, count[1]) if 0 < count[0] <= 240 else ALL)


class Fixed:
    """A guide with one mask for everything."""

    def __init__(self, mask: bytes | None) -> None:
        self.mask = mask

    def accept(self, token_ids: Sequence[int]) -> str | None:
        del token_ids
        return None

    def __copy__(self) -> Self:
        return self


def test_under_a_grammar_all_logits_count() -> None:
    held = request(temperature=0.0)
    held.guide = Fixed(b"\x01")
    assert sampling.logits_that_count(held, 0) == ALL
    held.guide = Fixed(None)
    assert sampling.logits_that_count(held, 0) == (4, 0)


def test_what_a_thought_bans_is_never_drawn() -> None:
    """Until something was said, whatever the temperature, the bias or the penalties."""
    rules = ThinkingRules(end_ids=frozenset((0, 7)), open_id=1, close_id=2)  # 7 is not in the vocabulary
    ways: list[dict[str, Any]] = [{"top_p": 0.5}, {"temperature": 0}, {"logit_bias": {0: 100.0}}, {"top_k": 1}]
    for params in ways:
        asked = request(**params)
        asked.thought = Thought(rules, 50)
        assert sample(LOGITS[None], [asked])[0] in {3, 4}
        asked.thought.take(3)
        assert sample(LOGITS[None], [asked])[0] in {0, 1}


@pytest.mark.parametrize("temperature", [1e-308, 1e-6, 1e-5, 1e-4])
def test_the_smallest_temperatures_are_greedy_not_garbage(temperature: float) -> None:
    logits = torch.tensor([[0.0, 5.0, 1.0, 2.0]])
    assert sample(logits, [request(temperature=temperature)]) == [1]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"top_k": 20, "top_p": 0.8},
        {"top_k": 20, "top_p": 0.95, "temperature": 0.6},
        {"top_p": 0.3},
        {"top_p": 0.95, "temperature": 3.0},  # wider than the first candidates: the whole vocabulary counts
        {"min_p": 0.05, "presence_penalty": 1.5},
        {"top_k": 2000, "min_p": 0.001},
        {"temperature": 0, "presence_penalty": 1.5},
        {"min_tokens": 5, "stop_token_ids": [3], "top_k": 5},
    ],
)
@pytest.mark.parametrize("coarse", [False, True])
def test_a_large_vocabulary_gives_what_the_definition_gives(params: dict[str, Any], coarse: bool) -> None:
    """All choosers against one sort of the whole vocabulary, also where many logits are equal."""
    logits = 3 * torch.randn(6, 70_001, generator=torch.Generator().manual_seed(3))
    if coarse:
        logits = logits.bfloat16().float()
    requests = [request(seed, generated=(5, 9), **params) for seed in range(6)]
    assert sample(logits, requests) == [defined(row, each) for row, each in zip(logits, requests, strict=True)]


def defined(logits: torch.Tensor, given: Request) -> int:
    """The definition, over the whole vocabulary sorted by weight."""
    params = given.sampling
    logits = logits.clone()
    logits[[5, 9]] -= params.presence_penalty
    if given.num_generated < params.min_tokens:
        logits[list(given.stop_token_ids)] = -torch.inf
    if params.temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.double() / params.temperature, -1)
    ids = torch.arange(len(logits))
    if params.top_k > 0 or params.top_p < 1:
        probabilities, ids = torch.sort(probabilities, descending=True, stable=True)
    if params.top_k > 0:
        probabilities, ids = probabilities[: params.top_k], ids[: params.top_k]
    before = probabilities.cumsum(-1) - probabilities
    kept = (before < params.top_p * probabilities.sum()) | (params.top_p == 1)
    kept &= probabilities >= params.min_p * probabilities.max()
    cumulative = torch.where(kept, probabilities, 0.0).cumsum(-1)
    point = uniform(given.seed, given.num_generated) * cumulative[-1]
    return int(ids[torch.searchsorted(cumulative, point, right=True)])
