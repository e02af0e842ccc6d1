"""Budgets on the embedded model, as it is and with the tag that ends thinking taken from it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from qwench import LLM, SamplingParams
from qwench.llm import CompletionOutput
from qwench.text.model import ModelText
from qwench.text.thinking import read_thinking
from tests.engine.midway import submit_and_save


@pytest.fixture(scope="module")
def nano() -> Iterator[LLM]:
    import torch

    torch.set_num_threads(1)
    with LLM("nano", device="cpu", memory="256MiB", max_num_seqs=16) as llm:
        yield llm


def sums(rng: random.Random, count: int) -> list[list[dict[str, str]]]:
    numbers = [(rng.randrange(1000), rng.randrange(1000)) for _ in range(count)]
    return [[{"role": "user", "content": f"What is {a} + {b}?"}] for a, b in numbers]


def answers(llm: LLM, seed: int, count: int, budget: int, **params: object) -> list[CompletionOutput]:
    sampling = SamplingParams(temperature=0.6, top_p=0.95, top_k=20, seed=seed, **params)  # type: ignore[arg-type]
    outputs = llm.chat(sums(random.Random(seed), count), sampling, thinking_budget=budget, use_tqdm=False)
    return [output.outputs[0] for output in outputs]


def never_closing(text: ModelText) -> dict[int, float]:
    """Takes from the model what would end its thinking: the tag, and the end of its turn."""
    return {token: -100 for token in (text.tokenizer.id_of("</think>"), *text.stop_token_ids) if token is not None}


def hold(llm: LLM, seed: int, count: int, budget: int, *, closes: bool) -> set[str | None]:
    limit = random.Random(seed).choice((40, 90, 200))
    bias = None if closes else never_closing(llm.text)
    plan = read_thinking({"thinking_budget": budget})
    rules = llm.text.chat_prompt(sums(random.Random(0), 1)[0], thinking=plan).rules
    found = answers(llm, seed, count, budget, max_tokens=limit, logit_bias=bias)
    for answer in found:
        assert answer.text.strip(), (seed, budget, answer)
        assert answer.reasoning_tokens <= budget + rules.allowance
        assert limit - answer.reasoning_tokens >= limit // 5
    return {answer.thinking_closed_by for answer in found}


def test_a_budget_it_does_not_need_leaves_its_answer_alone(nano: LLM) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=200)
    asked = sums(random.Random(1), 8)
    free = nano.chat(asked, greedy, enable_thinking=True, use_tqdm=False)
    bounded = nano.chat(asked, greedy, thinking_budget=500, use_tqdm=False)
    for one, other in zip(free, bounded, strict=True):
        assert one.outputs[0] == other.outputs[0]
        assert one.outputs[0].thinking_closed_by == "model"
        assert one.outputs[0].text


def test_no_answer_of_nanos_is_empty_whatever_the_budget(nano: LLM) -> None:
    ends = {end for budget in (1, 10, 25, 40) for end in hold(nano, budget, 24, budget, closes=True)}
    assert {"model", "budget"} <= ends


def test_a_model_that_never_stops_thinking_answers_too(nano: LLM) -> None:
    ends = {end for budget in (1, 16, 64, 10_000) for end in hold(nano, budget, 12, budget, closes=False)}
    assert {"budget", "reserve"} <= ends
    assert "model" not in ends


def test_a_thought_that_was_saved_goes_on_as_it_would_have(nano: LLM) -> None:
    """Its budget is the one it had; tokens put behind it may close it."""
    client = nano.client
    prompt = nano.text.chat_prompt(sums(random.Random(5), 1)[0], thinking=read_thinking({"thinking_budget": 30}))
    greedy = SamplingParams(temperature=0, max_tokens=300, logit_bias=never_closing(nano.text))
    generation, saved = submit_and_save(
        client, lambda: client.submit(prompt.token_ids, greedy, thinking=prompt.rules), tokens=20
    )
    rest = replace(greedy, max_tokens=300 - (len(saved.token_ids) - len(prompt.token_ids)))
    restored = list(client.restore(saved, rest))
    whole = [token for event in generation for token in event.token_ids]
    assert [token for event in restored for token in event.token_ids] == whole[300 - (rest.max_tokens or 0) :]
    assert restored[-1].closed_by in {"soft", "budget"}
    (closed,) = client.fork(saved, [replace(rest, max_tokens=5)], prompt.rules.bare)
    assert list(closed)[-1].closed_by == "model"
    client.release(saved)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thousands_of_nanos_answers(nano: LLM) -> None:
    for seed in range(100, 160):
        rng = random.Random(seed)
        hold(nano, seed, 50, rng.choice((1, 8, 20, 30, 45, 64, 300)), closes=rng.random() < 0.5)
