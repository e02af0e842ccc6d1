"""Who computes a model's operations: torch's references, or the native library where it does the same faster.

The choice is made once, when a model is put together, by functions that answer (ok, reason). A model calls what is
here without knowing which it got.
"""

from __future__ import annotations

from typing import Protocol

import torch

from qwench.ops import attention, norm
from qwench.ops import delta_net as reference
from qwench.ops.delta_net import DeltaInputs, DeltaParameters
from qwench.ops.eager import Eager
from qwench.ops.linear import Packed, Weight, expert_mlp, route
from qwench.ops.native import (
    ATTENTION_WIDTH,
    TYPES,
    DeltaArguments,
    Native,
    instruction_sets,
    require_equal,
    type_of,
)
from qwench.ops.operations import Description, Inputs
from qwench.ops.program import Program, Recorder, check_delta
from qwench.ops.rows import Rows
from qwench.ops.store import NativeStore, Plan, TorchStore, WeightStore


class Kernels(Protocol):
    """The operations of which there is more than one version; contracts are those of the references."""

    def store(self, plan: Plan) -> WeightStore:
        """Where the weights of ``plan`` are put, in the form these kernels compute with."""

    def forward(self, describe: Description, inputs: Inputs, cache: object) -> torch.Tensor:
        """The logits [L, V] of a step, fp32; ``cache`` is advanced. One model for all calls."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, *, zero_centred: bool) -> torch.Tensor:
        """See ops/norm."""

    def delta_net(
        self,
        inputs: DeltaInputs[torch.Tensor],
        parameters: DeltaParameters,
        conv_states: torch.Tensor,
        states: torch.Tensor,
        rows: Rows,
    ) -> torch.Tensor:
        """See ops/delta_net."""

    def paged_attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        rows: Rows,
    ) -> torch.Tensor:
        """See ops/attention."""

    def experts(
        self,
        x: torch.Tensor,
        logits: torch.Tensor,
        gate_up: Weight,
        down: Weight,
        experts_per_token: int,
        *,
        normalise: bool,
    ) -> torch.Tensor:
        """x [T, H] through the experts that the logits [T, E] choose: see route and expert_mlp in ops/linear."""


class TorchKernels:
    """The references."""

    rms_norm = staticmethod(norm.rms_norm)
    delta_net = staticmethod(reference.delta_net)
    paged_attention = staticmethod(attention.paged_attention)

    def experts(
        self,
        x: torch.Tensor,
        logits: torch.Tensor,
        gate_up: Weight,
        down: Weight,
        experts_per_token: int,
        *,
        normalise: bool,
    ) -> torch.Tensor:
        weights, experts = route(logits, experts_per_token, normalise=normalise)
        return expert_mlp(x, weights, experts, gate_up, down)

    def forward(self, describe: Description, inputs: Inputs, cache: object) -> torch.Tensor:
        return describe(Eager(self, inputs), cache)

    def store(self, plan: Plan) -> WeightStore:
        return TorchStore(plan)


class NativeKernels:
    """The native library where it has the operation, the references for what is left."""

    def __init__(self, native: Native) -> None:
        self.native = native
        self._recorded: tuple[object, Program] | None = None

    def forward(self, describe: Description, inputs: Inputs, cache: object) -> torch.Tensor:
        """By a program, which is recorded for a cache when it first comes: it holds the cache's addresses."""
        if self._recorded is None or self._recorded[0] is not cache:
            recorder = Recorder(inputs.rows.page_size, inputs.cos.shape[1])
            logits = describe(recorder, cache)
            self._recorded = cache, Program(self.native, recorder.instructions, logits.width)
        return self._recorded[1].run(inputs)

    def store(self, plan: Plan) -> WeightStore:
        return NativeStore(self.native, plan)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, *, zero_centred: bool) -> torch.Tensor:
        return self.native.rms_norm(x, weight, eps, 1.0 if zero_centred else 0.0)

    def delta_net(
        self,
        inputs: DeltaInputs[torch.Tensor],
        parameters: DeltaParameters,
        conv_states: torch.Tensor,
        states: torch.Tensor,
        rows: Rows,
    ) -> torch.Tensor:
        _check_delta(inputs, parameters, conv_states, states, rows)
        _, value_heads, key_dim, value_dim = states.shape
        # Converted copies are bound to names: the arguments hold bare addresses.
        mixed, gate, slots = inputs.mixed.contiguous(), inputs.gate.contiguous(), rows.state_slots.contiguous()
        beta, decay, output = inputs.beta.contiguous(), inputs.decay.contiguous(), torch.empty_like(gate)
        fixed = (parameters.taps, parameters.decay_rate, parameters.dt_bias, parameters.scale)
        pointers = (rows.starts, slots, mixed, beta, decay, gate, *fixed, conv_states, states, output)
        arguments = DeltaArguments(
            len(rows.lengths), len(states), parameters.num_key_heads, value_heads, key_dim, value_dim,
            parameters.conv.shape[1], parameters.tiled, TYPES[mixed.dtype], parameters.eps,
            *(tensor.data_ptr() for tensor in pointers),
        )  # fmt: skip
        if not self.native.delta_net(arguments):
            raise IndexError(f"delta_net: a slot of {slots.tolist()} is not among the {len(states)} there are")
        return output

    def paged_attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        rows: Rows,
    ) -> torch.Tensor:
        if query.shape[-1] > ATTENTION_WIDTH:
            return attention.paged_attention(query, key, value, keys, values, rows)
        return self.native.attention((query, key, value), keys, values, rows)

    def experts(
        self,
        x: torch.Tensor,
        logits: torch.Tensor,
        gate_up: Weight,
        down: Weight,
        experts_per_token: int,
        *,
        normalise: bool,
    ) -> torch.Tensor:
        assert isinstance(gate_up, Packed)
        assert isinstance(down, Packed)
        weights = gate_up.experts, down.experts
        return self.native.experts(x, logits, weights, experts_per_token, normalise=normalise)


def _check_delta(
    inputs: DeltaInputs[torch.Tensor],
    parameters: DeltaParameters,
    conv_states: torch.Tensor,
    states: torch.Tensor,
    rows: Rows,
) -> None:
    """Every dimension that two tensors share. Raises ValueError naming the one that differs."""
    parts = {"mixed": inputs.mixed, "gate": inputs.gate, "beta": inputs.beta, "decay": inputs.decay}
    check_delta(DeltaInputs(*(part.shape[1] for part in parts.values())), parameters, conv_states, states)
    require_equal("delta_net", "rows", lengths=len(rows.lengths), slots=len(rows.state_slots))
    tokens = {name: len(part) for name, part in parts.items()}
    require_equal("delta_net", "tokens", lengths=sum(rows.lengths), **tokens)
    type_of("delta_net", **parts, conv_states=conv_states)
    assert rows.state_slots.dtype == torch.int64


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
