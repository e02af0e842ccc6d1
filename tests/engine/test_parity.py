"""The whole engine over real weights: transformers' greedy ids, alone and in company, whatever the budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qwench.config import EngineConfig
from qwench.engine.client import EngineClient
from qwench.engine.request import Marks, SamplingParams, Vocabulary
from qwench.ops.arrays import FLOAT32
from tests.engine.midway import submit_and_save
from tests.oracle import KINDS, VOCABULARY, make_checkpoint

ALWAYS = ("wrapper_dense", "moe", "qwen3", "qwen3_moe_mixed")
KIND_PARAMS = [kind if kind in ALWAYS else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
LONG = 200


def start(folder: Path, **settings: Any) -> EngineClient:
    client = EngineClient(EngineConfig(model=str(folder), dtype="float32", **{"device": "cpu", **settings}))
    client.start(Vocabulary(VOCABULARY, frozenset()))
    client.wait_ready(60)
    return client


@pytest.fixture(scope="module", params=KIND_PARAMS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("checkpoint")
    return make_checkpoint(folder, request.param, seed=2), folder


@pytest.fixture(scope="module")
def client(checkpoint: tuple[Any, Path]) -> Iterator[EngineClient]:
    client = start(checkpoint[1])
    yield client
    client.close()


def prompt(length: int, seed: int) -> list[int]:
    return torch.randint(0, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def reference_greedy(model: Any, ids: list[int], length: int) -> list[int]:
    """Plain decoding with transformers' own cache."""
    past, found, fed = None, [], torch.tensor([ids])
    for _ in range(length):
        result = model(input_ids=fed, past_key_values=past, use_cache=True)
        past = result.past_key_values
        found.append(int(result.logits[0, -1].argmax()))
        fed = torch.tensor([found[-1:]])
    return found


def greedy(client: EngineClient, ids: list[int], length: int) -> list[int]:
    events = client.submit(ids, SamplingParams(temperature=0, max_tokens=length))
    return [token for event in events for token in event.token_ids]


def test_200_greedy_tokens_equal_transformers(checkpoint: tuple[Any, Path], client: EngineClient) -> None:
    ids = prompt(37, seed=1)
    assert greedy(client, ids, LONG) == reference_greedy(checkpoint[0], ids, LONG)


def test_sixteen_ragged_requests_equal_each_alone(client: EngineClient) -> None:
    asked = [prompt(1 + 7 * number, seed=number) for number in range(16)]
    together = [client.submit(ids, SamplingParams(temperature=0, max_tokens=24)) for ids in asked]
    found = [[token for event in generation for token in event.token_ids] for generation in together]
    assert found == [greedy(client, ids, 24) for ids in asked]


def test_chunks_and_preemption_change_nothing(checkpoint: tuple[Any, Path], client: EngineClient) -> None:
    asked = [prompt(30, seed=number) for number in range(4)]
    expected = [greedy(client, ids, 40) for ids in asked]
    # Room for two full sequences of pages among four, or for four halves: growing means preempting.
    memory = _bytes_for(client, pages=4, slots=4)
    small = start(checkpoint[1], max_step_tokens=8, max_num_seqs=4, max_model_len=80, memory=memory)
    together = [small.submit(ids, SamplingParams(temperature=0, max_tokens=40)) for ids in asked]
    found = [[token for event in generation for token in event.token_ids] for generation in together]
    preemptions = small.stats().preemptions
    small.close()
    assert preemptions > 0
    assert found == expected


def told(client: EngineClient, ids: list[int], length: int, marks: Marks = Marks()) -> tuple[list[Any], int]:  # noqa: B008
    """Every token of the answer with its log-probabilities, and how much of the prompt was reused."""
    sampling = SamplingParams(temperature=0, max_tokens=length, logprobs=3)
    events = list(client.submit(ids, sampling, marks=marks))
    return [entry for event in events for entry in event.logprobs], sum(event.cached_tokens for event in events)


