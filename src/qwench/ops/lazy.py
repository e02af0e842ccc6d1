"""torch, imported by the first line that computes with it. The native kernels never do, and start a second sooner."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
else:

    class _Module:
        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            return getattr(import_module(self._name), attribute)

    torch, F = _Module("torch"), _Module("torch.nn.functional")

__all__ = ["F", "torch"]
