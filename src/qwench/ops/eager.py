"""Operations carried out at once, one torch call after the other: the reference, and the way on a GPU."""

from __future__ import annotations

import torch

from qwench.ops import activation, attention, delta_net, linear, norm, rotary
from qwench.ops.delta_net import DeltaInputs, DeltaParameters
from qwench.ops.linear import Weight
from qwench.ops.operations import Inputs, Operations


class Eager(Operations[torch.Tensor]):
    """The operations of one step."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs

    def embed(self, table: Weight) -> torch.Tensor:
        embedded = self._inputs.embedded
        return linear.embed(self._inputs.token_ids, table) if embedded is None else embedded

    def linear(self, x: torch.Tensor, weight: Weight) -> torch.Tensor:
        return linear.linear(x, weight)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, *, zero_centred: bool) -> torch.Tensor:
        parts = x.unflatten(1, (-1, len(weight)))
        return norm.rms_norm(parts, weight, eps, zero_centred=zero_centred).flatten(1)

    def halve_heads(self, x: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = x.unflatten(1, (-1, 2, width)).unbind(2)
        return first.flatten(1), second.flatten(1)

    def rotate(self, x: torch.Tensor, head_dim: int) -> torch.Tensor:
        heads = x.unflatten(1, (-1, head_dim))
        return rotary.rotate(heads, self._inputs.cos, self._inputs.sin).flatten(1)

    def attention(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        width = key.shape[1] // keys.shape[1]
        query, key, value = (part.unflatten(1, (-1, width)) for part in (query, key, value))
        return attention.paged_attention(query, key, value, keys, values, self._inputs.rows).flatten(1)

    def delta_net(
        self,
        inputs: DeltaInputs[torch.Tensor],
        parameters: DeltaParameters,
        conv_states: torch.Tensor,
        states: torch.Tensor,
    ) -> torch.Tensor:
        return delta_net.delta_net(inputs, parameters, conv_states, states, self._inputs.rows)

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
        weights, experts = linear.route(logits, experts_per_token, normalise=normalise)
        return linear.expert_mlp(x, weights, experts, gate_up, down)

    def silu_multiply(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return activation.silu_multiply(gate, up)

    def sigmoid_multiply(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return activation.sigmoid_multiply(x, gate)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y

    def logit_rows(self, x: torch.Tensor) -> torch.Tensor:
        return x[self._inputs.logit_tokens]

    def logits(self, x: torch.Tensor, head: Weight) -> torch.Tensor:
        return linear.linear(x, head).float()
