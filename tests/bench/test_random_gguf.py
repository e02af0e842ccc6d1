"""Random GGUF files: read back by the gguf package, with the sizes and spreads that published files have."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gguf
import numpy as np
import pytest

from qwench.bench.random_gguf import MIXES, tensors_of, write_random_gguf
from qwench.bench.subject import published_shape
from qwench.config import ModelConfig
from qwench.errors import UsageError
from qwench.model.parameters import declare

SMALL = {"vocab_size": 1024, "hidden_size": 256, "intermediate_size": 512}
NAMES = ("qwen3.5:0.8b", "qwen3.5:35b-a3b", "qwen3:0.6b", "qwen3:30b-a3b")


def small(name: str, **changes: object) -> ModelConfig:
    model = published_shape(name, 8 if "3.5" in name else 2)
    moe = model.moe and dataclasses.replace(model.moe, num_experts=4, experts_per_token=2, intermediate_size=64)
    return dataclasses.replace(model, **{**SMALL, "moe": moe, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("name", NAMES)
def test_every_weight_is_there_and_no_more(name: str, mix: str, tmp_path: Path) -> None:
    model = small(name)
    path = tmp_path / "random.gguf"
    assert write_random_gguf(path, model, mix) == path.stat().st_size
    reader = gguf.GGUFReader(path)
    stored = sum(int(tensor.n_elements) for tensor in reader.tensors)
    declared = sum(int(np.prod(spec.shape)) for spec in declare(model).values())
    assert stored == declared
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.isfinite(values).all()
        if len(tensor.shape) > 1 and "conv1d" not in tensor.name:
            scaled = values * np.sqrt(values.shape[-1])
            assert abs(scaled.mean()) < 0.15, tensor.name  # codes 0 to 15 less 8 have a mean of -1/2
            assert 0.6 < scaled.std() < 1.5, tensor.name
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_mix_is_as_large_as_the_published_one() -> None:
    """MB of 0.8B files as llama.cpp's quantiser writes them."""
    model = published_shape("qwen3.5:0.8b")
    for mix, megabytes in (("Q4_0", 490), ("Q4_K_M", 518), ("Q8_0", 801), ("BF16", 1505)):
        total = 0
        for tensor in tensors_of(model, mix):
            block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[tensor.type]]
            total += int(np.prod(tensor.shape)) // block * size
        assert total / 1e6 == pytest.approx(megabytes, abs=2), mix


def test_the_vocabulary_has_no_word_twice(tmp_path: Path) -> None:
    model = small("qwen3.5:0.8b", vocab_size=248320)
    path = tmp_path / "random.gguf"
    write_random_gguf(path, model, "Q8_0")
    field = gguf.GGUFReader(path).fields["tokenizer.ggml.tokens"]
    tokens = [bytes(field.parts[index]).decode() for index in field.data]
    assert len(set(tokens)) == len(tokens) == 248320
    assert tokens[248046] == "<|im_end|>"


def test_an_unknown_mix_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'Q9' is no mix of types; give one of Q4_0"):
        write_random_gguf(tmp_path / "x.gguf", published_shape("qwen3.5:0.8b"), "Q9")
