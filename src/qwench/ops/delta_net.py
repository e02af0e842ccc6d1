"""A Gated DeltaNet mixer between its projections: convolution, delta rule and gated norm, each from its own file.

The composition is an operation of its own because a fast one wants it whole: for single tokens it is one pass over
the state. From the convolution to the gated norm all is fp32: the readout is unnormalised.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from qwench.ops.arrays import Array, Host, to_host
from qwench.ops.delta_rule import causal_conv, gated_delta_rule
from qwench.ops.lazy import F, torch
from qwench.ops.norm import gated_rms_norm
from qwench.ops.rows import Rows

Value = TypeVar("Value")


@dataclass(frozen=True)
class DeltaParameters:
    """conv [C, K]; a_log, dt_bias [Hv] fp32; norm [dv]. C = 2 Hk dk + Hv dv channels: queries, keys, values."""

    conv: Array
    a_log: Array
    dt_bias: Array
    norm: Array
    eps: float
    num_key_heads: int
    key_dim: int
    tiled: bool = False  # value head j reads key head j % Hk

    @functools.cached_property
    def taps(self) -> Host:
        """[K, C] fp32: the convolution as a kernel reads it."""
        return np.ascontiguousarray(to_host(self.conv).T.astype(np.float32))

    @functools.cached_property
    def decay_rate(self) -> Host:
        """[Hv] fp32, positive."""
        return np.exp(to_host(self.a_log).astype(np.float64)).astype(np.float32)

    @functools.cached_property
    def scale(self) -> Host:
        """[dv] fp32, of the gated norm."""
        return to_host(self.norm).astype(np.float32)


@dataclass(frozen=True)
class DeltaInputs(Generic[Value]):
    """A layer's projections of T tokens: mixed [T, C], gate [T, Hv * dv], beta and decay [T, Hv]."""

    mixed: Value
    gate: Value
    beta: Value
    decay: Value


def delta_net(
    inputs: DeltaInputs[torch.Tensor],
    parameters: DeltaParameters,
    conv_states: torch.Tensor,
    states: torch.Tensor,
    rows: Rows,
) -> torch.Tensor:
    """[T, Hv * dv] in the inputs' type; conv_states [N, K-1, C] and states [N, Hv, dk, dv] are advanced in place."""
    mixed = causal_conv(inputs.mixed, parameters.conv, conv_states, rows)
    keys = parameters.num_key_heads * parameters.key_dim
    query, key, value = torch.split(mixed, [keys, keys, mixed.shape[1] - 2 * keys], dim=-1)
    heads = (len(mixed), parameters.num_key_heads, parameters.key_dim)
    step = F.softplus(inputs.decay.float() + parameters.dt_bias)
    output = gated_delta_rule(
        query.reshape(heads),
        key.reshape(heads),
        value.reshape(len(mixed), states.shape[1], -1),
        -parameters.a_log.exp() * step,
        torch.sigmoid(inputs.beta.float()),
        states,
        rows,
        tiled=parameters.tiled,
    )  # [T, Hv, dv] fp32
    gate = inputs.gate.view(output.shape)
    return gated_rms_norm(output, gate, parameters.norm, parameters.eps).flatten(1)
