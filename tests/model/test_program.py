"""Whole models as programs: the bits of the same kernels called one by one, and the laws of batching to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qwench.ops.arrays import BFLOAT16, FLOAT32, DType, as_torch
from qwench.ops.kernels import NativeKernels, TorchKernels, native_usable
from qwench.ops.native import Native
from tests.model.driver import Driver
from tests.ops.calls import OneByOne

GOLDEN = Path(__file__).parents[1] / "golden"
LENGTHS = (1, 70, 3, 1, 33, 17)


@pytest.fixture(params=["dense", "moe"])
def folder(request: pytest.FixtureRequest) -> Path:
    usable, reason = native_usable("cpu", BFLOAT16)
    if not usable:
        pytest.skip(reason)
    return GOLDEN / str(request.param)


@pytest.fixture(params=[FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> DType:
    return request.param  # type: ignore[no-any-return]


def native(threads: int = 2) -> Native:
    return Native(native_usable("cpu", BFLOAT16)[1], threads)


def prompts(vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(8)
    return [torch.randint(0, vocabulary, (length,), generator=generator).tolist() for length in LENGTHS]


@pytest.mark.parametrize("chunk", [1, 20, 1000])
def test_a_program_gives_the_bits_of_its_operations_one_by_one(folder: Path, chunk: int) -> None:
    """In BF16: fp32 shows the last bit of e^x, which torch rounds its own way."""
    recorded = Driver(folder, kernels=NativeKernels(native()), dtype=BFLOAT16)
    called = Driver(folder, kernels=OneByOne(native()), dtype=BFLOAT16)
    asked = prompts(recorded.config.vocab_size)
    for found, expected in zip(recorded.logits(asked, chunk), called.logits(asked, chunk), strict=True):
        assert torch.equal(found, expected)
    for name in ("keys", "values", "conv", "recurrent"):
        for one, other in zip(getattr(recorded.storage, name), getattr(called.storage, name), strict=True):
            assert torch.equal(as_torch(one), as_torch(other))


@pytest.mark.parametrize("kept", ["auto", "int8"])
def test_company_cuts_and_threads_do_not_change_a_bit(folder: Path, dtype: DType, kept: str) -> None:
    driver = Driver(folder, kernels=NativeKernels(native()), dtype=dtype, kv_cache_dtype=kept)
    asked = prompts(driver.config.vocab_size)
    together = driver.logits(asked, 1000)
    alone = [driver.logits([ids], 1000)[0] for ids in asked]
    cut = driver.logits(asked, 7)
    alike = Driver(folder, kernels=NativeKernels(native(threads=1)), dtype=dtype, kv_cache_dtype=kept)
    single = alike.logits(asked, 1000)
    for each in (alone, cut, single):
        assert all(torch.equal(one, other) for one, other in zip(each, together, strict=True))


def test_another_cache_is_another_program(folder: Path) -> None:
    driver = Driver(folder, kernels=NativeKernels(native()))
    ids = prompts(driver.config.vocab_size)[1]
    (expected,) = driver.logits([ids], 1000)
    driver.storage = Driver(folder).storage
    (found,) = driver.logits([ids], 1000)
    assert torch.equal(found, expected)


def test_keys_and_values_in_8_bits_are_those_of_the_references(folder: Path) -> None:
    """Beside them stands what 8 bits change at all: the difference between the two must be far below it."""
    found, expected = (
        Driver(folder, kernels=kernels, kv_cache_dtype="int8") for kernels in (NativeKernels(native()), TorchKernels())
    )
    asked = prompts(found.config.vocab_size)
    exact = torch.cat(Driver(folder).logits(asked, 1000))
    wanted = torch.cat(expected.logits(asked, 1000))
    strayed = (torch.cat(found.logits(asked, 1000)) - wanted).abs().mean()
    assert 20 * strayed < (wanted - exact).abs().mean()
