"""What is chosen from a head that is read by its upper bits is what is chosen from all of it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from qwench.config import EngineConfig
from qwench.engine.core import Engine
from qwench.engine.request import Request, SamplingParams, TokenEvent, Vocabulary
from qwench.engine.start import random_engine
from qwench.ops.weight_types import VOCABULARY
from qwench.plan.shapes import SHAPES
from tests.weights.test_random import small

LENGTH = 24
PARAMS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"top_k": 20, "top_p": 0.95},
    {"top_k": 20, "presence_penalty": 1.5},
    {"top_k": 5, "min_p": 0.05, "temperature": 2.0},
    {"temperature": 0.0, "frequency_penalty": 2.0},
    {"top_k": 3, "min_tokens": 20, "stop_token_ids": list(range(0, VOCABULARY, 1000))},
]


@pytest.fixture(scope="module")
def engine() -> Engine:
    model = replace(small(SHAPES[0].config), vocab_size=VOCABULARY + 40, hidden_size=256)
    config = EngineConfig(model="random", device="cpu", quantization="q4", max_model_len=64, max_num_seqs=8)
    built, resolved = random_engine(config, model, Vocabulary(VOCABULARY, frozenset()))
    if resolved.isa is None:
        pytest.skip("no native kernels here")
    return built


def _note(told: list[int], event: TokenEvent) -> None:
    told += event.token_ids


def answers(engine: Engine, params: list[dict[str, Any]]) -> list[list[int]]:
    """Of one prompt each, all computed side by side."""
    told: list[list[int]] = [[] for _ in params]
    for index, each in enumerate(params):
        prompt = torch.randint(0, VOCABULARY, (7,), generator=torch.Generator().manual_seed(index)).tolist()
        request = Request(
            id=index,
            prompt_len=len(prompt),
            token_ids=prompt,
            sampling=SamplingParams(**each),
            stop_token_ids=frozenset(),
            seed=index,
            max_total=len(prompt) + LENGTH,
        )
        engine.add([request], [partial(_note, told[index])])
    while engine.scheduler.running or engine.scheduler.waiting:
        engine.step()
    return told


def test_the_same_is_chosen_whether_all_logits_are_asked_for_or_the_few_that_count(engine: Engine) -> None:
    for each in PARAMS:
        (few,) = answers(engine, [each])
        assert len(few) == LENGTH
        assert [few] == answers(engine, [{**each, "logprobs": 0}])
        assert few == answers(engine, [each, PARAMS[0]])[0], "two tokens read all of it"
