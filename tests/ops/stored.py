"""Tensors as the weights of given kernels, whole."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from qwench.ops.kernels import Kernels
from qwench.ops.linear import Weight
from qwench.ops.store import Plan


def stored(kernels: Kernels, tensors: Mapping[str, torch.Tensor]) -> dict[str, Weight]:
    """Every tensor [out, in] or [experts, out, in] under its name."""
    kinds = {name: tensor.dtype for name, tensor in tensors.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    store = kernels.store(Plan(shapes, kinds, next(iter(kinds.values()))))
    for name, tensor in tensors.items():
        store.put(name, None, tensor)
    return store.finish()
