"""What the engine sees with: the vision tower over the kernels of its choice.

Knows neither where pictures come from nor how the language model reads.
"""

from __future__ import annotations

from collections.abc import Generator

import torch

from qwench.config import VisionConfig
from qwench.model.vision import VisionTower
from qwench.ops.kernels import Kernels
from qwench.ops.store import Plan
from qwench.weights.vision import VisionWeights


def build_tower(config: VisionConfig, weights: VisionWeights, kernels: Kernels, device: str = "cpu") -> VisionTower:
    """The tower over ``weights``, laid out for ``kernels``."""
    shapes = {name: spec.shape for name, spec in weights.specs.items() if spec.kind == "matrix"}
    dtype = weights.kinds["merger.norm"]
    assert isinstance(dtype, torch.dtype)
    store = kernels.store(Plan(shapes, {name: weights.kinds[name] for name in shapes}, dtype, device))
    vectors: dict[str, torch.Tensor] = {}
    for name, value in weights.parts():
        if name in shapes:
            store.put(name, None, value)
        else:
            assert isinstance(value, torch.Tensor)
            vectors[name] = value.to(device)
    return VisionTower(config, store.finish(), vectors, dtype)


def finish(work: Generator[None, None, torch.Tensor]) -> torch.Tensor:
    """What ``work`` comes to, without a pause."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            found: torch.Tensor = end.value
            return found
