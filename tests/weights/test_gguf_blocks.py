"""GGUF's blocks against the gguf package: what it dequantises, our codes mean, exactly."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from qwench.gguf.header import TENSOR_TYPES
from qwench.ops.quantised import allocate, dequantise
from qwench.ops.weight_types import GGUF_TYPES
from qwench.weights.formats import gguf_blocks

ROWS, WIDTH = 5, 768
HALVES = {  # where the float16 numbers of a block lie; any other byte may be anything
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,), "MXFP4": (),
}  # fmt: skip


def random_blocks(name: str, rows: int, width: int, seed: int) -> np.ndarray:
    """Random bytes with finite float16 numbers where the format has them: [rows, bytes of a row]."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (rows * width // block, size), dtype=np.uint8)
    for begin in HALVES[name]:
        halves = generator.normal(0, 0.02, len(blocks)).astype(np.float16)
        blocks[:, begin : begin + 2] = halves[:, None].view(np.uint8)
    if name == "MXFP4":
        blocks[:, 0] = generator.integers(0, 252, len(blocks))  # above, products overflow
    return blocks.reshape(rows, -1)


def decoded(name: str, raw: np.ndarray, width: int) -> torch.Tensor:
    target = allocate(GGUF_TYPES[name], len(raw), width)
    gguf_blocks.decode(raw, target)
    return dequantise(target)


def theirs(name: str, raw: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name]))


def test_every_type_has_a_decoder_and_every_size_is_the_published_one() -> None:
    assert GGUF_TYPES.keys() == HALVES.keys()
    for number, kind in TENSOR_TYPES.items():
        published = gguf.GGMLQuantizationType(number)
        assert (published.name, gguf.GGML_QUANT_SIZES[published]) == (kind.name, (kind.block, kind.num_bytes))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", GGUF_TYPES)
def test_random_blocks_mean_the_same(name: str, seed: int) -> None:
    raw = random_blocks(name, ROWS, WIDTH, seed)
    found, expected = decoded(name, raw, WIDTH), theirs(name, raw)
    assert torch.isfinite(expected).all()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantised_by_the_package(name: str) -> None:
    weights = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(4))
    raw = gguf.quants.quantize(weights.numpy(), gguf.GGMLQuantizationType[name])
    assert torch.equal(decoded(name, raw, WIDTH), theirs(name, raw))


@pytest.mark.parametrize("name", GGUF_TYPES)
def test_filled_piece_by_piece(name: str) -> None:
    raw = random_blocks(name, ROWS, WIDTH, 7)
    whole, parts = (allocate(GGUF_TYPES[name], ROWS, WIDTH) for _ in range(2))
    gguf_blocks.decode(raw, whole)
    for begin, end in ((0, 2), (2, 5)):
        gguf_blocks.decode(raw[begin:end], gguf_blocks.rows(parts, begin, end))
    assert torch.equal(dequantise(whole), dequantise(parts))


def test_rounding_to_q8_is_the_package_s() -> None:
    weights = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(5))
    weights[2, 32:64] = 0
    target = allocate(GGUF_TYPES["Q8_0"], ROWS, WIDTH)
    gguf_blocks.round_to_q8(weights.numpy(), target)
    steps = torch.from_numpy(target.scales).float().repeat_interleave(32, 1)
    assert ((dequantise(target) - weights).abs() <= steps * 0.51).all()
