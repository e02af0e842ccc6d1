"""GGUF files beside llama.cpp: the same logits of the same file, and receipts no worse than those of larger files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qwench.ops.arrays import FLOAT32
from qwench.ops.kernels import Kernels, make_kernels, native_usable
from tests import llama
from tests.accuracy import RECIPES, Receipts
from tests.model.driver import Driver

pytestmark = pytest.mark.slow
TOKENS = 70
# How far logits may be apart, relative to their size. llama.cpp rounds the inputs of BF16 layers to BF16, we do not;
# both round those of quantised layers to 8 bits, llama.cpp under one scale for 256 where the type has super-blocks.
APART = {"F32": 1e-4, "BF16": 0.01, "Q8_0": 0.03, "Q4_K_M": 0.07}


@pytest.fixture(scope="module")
def receipts(tmp_path_factory: pytest.TempPathFactory) -> Receipts:
    return Receipts(tmp_path_factory.mktemp("receipts"))


def kernels(name: str) -> Kernels:
    usable, isa = native_usable("cpu", FLOAT32)
    if name == "native" and not usable:
        pytest.skip(isa)
    return make_kernels(isa if name == "native" else None, threads=1)


@pytest.mark.parametrize("mix", APART)
@pytest.mark.parametrize("backend", ["torch", "native"])
def test_logits_are_llama_cpp_s(mix: str, backend: str, nano_f32: Path, tmp_path: Path) -> None:
    path = nano_f32 if mix == "F32" else llama.quantised_file(nano_f32, tmp_path / "nano.gguf", mix)
    ids = torch.randint(0, 4000, (TOKENS,), generator=torch.Generator().manual_seed(3)).tolist()
    expected = llama.logits(path, ids)
    (found,) = Driver(path, kernels=kernels(backend)).logits([ids], 64)
    apart = found - expected
    assert apart.norm() < APART[mix] * expected.norm()
    first, second = expected.topk(2).values.unbind(-1)
    clear = first - second > 3 * apart.square().mean().sqrt()  # of random ids many have two first choices
    assert clear.float().mean() > 0.6
    assert (found.argmax(-1) == expected.argmax(-1))[clear].all()


@pytest.mark.parametrize(("recipe", "mix"), [(recipe, mix) for recipe, mixes in RECIPES.items() for mix in mixes])
def test_receipts_are_no_worse_than_those_of_larger_files(
    recipe: str, mix: str, receipts: Receipts, nano_f32: Path, tmp_path: Path
) -> None:
    path = llama.quantised_file(nano_f32, tmp_path / "nano.gguf", mix)
    assert receipts.recipe_bytes(recipe) <= llama.tensor_bytes(path)
    found, expected = receipts.of_recipe(recipe), receipts.of_file(path)
    assert found.divergence <= expected.divergence
    assert found.agreement >= expected.agreement
