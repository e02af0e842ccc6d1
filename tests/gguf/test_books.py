"""Types that are indices into code books: their numbers are the gguf package's, rounded once more, and that is told."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from qwench.engine.start import _converted
from qwench.errors import CheckpointError
from qwench.files import read_config
from qwench.gguf.file import open_gguf
from qwench.ops.arrays import FLOAT32
from qwench.ops.quantised import Codes, dequantise
from qwench.weights.gguf import GgufSource
from qwench.weights.gguf_match import BOOKS
from tests.gguf.conftest import export_nano

KINDS = {f"blk.{layer}.attn_{part}.weight": name for name, (layer, part) in zip(
    BOOKS, [(layer, part) for part in ("qkv", "gate") for layer in (0, 1, 2, 4, 5, 6)], strict=False
)}  # fmt: skip
SCALE_AT = {"TQ1_0": 52, "TQ2_0": 64}  # the byte of a block's float16 scale; elsewhere it comes first
LEAST = 0.06  # of the numbers' size: what rounding once more may cost; the types themselves cost 0.2 to 0.5


def random_blocks(kind: gguf.GGMLQuantizationType, rows: int, width: int) -> np.ndarray:
    """Random codes under a scale of 0.02: [rows, bytes of a row]."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(kind.value).integers(0, 256, (rows * width // block, size), dtype=np.uint8)
    scale = np.float16(0.02).view(np.uint16)
    if kind.name == "IQ1_M":  # its scale lies in the upper quarters of four words
        words = blocks[:, 48:].copy().view(np.uint16) & 0x0FFF
        blocks[:, 48:] = (words | ((scale >> np.array([0, 4, 8, 12], np.uint16)) & 15) << 12).view(np.uint8)
    else:
        begin = SCALE_AT.get(kind.name, 0)
        blocks[:, begin : begin + 2] = scale.reshape(1).view(np.uint8)
    if kind.name.startswith("TQ"):
        blocks[:, : SCALE_AT[kind.name]] %= 86  # no digit is more than two
        blocks[:, : SCALE_AT[kind.name]] &= 0x55 if kind.name == "TQ2_0" else 0xFF
    return blocks.reshape(rows, -1)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano with one matrix of each type."""

    def quantise(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
        return random_blocks(kind, *values.shape)

    def choose(name: str, shape: tuple[int, ...]) -> gguf.GGMLQuantizationType:
        return gguf.GGMLQuantizationType[KINDS.get(name, "F32")]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.quants, "quantize", quantise)
        return export_nano(tmp_path_factory.mktemp("books") / "nano.gguf", choose)


def test_every_type_is_covered() -> None:
    assert set(KINDS.values()) == BOOKS.keys()


def test_numbers_are_those_of_the_package_rounded_once_more(file: Path) -> None:
    opened = open_gguf(file)
    source = GgufSource(opened, read_config(opened), FLOAT32)
    pieces: dict[str, list[torch.Tensor]] = {}
    for part, value in source.parts():
        if isinstance(value, Codes):
            pieces.setdefault(part.name, []).append(dequantise(value))
    stored = {each.name: each for each in gguf.GGUFReader(file).tensors}
    for name, kind in KINDS.items():
        _, layer, rest = name.split(".", 2)
        ours = f"layers.{layer}.delta.{'qkv' if 'qkv' in rest else 'gate'}"
        assert source.kinds[ours] == BOOKS[kind]
        found = torch.cat(pieces.pop(ours))
        expected = torch.from_numpy(gguf.quants.dequantize(stored[name].data, stored[name].tensor_type))
        assert expected.abs().max() > 0
        assert (found - expected).norm() < LEAST * expected.norm(), kind
    assert not pieces


def test_the_start_says_what_becomes_what(file: Path) -> None:
    opened = open_gguf(file)
    lines = list(_converted(GgufSource(opened, read_config(opened), FLOAT32)))
    assert {line.reason.split()[0] for line in lines} == BOOKS.keys()
    assert {line.value for line in lines} == {"1 tensors to q4", "1 tensors to q2"}


def test_without_the_package_the_tensor_and_the_way_out_are_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    opened = open_gguf(file)
    with pytest.raises(
        CheckpointError, match=r"attn_\w+\.weight has the type \w+, whose code book .* `pip install gguf`"
    ):
        GgufSource(opened, read_config(opened), FLOAT32)
