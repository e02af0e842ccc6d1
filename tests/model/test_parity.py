"""Logits and greedy ids against transformers on freshly made random checkpoints, whatever the cut and the company."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.driver import Driver
from tests.oracle import KINDS, VOCABULARY, make_checkpoint
from tests.tolerances import tolerance

LENGTHS = (1, 2, 3, 17, 64, 65, 130, 300)
CASES = [(kind, seed) for kind in KINDS for seed in (0, 1)]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Driver]:
    kind, seed = request.param
    folder: Path = tmp_path_factory.mktemp("checkpoint")
    reference = make_checkpoint(folder, kind, seed)
    return reference, Driver(folder)


def prompts(lengths: tuple[int, ...], seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


@torch.inference_mode()
def reference_logits(model: Any, ids: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0]
    return logits


def test_logits_equal_transformers_for_any_cut(pair: tuple[Any, Driver]) -> None:
    reference, driver = pair
    asked = prompts(LENGTHS, seed=3)
    expected = [reference_logits(reference, ids) for ids in asked]
    for chunk in (1000, 65, 64, 3, 1):
        for ids, wanted in zip(asked, expected, strict=True):
            if chunk < 64 and len(ids) > 65:
                continue  # token by token over long prompts is in the slow suite
            (found,) = driver.logits([ids], chunk)
            assert (found - wanted).abs().max() < tolerance("model_logits"), (len(ids), chunk)


def test_sixteen_ragged_sequences_equal_each_alone(pair: tuple[Any, Driver]) -> None:
    _, driver = pair
    asked = prompts((1, 70, 2, 33, 64, 5, 1, 90, 18, 3, 65, 7, 40, 2, 11, 128), seed=4)
    for together, ids in zip(driver.logits(asked, 48), asked, strict=True):
        (alone,) = driver.logits([ids], 48)
        assert (together - alone).abs().max() < tolerance("model_logits")


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 3])
def test_token_by_token_over_300_tokens(pair: tuple[Any, Driver], chunk: int) -> None:
    reference, driver = pair
    (ids,) = prompts((300,), seed=5)
    (found,) = driver.logits([ids], chunk)
    assert (found - reference_logits(reference, ids)).abs().max() < tolerance("model_logits")
