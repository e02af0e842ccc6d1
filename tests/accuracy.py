"""What our types and recipes lose, measured as llama.cpp's are: on single layers, and on the text of the receipts.

tools/accuracy.py prints the tables of docs/accuracy.md from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

from qwench.cli.quantize import TEXT, _ids
from qwench.config import EngineConfig, ModelConfig
from qwench.engine.receipt import Receipt, compare, keep, log_probabilities
from qwench.files import open_files, read_config
from qwench.ops.arrays import FLOAT32
from qwench.ops.quantised import dequantise
from qwench.ops.weight_types import OWN_TYPES
from qwench.weights.quantise import quantise
from qwench.weights.recipe import kinds_for
from qwench.weights.source import memory_bytes

NANO = Path(__file__).parents[1] / "src" / "qwench" / "assets" / "nano"
# Ours, and llama.cpp's nearest in size.
TYPES = {
    "q8": ("Q8_0",), "q6": ("Q6_K",), "q5": ("Q5_K", "Q5_0", "Q5_1"), "q4": ("Q4_K", "Q4_0", "Q4_1"), "q3": ("Q3_K",),
    "q2": ("Q2_K",), "mxfp4": ("MXFP4",),
}  # fmt: skip
RECIPES = {"q5": ("Q5_K_M",), "q4": ("Q4_K_M", "Q4_0"), "q3": ("Q3_K_M",), "q2": ("Q2_K",)}
LAYERS = {"mlp.gate": 1024, "delta.output": 2048, "mlp.down": 3584}  # of the 0.8B, with their depths
SORTS = ("normal", "student", "outliers")
ROWS, TOKENS = 192, 256  # outputs of a layer do not know one another


def bits_of(name: str) -> float:
    """Of a weight of our type in a file."""
    kind = OWN_TYPES[name]
    return kind.bits_per_weight - (0.25 if kind.table else 0)  # a power of two takes a byte there


def drawn(sort: str, width: int) -> torch.Tensor:
    """Rows of a layer: normal numbers, Student's of four degrees of freedom, or one of a hundred nine times larger."""
    generator = torch.Generator().manual_seed(width)
    weight = torch.randn(ROWS, width, generator=generator)
    if sort == "student":
        weight /= (torch.randn(4, ROWS, width, generator=generator).square().mean(0)).sqrt()
    if sort == "outliers":
        weight *= 1 + 8 * (torch.rand(ROWS, width, generator=generator) < 0.01)
    return weight * 0.02


def lost(weight: torch.Tensor, rounded: torch.Tensor) -> float:
    """How far a layer's outputs are off, relative to their size, for normal inputs."""
    x = torch.randn(TOKENS, weight.shape[1], generator=torch.Generator().manual_seed(1))
    expected = F.linear(x, weight)
    return float((F.linear(x, rounded) - expected).norm() / expected.norm())


def ours(weight: torch.Tensor, name: str) -> torch.Tensor:
    return dequantise(quantise(weight, OWN_TYPES[name]))


class Receipts:
    """Receipts of nano, the original read once; ``folder`` keeps it."""

    def __init__(self, folder: Path) -> None:
        self.config = ModelConfig.from_folder(NANO)
        self._ids = _ids(NANO, self.config)
        self._reference = folder / "reference.bin"
        keep(self._probabilities(NANO, self.config, None), self._reference)

    def of_recipe(self, quantization: str) -> Receipt:
        return self._receipt(self._probabilities(NANO, self.config, quantization))

    def of_file(self, path: Path) -> Receipt:
        return self._receipt(self._probabilities(path, read_config(open_files(path)), None))

    def recipe_bytes(self, quantization: str) -> float:
        """What is not quantised takes fp32, as in the files it is compared with."""
        return memory_bytes(self.config, kinds_for(self.config, quantization, FLOAT32))

    def _receipt(self, chunks: Iterator[torch.Tensor]) -> Receipt:
        return compare(self._reference, chunks, TEXT)

    def _probabilities(self, path: Path, config: ModelConfig, quantization: str | None) -> Iterator[torch.Tensor]:
        length = len(self._ids)
        settings = EngineConfig(
            model=str(path), dtype="float32", max_model_len=length + 1, max_num_seqs=1, quantization=quantization
        )
        return log_probabilities(settings, config, path, self._ids, lambda done, total: None)