def test_what_is_reused_changes_no_bit(checkpoint: tuple[Any, Path], client: EngineClient) -> None:
    """A conversation of three turns, a branch of its first, and it once more, beside an engine that keeps nothing."""
    cold = start(checkpoint[1], prefix_cache=False)
    first = prompt(150, seed=31)
    second = [*first, *(entry.token_id for entry in told(cold, first, 70)[0]), *prompt(90, seed=32)]
    third = [*second, *prompt(75, seed=33)]
    for ids, ends, least in (
        (first, (70, 145), 0),
        (second, (70, 145, 225), 145),
        (third, (70, 145, 225), 225),
        ([*first[:147], 5, 6, 7], (70, 145), 145),
        (third, (), 225),
    ):
        found, cached = told(client, ids, 70, Marks(ends))
        expected, none = told(cold, ids, 70)
        assert found == expected
        assert cached >= least
        assert none == 0
    cold.close()


def test_saved_restored_and_forked_sequences_go_on_bit_for_bit(client: EngineClient) -> None:
    ids = prompt(90, seed=41)
    sampling = SamplingParams(temperature=1.0, seed=5, max_tokens=60, logprobs=2, presence_penalty=1.0)
    whole = [entry for event in client.submit(ids, sampling) for entry in event.logprobs]
    generation, saved = submit_and_save(client, lambda: client.submit(ids, sampling))
    generation.abort()
    done = len(saved.token_ids) - len(ids)
    rest = replace(sampling, max_tokens=60 - done)
    for _ in range(2):
        restored = [entry for event in client.restore(saved, rest) for entry in event.logprobs]
        assert restored == whole[done:]
    forks = client.fork(saved, [replace(rest, seed=seed) for seed in range(4, 7)])
    found = [[entry for event in fork for entry in event.logprobs] for fork in forks]
    assert found[1] == whole[done:]
    assert len({tuple(entry.token_id for entry in each if entry) for each in found}) == 3
    client.release(saved)


def test_choices_of_one_prompt_equal_each_alone_and_read_it_once(client: EngineClient) -> None:
    ids = prompt(140, seed=51)
    choices = [SamplingParams(temperature=1.0, seed=seed, max_tokens=8, logprobs=0) for seed in range(5)]
    before = client.stats().prompt_tokens
    together = [list(each) for each in client.submit_choices(ids, choices)]
    assert client.stats().prompt_tokens - before <= len(ids) + 4
    alone = [list(client.submit(ids, params)) for params in choices]
    tokens = [[event.logprobs for event in events if event.token_ids] for events in (*together, *alone)]
    assert tokens[:5] == tokens[5:]


def _bytes_for(client: EngineClient, *, pages: int, slots: int) -> int:
    from qwench.cache.storage import CacheSpec

    spec = CacheSpec.of(client.model, FLOAT32)
    return pages * client.config.page_size * spec.token_bytes + slots * spec.sequence_bytes


@pytest.mark.gpu
def test_cuda_gives_the_ids_of_the_cpu_in_company_and_under_preemption(
    checkpoint: tuple[Any, Path], client: EngineClient
) -> None:
    asked = [prompt(30, seed=number) for number in range(4)]
    expected = [greedy(client, ids, 40) for ids in asked]
    memory = _bytes_for(client, pages=4, slots=4)
    small = start(checkpoint[1], device="cuda", max_step_tokens=8, max_num_seqs=4, max_model_len=80, memory=memory)
    together = [small.submit(ids, SamplingParams(temperature=0, max_tokens=40)) for ids in asked]
    found = [[token for event in generation for token in event.token_ids] for generation in together]
    preemptions = small.stats().preemptions
    small.close()
    assert preemptions > 0
    assert found == expected


def test_padding_rows_of_the_vocabulary_are_never_drawn(checkpoint: tuple[Any, Path]) -> None:
    client = EngineClient(EngineConfig(model=str(checkpoint[1]), dtype="float32", device="cpu"))
    client.start(Vocabulary(size=7, end_ids=frozenset()))
    client.wait_ready(60)
    events = client.submit([1, 2], SamplingParams(temperature=100.0, max_tokens=60, logprobs=7, seed=1))
    drawn = [event for event in events if event.token_ids]
    client.close()
    assert {token for event in drawn for token in event.token_ids} == set(range(7))
    told = [entry for event in drawn for entry in event.logprobs]
    assert all({token for token, _ in entry.top} == set(range(7)) for entry in told if entry)
