"""A weight source read in full: what the tests look at. The engine never does this."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from qwench.config import ModelConfig
from qwench.model.parameters import declare
from qwench.ops.arrays import as_dtype, to_torch
from qwench.ops.quantised import Codes, concatenate
from qwench.ops.store import Value
from qwench.weights.load import CheckpointSource
from qwench.weights.source import Part, Progress, UnusedTensor, WeightSource


@dataclass(frozen=True)
class Loaded:
    """All tensors by our names, in the order of their declaration."""

    tensors: dict[str, torch.Tensor]
    unused: list[UnusedTensor]
    num_bytes: int


def parts_of(source: WeightSource, progress: Progress | None = None) -> dict[Part, Value]:
    """Every part whole. The pieces of a part must come in a row, and no part twice."""
    found: dict[Part, list[Value]] = {}
    last = None
    for part, value in source.parts(progress):
        assert part == last or part not in found, f"{part} comes again"
        found.setdefault(part, []).append(value if isinstance(value, Codes) else to_torch(value))
        last = part
    return {part: _joined(values) for part, values in found.items()}


def _joined(values: list[Value]) -> Value:
    codes = [value for value in values if isinstance(value, Codes)]
    if codes:
        return concatenate(codes)
    return torch.cat([value for value in values if isinstance(value, torch.Tensor)])


def tensors_of(config: ModelConfig, source: WeightSource, progress: Progress | None = None) -> dict[str, torch.Tensor]:
    """Every parameter of an unquantised source."""
    parts = parts_of(source, progress)
    found: dict[str, torch.Tensor] = {}
    for name, spec in declare(config).items():
        places = [Part(name, expert) for expert in range(spec.shape[0])] if spec.kind == "experts" else [Part(name)]
        values = [parts.pop(place) for place in places]
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        found[name] = torch.stack(tensors) if spec.kind == "experts" else tensors[0]
        assert tuple(found[name].shape) == spec.shape
    assert not parts, f"not declared: {list(parts)}"
    return found


def load(folder: Path, config: ModelConfig, *, dtype: torch.dtype, progress: Progress | None = None) -> Loaded:
    """A checkpoint in full."""
    source = CheckpointSource(folder, config, as_dtype(dtype))
    tensors = tensors_of(config, source, progress)
    return Loaded(tensors, source.unused, sum(tensor.nbytes for tensor in tensors.values()))
