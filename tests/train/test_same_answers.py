"""nano through our engine and through transformers: the same greedy answers, token by token, for every skill."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

import qwench
from qwench.train.evaluate import Completion, Generate, Prompt, engine_generator, run_suite, transformers_generator
from qwench.train.suites import Suite, suites

NANO = Path(qwench.__file__).parent / "assets" / "nano"
SAMPLES = 50


def answers(generate: Generate, suite: Suite) -> list[Completion]:
    """What ``generate`` tells the suite, in order."""
    told: list[Completion] = []

    def noting(prompts: list[Prompt], limit: int) -> list[Completion]:
        completions = generate(prompts, limit)
        told.extend(completions)
        return completions

    run_suite(suite, Tokenizer.from_file(str(NANO / "tokenizer.json")), noting, SAMPLES)
    return told


@pytest.mark.slow
@pytest.mark.parametrize("suite", suites(), ids=lambda suite: f"{suite.name}, thinking {suite.thinking}")
def test_engine_and_transformers_answer_alike(suite: Suite) -> None:
    ours, theirs = answers(engine_generator(NANO), suite), answers(transformers_generator(NANO), suite)
    assert len(ours) == SAMPLES
    assert ours == theirs
