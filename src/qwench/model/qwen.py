"""The whole language model, top to bottom: Qwen3.5 (Gated DeltaNet + gated attention, dense or sparse) and Qwen3.

It reads one Batch and the cached tensors of the sequences in it. It does not know requests, checkpoints or bits: a
weight is whatever ops.linear can multiply with. Differences between the two families are fields of ModelConfig.
"""

from __future__ import annotations

import torch

from qwench.config import ModelConfig
from qwench.model.batch import Batch, CacheTensors
from qwench.model.parameters import declare
from qwench.ops import rotary
from qwench.ops.activation import sigmoid_multiply, silu_multiply
from qwench.ops.delta_net import DeltaInputs, DeltaParameters
from qwench.ops.kernels import Kernels
from qwench.ops.linear import Weight, embed, expert_mlp, linear, route
from qwench.ops.rows import Rows

Angles = tuple[torch.Tensor, torch.Tensor]  # cos and sin, [T, rotary_dim / 2]


class Qwen:
    """The model of ``config`` over ``weights`` (multiplied with) and ``vectors``, named as in model/parameters.

    ``weights`` come out of the store of ``kernels``; all tensors share one device.
    """

    def __init__(
        self, config: ModelConfig, weights: dict[str, Weight], vectors: dict[str, torch.Tensor], kernels: Kernels
    ) -> None:
        self.config, self.weights, self.vectors, self.kernels = config, weights, vectors, kernels
        differ = (weights.keys() | vectors.keys()) ^ declare(config).keys()
        assert not differ, f"parameters differ: {sorted(differ)[:5]}"
        device = vectors["final_norm"].device
        names = [f"layers.{index}.delta" for index, kind in enumerate(config.layer_types) if kind == "linear_attention"]
        self.delta = {name: self._delta_parameters(name) for name in names}
        self.frequencies = rotary.frequencies(config.rope).to(device)
        self.axes = rotary.axes(config.rope).to(device)

    def _delta_parameters(self, name: str) -> DeltaParameters:
        delta = self.config.delta
        assert delta is not None
        conv, a_log, dt_bias, norm = (self.vectors[f"{name}.{part}"] for part in ("conv", "a_log", "dt_bias", "norm"))
        eps = self.config.rms_norm_eps
        return DeltaParameters(conv, a_log, dt_bias, norm, eps, delta.num_key_heads, delta.key_head_dim)

    @torch.inference_mode()
    def forward(self, batch: Batch, cache: CacheTensors) -> torch.Tensor:
        """Logits [L, V] in fp32 for ``batch.logit_tokens``; the cache is advanced by the whole batch."""
        hidden = self.hidden_states(batch, cache)[batch.logit_tokens]
        head = self.weights["embedding" if self.config.tie_embeddings else "head"]
        return linear(hidden, head).float()

    def hidden_states(self, batch: Batch, cache: CacheTensors) -> torch.Tensor:
        """[T, H] after the final norm."""
        yarn = self.config.rope.yarn
        factor = yarn.attention_factor if yarn else 1.0
        angles = rotary.cos_sin(batch.positions, self.frequencies, self.axes, factor)
        x = embed(batch.token_ids, self.weights["embedding"])
        attention_index = delta_index = 0
        for index, layer_type in enumerate(self.config.layer_types):
            name = f"layers.{index}"
            normed = self._norm(x, f"{name}.mixer_norm")
            if layer_type == "full_attention":
                cached = cache.keys[attention_index], cache.values[attention_index]
                x = x + self._attention(normed, f"{name}.attention", angles, cached, batch.rows)
                attention_index += 1
            else:
                states = cache.conv[delta_index], cache.recurrent[delta_index]
                x = x + self._delta_net(normed, f"{name}.delta", states, batch.rows)
                delta_index += 1
            normed = self._norm(x, f"{name}.mlp_norm")
            sparse = self.config.sparse_layers[index]
            x = x + (self._experts(normed, f"{name}.moe") if sparse else self._mlp(normed, f"{name}.mlp"))
        return self._norm(x, "final_norm")

    def _attention(
        self, x: torch.Tensor, name: str, angles: Angles, cached: tuple[torch.Tensor, torch.Tensor], rows: Rows
    ) -> torch.Tensor:
        """Attention with normed queries and keys; in Qwen3.5 each head's output passes a sigmoid gate."""
        config = self.config
        query = self._linear(x, f"{name}.query").view(len(x), config.num_heads, -1)
        gate = None
        if config.attention_gate:  # [T, Hq, 2D]: per head, first the query, then its gate
            query, gate = query.chunk(2, dim=-1)
        key = self._linear(x, f"{name}.key").view(len(x), config.num_kv_heads, -1)
        value = self._linear(x, f"{name}.value").view(len(x), config.num_kv_heads, -1)
        query = rotary.rotate(self._norm(query, f"{name}.query_norm"), *angles)
        key = rotary.rotate(self._norm(key, f"{name}.key_norm"), *angles)
        mixed = self.kernels.paged_attention(query, key, value, *cached, rows)
        if gate is not None:
            mixed = sigmoid_multiply(mixed, gate)
        return self._linear(mixed.flatten(1), f"{name}.output")

    def _delta_net(
        self, x: torch.Tensor, name: str, states: tuple[torch.Tensor, torch.Tensor], rows: Rows
    ) -> torch.Tensor:
        inputs = DeltaInputs(*(self._linear(x, f"{name}.{part}") for part in ("qkv", "gate", "beta", "decay")))
        return self._linear(self.kernels.delta_net(inputs, self.delta[name], *states, rows), f"{name}.output")

    def _mlp(self, x: torch.Tensor, name: str) -> torch.Tensor:
        hidden = silu_multiply(self._linear(x, f"{name}.gate"), self._linear(x, f"{name}.up"))
        return self._linear(hidden, f"{name}.down")

    def _experts(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """The chosen experts and, in Qwen3.5, a shared expert behind a sigmoid gate of one number per token."""
        moe = self.config.moe
        assert moe is not None
        router_logits = self._linear(x, f"{name}.router")
        weights, experts = route(router_logits, moe.experts_per_token, normalise=moe.normalise_top_k)
        output = expert_mlp(x, weights, experts, self.weights[f"{name}.gate_up"], self.weights[f"{name}.down"])
        if moe.shared_intermediate_size:
            shared = self._mlp(x, f"{name}.shared")
            output = output + sigmoid_multiply(shared, self._linear(x, f"{name}.shared_gate"))
        return output

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return linear(x, self.weights[name])

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight, config = self.vectors[name], self.config
        return self.kernels.rms_norm(x, weight, config.rms_norm_eps, zero_centred=config.zero_centred_norms)
