"""A quantised model: the native kernels give the references' answers, and fewer bits lose more but not the thread."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from qwench.ops.kernels import make_kernels
from qwench.ops.native import instruction_sets
from qwench.quantisation import QUANTIZATIONS
from tests.model.driver import Driver

NANO = Path(__file__).parents[2] / "src" / "qwench" / "assets" / "nano"
TEXT = NANO.parent / "text" / "receipt.txt"
# Mean KL divergence (nats) from the unquantised model that a recipe may cost. nano is far more sensitive than a large
# model: its matrices are 256 deep, and it has never seen such a text.
LOST = {"q8": 0.01, "q6": 0.04, "q5": 0.06, "q4": 0.12, "q3": 0.2, "q2": 0.65, "mxfp4": 0.4}
KERNELS = 0.01  # inputs that lie between two of the 255 steps may fall to either side


def log_probabilities(quantization: str | None, isa: str | None) -> torch.Tensor:
    ids = Tokenizer.from_file(str(NANO / "tokenizer.json")).encode(TEXT.read_text(encoding="utf-8")).ids
    return torch.log_softmax(
        Driver(NANO, kernels=make_kernels(isa, threads=2), quantization=quantization)
        .logits([ids], chunk=200)[0]
        .double(),
        -1,
    )


def divergence(wanted: torch.Tensor, found: torch.Tensor) -> float:
    return (wanted.exp() * (wanted - found)).sum(-1).mean().item()


@pytest.fixture(scope="module")
def unquantised() -> torch.Tensor:
    return log_probabilities(None, None)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_the_native_kernels_compute_what_the_references_do(quantization: str, unquantised: torch.Tensor) -> None:
    reference = log_probabilities(quantization, None)
    native = log_probabilities(quantization, instruction_sets()[0])
    lost = divergence(unquantised, reference)
    assert lost < LOST[quantization]
    assert divergence(reference, native) < KERNELS
    assert (reference.argmax(-1) == native.argmax(-1)).double().mean() > 0.92
