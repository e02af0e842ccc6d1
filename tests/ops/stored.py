"""Tensors as the weights of some kernels."""

from __future__ import annotations

import torch

from qwench.ops.arrays import dtype_of
from qwench.ops.kernels import Kernels
from qwench.ops.linear import Weight
from qwench.ops.store import Plan


def stored(kernels: Kernels, tensors: dict[str, torch.Tensor]) -> dict[str, Weight]:
    """Each tensor, [out, in] or [experts, out, in], under its name."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    kinds = {name: dtype_of(tensor) for name, tensor in tensors.items()}
    store = kernels.store(Plan(shapes, kinds, next(iter(kinds.values()))))
    for name, tensor in tensors.items():
        store.put(name, None, tensor)
    return store.finish()
