"""Logits and greedy ids of the stored golden checkpoints (tools/golden.py made them): no transformers needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwench.ops.arrays import FLOAT32
from qwench.ops.kernels import TorchKernels, make_kernels, native_usable
from tests.model.driver import Driver
from tests.tolerances import tolerance

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", ["dense", "moe"])
@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_stored_logits_and_ids_still_come_out(name: str, chunk: int) -> None:
    folder = GOLDEN / name
    facts = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    driver = Driver(folder)
    prompt, answer = facts["prompt"], facts["greedy"]
    (logits,) = driver.logits([prompt + answer], chunk)
    stored = load_file(folder / "golden.safetensors")["logits"]
    assert (logits[: len(prompt)] - stored).abs().max() < tolerance("model_logits")
    assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == answer


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_native_kernels_give_the_stored_logits_and_ids(name: str) -> None:
    usable, isa = native_usable("cpu", FLOAT32)
    if not usable:
        pytest.skip(isa)
    folder = GOLDEN / name
    facts = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    prompt, answer = facts["prompt"], facts["greedy"]
    stored = load_file(folder / "golden.safetensors")["logits"]
    for chunk in (1, 7, 1000):
        (logits,) = Driver(folder, kernels=make_kernels(isa, threads=2)).logits([prompt + answer], chunk)
        assert (logits[: len(prompt)] - stored).abs().max() < tolerance("model_logits", backend="native")
        assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == answer


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["dense", "moe"])
def test_cuda_gives_the_logits_of_the_cpu(name: str) -> None:
    folder = GOLDEN / name
    prompt = json.loads((folder / "golden.json").read_text(encoding="utf-8"))["prompt"]
    stored = load_file(folder / "golden.safetensors")["logits"]
    for chunk in (1, 64, 1000):
        (logits,) = Driver(folder, kernels=TorchKernels("cuda")).logits([prompt], chunk)
        assert logits.dtype == torch.float32
        assert (logits.cpu() - stored).abs().max() < tolerance("model_logits", backend="cuda")
