"""Who computes a model's operations: torch's references, or the native library where it does the same faster.

The choice is made once, when a model is put together, by functions that answer (ok, reason). A model calls what is
here without knowing which it got.
"""

from __future__ import annotations

from typing import Protocol

import torch

from qwench.ops.alone import Alone, NativeAlone, TorchAlone
from qwench.ops.choosing import Chooser, NativeChooser, TorchChooser
from qwench.ops.eager import Eager
from qwench.ops.native import TYPES, Native, instruction_sets
from qwench.ops.operations import Description, Inputs
from qwench.ops.program import Program, Recorder
from qwench.ops.store import NativeStore, Plan, TorchStore, WeightStore


class Kernels(Protocol):
    """What computes a model: where its weights lie, its forward pass, and the passes over its logits."""

    @property
    def chooser(self) -> Chooser:
        """The passes over logits."""

    @property
    def alone(self) -> Alone:
        """Operations that are called one by one."""

    def store(self, plan: Plan) -> WeightStore:
        """Where the weights of ``plan`` are put, in the form these kernels compute with."""

    def forward(self, describe: Description, inputs: Inputs, cache: object) -> torch.Tensor:
        """The logits [L, V] of a step, fp32; ``cache`` is advanced. One model for all calls."""


class TorchKernels:
    """The references."""

    chooser = TorchChooser()
    alone = TorchAlone()

    def forward(self, describe: Description, inputs: Inputs, cache: object) -> torch.Tensor:
        return describe(Eager(inputs), cache)

    def store(self, plan: Plan) -> WeightStore:
        return TorchStore(plan)


class NativeKernels:
    """The native library: a forward pass is a program of its instructions."""

    def __init__(self, native: Native) -> None:
        self.native = native
        self.chooser = NativeChooser(native)
        self.alone = NativeAlone(native)
        self._recorded: object = None
        self._programs: dict[bool, Program] = {}  # for steps that bring what their tokens begin as, and for others

    def forward(self, describe: Description, inputs: Inputs, cache: object) -> torch.Tensor:
        """By a program, which is recorded for a cache when it first comes: it holds the cache's addresses."""
        if self._recorded is not cache:
            self._recorded, self._programs = cache, {}
        embedded = inputs.embedded is not None
        if embedded not in self._programs:
            recorder = Recorder(inputs.rows.page_size, inputs.cos.shape[1], embedded)
            logits = describe(recorder, cache)
            self._programs[embedded] = Program(self.native, recorder.instructions, logits.width)
        return self._programs[embedded].run(inputs)

    def store(self, plan: Plan) -> WeightStore:
        return NativeStore(self.native, plan)


def native_usable(device: str, dtype: torch.dtype) -> tuple[bool, str]:
    """Whether the native kernels can run here, and the best instruction set for them, or why they cannot."""
    if device != "cpu":
        return False, "the native kernels are for the CPU"
    if dtype not in TYPES:
        return False, f"no native kernels for {str(dtype).removeprefix('torch.')}"
    try:
        return True, instruction_sets()[0]
    except OSError as error:
        return False, f"no native library: {error}"


def make_kernels(isa: str | None, threads: int) -> Kernels:
    """Native kernels on the instruction set ``isa`` with a pool of their own, or torch's where it is None."""
    return TorchKernels() if isa is None else NativeKernels(Native(isa, threads))
