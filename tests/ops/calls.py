"""Native operations called one at a time, as their references are, to be compared with them.

A model's program calls them without Python in between (csrc/program.cpp); what is checked here it checks when it is
recorded.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import torch

from qwench.ops.arrays import Array, DType, Host, address_of, dtype_of, to_host, to_torch
from qwench.ops.attention import kept_width
from qwench.ops.delta_net import DeltaInputs, DeltaParameters
from qwench.ops.eager import Eager
from qwench.ops.kernels import NativeKernels
from qwench.ops.linear import Packed, Weight
from qwench.ops.native import (
    ATTENTION_WIDTH,
    AttentionArguments,
    DeltaArguments,
    ExpertsArguments,
    Native,
    NormArguments,
    load_library,
    require_equal,
    type_of,
)
from qwench.ops.operations import Description, Inputs
from qwench.ops.program import check_delta
from qwench.ops.rows import Rows


class NativeCalls(NativeKernels):
    """The native kernels, and each of their operations alone."""

    def __init__(self, native: Native) -> None:
        super().__init__(native)
        self._library, self._context = load_library(), native.context

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, *, zero_centred: bool) -> torch.Tensor:
        """See ops/norm."""
        require_equal("rms_norm", "width", x=x.shape[-1], weight=weight.shape[0])
        code = type_of("rms_norm", x=x, weight=weight)
        y = torch.empty(x.shape, dtype=x.dtype)
        rows = dense_rows(x.reshape(-1, x.shape[-1]))
        weight = weight.contiguous()
        arguments = NormArguments(
            rows.shape[0], rows.shape[1], code, eps, float(zero_centred), rows.data_ptr(), rows.stride(0),
            weight.data_ptr(), y.data_ptr(), x.shape[-1],
        )  # fmt: skip
        self._library.qw_rms_norm(self._context, arguments)
        return y

    def delta_net(
        self,
        inputs: DeltaInputs[torch.Tensor],
        parameters: DeltaParameters,
        conv_states: torch.Tensor,
        states: torch.Tensor,
        rows: Rows,
    ) -> torch.Tensor:
        """See ops/delta_net. Raises IndexError for a slot that does not exist, and nothing is done."""
        check_delta_tokens(inputs, parameters, conv_states, states, rows)
        _, value_heads, key_dim, value_dim = states.shape
        # Converted copies are bound to names: the arguments hold bare addresses.
        mixed, gate, slots = inputs.mixed.contiguous(), inputs.gate.contiguous(), rows.state_slots.contiguous()
        beta, decay, output = inputs.beta.contiguous(), inputs.decay.contiguous(), torch.empty_like(gate)
        fixed = (parameters.taps, parameters.decay_rate, parameters.dt_bias, parameters.scale)
        pointers = (
            rows.starts,
            slots,
            rows.save_tokens,
            rows.save_slots,
            mixed,
            beta,
            decay,
            gate,
            *fixed,
            conv_states,
            states,
            output,
        )
        arguments = DeltaArguments(
            len(rows.lengths), len(states), parameters.num_key_heads, value_heads, key_dim, value_dim,
            parameters.conv.shape[1], parameters.tiled, len(rows.saves), type_of("delta_net", mixed=mixed),
            parameters.eps,
            *map(address_of, pointers),
        )  # fmt: skip
        if self._library.qw_delta_net(self._context, arguments):
            raise IndexError(
                f"delta_net: a slot of {slots.tolist()} is not among the {len(states)} there are, or a save"
            )
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
        """See ops/attention. Raises IndexError for a page or slot that does not exist, and nothing is done."""
        query, key, value = (dense_heads(part) for part in (query, key, value))
        check_attention(query, key, value, keys, values, rows)
        coded = keys.dtype == torch.int8
        code = type_of("attention", query=query, key=key, value=value, **({} if coded else {"keys": keys}))
        tokens, heads, width = query.shape
        table, slots = rows.page_table.to(torch.int64).contiguous(), rows.kv_slots.to(torch.int64).contiguous()
        output = torch.empty(query.shape, dtype=query.dtype)
        arguments = AttentionArguments(
            len(rows.lengths), heads, keys.shape[1], width, rows.page_size, len(keys) // rows.page_size, code, coded,
            width**-0.5, address_of(rows.starts), address_of(rows.context_lengths), table.data_ptr(), table.shape[1],
            slots.data_ptr(), query.data_ptr(), query.stride(0), key.data_ptr(), key.stride(0), value.data_ptr(),
            value.stride(0), keys.data_ptr(), values.data_ptr(), output.data_ptr(), heads * width,
        )  # fmt: skip
        status = self._library.qw_attention(self._context, arguments)
        if status == 1:
            raise IndexError(
                f"attention: contexts {rows.contexts} with {rows.lengths} new tokens need pages that "
                f"{tuple(table.shape)} do not name, or slots beyond the {len(keys)} there are"
            )
        if status:
            raise MemoryError(f"attention: {tokens} tokens in {len(rows.lengths)} rows do not fit into memory")
        return output

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
        assert isinstance(gate_up, Packed)
        assert isinstance(down, Packed)
        ups, downs = gate_up.experts, down.experts
        same = functools.partial(require_equal, "experts")
        hidden, width = downs.matrices[0].out, downs.matrices[0].width
        same("experts", logits=logits.shape[1], gate_up=len(ups.matrices), down=len(downs.matrices))
        same("tokens", x=len(x), logits=len(logits))
        same("hidden", x=x.shape[1], gate_up=ups.matrices[0].width, down=hidden)
        same("2 * width", gate_up=ups.matrices[0].out, down=2 * width)
        assert 0 < experts_per_token <= logits.shape[1]
        code = type_of("experts", x=x, logits=logits)
        x, logits = dense_rows(x), dense_rows(logits)
        y = torch.empty(x.shape, dtype=x.dtype)
        arguments = ExpertsArguments(
            len(x), hidden, width, logits.shape[1], experts_per_token, normalise, code,
            ctypes.addressof(ups.weights), ctypes.addressof(downs.weights), x.data_ptr(), x.stride(0),
            logits.data_ptr(), logits.stride(0), y.data_ptr(), hidden,
        )  # fmt: skip
        if self._library.qw_experts(self._context, arguments):
            raise MemoryError(f"experts: {len(x)} tokens of {hidden} do not fit into memory")
        return y


class OneByOne(NativeCalls):
    """A model's operations called as its description comes to them; what is no call here is torch's."""

    def place(self, array: Array) -> Array:
        return to_torch(array)

    def zeros(self, shape: Sequence[int], dtype: DType) -> Array:
        return to_torch(super().zeros(shape, dtype))

    def forward(self, describe: Description, inputs: Inputs, cache: object) -> Host:
        return to_host(describe(CalledEagerly(self, inputs.map(to_torch)), cache))


class CalledEagerly(Eager):
    """The operations of one step, those of ``calls`` by the native library."""

    def __init__(self, calls: NativeCalls, inputs: Inputs) -> None:
        super().__init__(inputs)
        self._calls = calls

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, *, zero_centred: bool) -> torch.Tensor:
        parts = x.unflatten(1, (-1, len(weight)))
        return self._calls.rms_norm(parts, weight, eps, zero_centred=zero_centred).flatten(1)

    def attention(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        width = key.shape[1] // keys.shape[1]
        query, key, value = (part.unflatten(1, (-1, width)) for part in (query, key, value))
        return self._calls.paged_attention(query, key, value, keys, values, self._inputs.rows).flatten(1)

    def delta_net(
        self,
        inputs: DeltaInputs[torch.Tensor],
        parameters: DeltaParameters,
        conv_states: torch.Tensor,
        states: torch.Tensor,
    ) -> torch.Tensor:
        return self._calls.delta_net(inputs, parameters, conv_states, states, self._inputs.rows)

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
        return self._calls.experts(x, logits, gate_up, down, experts_per_token, normalise=normalise)


def check_delta_tokens(
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


def check_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: Rows
) -> None:
    """Every dimension that two tensors share. Raises ValueError naming the one that differs."""
    same = functools.partial(require_equal, "attention")
    parts = {"query": query, "key": key, "value": value, "keys": keys, "values": values}
    same("head_dim", query=query.shape[2], key=key.shape[2], value=value.shape[2])
    same(
        "width of a kept head", key=kept_width(key.shape[2], dtype_of(keys)), keys=keys.shape[2], values=values.shape[2]
    )
    same("kv_heads", **{name: part.shape[1] for name, part in parts.items() if name != "query"})
    same("cached tokens", keys=len(keys), values=len(values))
    lengths = {"lengths": sum(rows.lengths), "kv_slots": len(rows.kv_slots)}
    same("tokens", query=len(query), key=len(key), value=len(value), **lengths)
    same("rows", lengths=len(rows.lengths), contexts=len(rows.contexts), page_table=len(rows.page_table))
    same("heads beyond whole groups", query=query.shape[1] % keys.shape[1], needed=0)
    assert keys.dtype == values.dtype
    assert keys.is_contiguous()
    assert values.is_contiguous()
    assert query.shape[2] <= ATTENTION_WIDTH, f"attention: heads are at most {ATTENTION_WIDTH} wide"


def dense_heads(x: torch.Tensor) -> torch.Tensor:
    """x [T, heads, D] with a token's heads side by side; tokens may lie apart. A copy only where they do not."""
    dense = x.stride(2) == 1 and x.stride(1) == x.shape[2]
    return x if dense else x.contiguous()


def dense_rows(x: torch.Tensor) -> torch.Tensor:
    """x [n, d] with neighbouring elements side by side; rows may lie apart. A copy only where they do not."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
