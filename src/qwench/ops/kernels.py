"""Who computes a model's operations: torch's references, or the native library where it does the same faster.

The choice is made once, when a model is put together, by functions that answer (ok, reason). A model calls what is
here without knowing which it got.
"""

from __future__ import annotations

import functools
from typing import Protocol

import torch

from qwench.ops import attention, norm
from qwench.ops import delta_net as reference
from qwench.ops.choosing import Chooser, NativeChooser, TorchChooser
from qwench.ops.delta_net import DeltaInputs, DeltaParameters
from qwench.ops.linear import Dense, Packed, Weight, expert_mlp, route
from qwench.ops.native import (
    ATTENTION_WIDTH,
    DELTA_WIDTH,
    TYPES,
    Arena,
    DeltaArguments,
    Native,
    instruction_sets,
    require_equal,
    type_of,
)
from qwench.ops.rows import Rows


class Kernels(Protocol):
    """The operations of which there is more than one version; contracts are those of the references."""

    @property
    def chooser(self) -> Chooser:
        """The passes over logits."""

    def weights(self, tensors: dict[str, torch.Tensor]) -> dict[str, Weight]:
        """Tensors [out, in] or [experts, out, in] as weights. ``tensors`` is emptied: each is freed once packed."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, *, zero_centred: bool) -> torch.Tensor:
        """See ops/norm."""

    def delta_net(
        self,
        inputs: DeltaInputs,
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

    chooser = TorchChooser()
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

    def weights(self, tensors: dict[str, torch.Tensor]) -> dict[str, Weight]:
        taken: dict[str, Weight] = {name: Dense(tensor) for name, tensor in tensors.items()}
        tensors.clear()
        return taken


class NativeKernels:
    """The native library where it has the operation, the references for what is left."""

    def __init__(self, native: Native) -> None:
        self.native = native
        self.chooser = NativeChooser(native)

    def weights(self, tensors: dict[str, torch.Tensor]) -> dict[str, Weight]:
        arena = Arena(sum(self._packed_bytes(tensor) for tensor in tensors.values()))
        packed: dict[str, Weight] = {}
        for name in list(tensors):
            packed[name] = self._pack(tensors.pop(name), arena)
        return packed

    def _packed_bytes(self, tensor: torch.Tensor) -> int:
        out, width = tensor.shape[-2:]
        return self.native.packed_bytes(tensor.dtype, out, width) * (tensor.numel() // (out * width))

    def _pack(self, tensor: torch.Tensor, arena: Arena) -> Packed:
        matrices = tensor if tensor.dim() == 3 else tensor[None]
        return Packed(self.native, tuple(self.native.pack(matrix, arena) for matrix in matrices))

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, *, zero_centred: bool) -> torch.Tensor:
        return self.native.rms_norm(x, weight, eps, 1.0 if zero_centred else 0.0)

    def delta_net(
        self,
        inputs: DeltaInputs,
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
            parameters.conv.shape[1], TYPES[mixed.dtype], parameters.eps, *(tensor.data_ptr() for tensor in pointers),
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
    inputs: DeltaInputs, parameters: DeltaParameters, conv_states: torch.Tensor, states: torch.Tensor, rows: Rows
) -> None:
    """Every dimension that two tensors share. Raises ValueError naming the one that differs."""
    same = functools.partial(require_equal, "delta_net")
    slots, value_heads, key_dim, value_dim = states.shape
    tokens, channels = inputs.mixed.shape
    values = value_heads * value_dim
    heads = 2 * parameters.num_key_heads * key_dim + values
    same("key_dim", parameters=parameters.key_dim, states=key_dim)
    same("channels", heads=heads, mixed=channels, conv=len(parameters.conv), conv_states=conv_states.shape[2])
    same("taps - 1", conv=parameters.conv.shape[1] - 1, conv_states=conv_states.shape[1])
    same("value_heads * value_dim", states=values, gate=inputs.gate.shape[1])
    vectors = {"a_log": len(parameters.a_log), "dt_bias": len(parameters.dt_bias)}
    same("value_heads", states=value_heads, beta=inputs.beta.shape[1], decay=inputs.decay.shape[1], **vectors)
    same("value_dim", states=value_dim, norm=len(parameters.norm))
    same("slots", states=slots, conv_states=len(conv_states))
    same("rows", lengths=len(rows.lengths), slots=len(rows.state_slots))
    projections = {"gate": len(inputs.gate), "beta": len(inputs.beta), "decay": len(inputs.decay)}
    same("tokens", mixed=tokens, lengths=sum(rows.lengths), **projections)
    same("value heads beyond whole groups", value_heads=value_heads % parameters.num_key_heads, needed=0)
    activations = {"gate": inputs.gate, "beta": inputs.beta, "decay": inputs.decay, "conv_states": conv_states}
    type_of("delta_net", mixed=inputs.mixed, **activations)
    assert max(key_dim, value_dim) <= DELTA_WIDTH, f"delta_net: heads are at most {DELTA_WIDTH} wide"
    assert conv_states.is_contiguous()
    assert states.is_contiguous()
    assert states.dtype == parameters.dt_bias.dtype == torch.float32
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
