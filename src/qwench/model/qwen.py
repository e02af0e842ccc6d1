"""The whole language model, top to bottom: Qwen3.5 (Gated DeltaNet + gated attention, dense or sparse) and Qwen3.

It reads one Batch and the cached tensors of the sequences in it. It does not know requests, checkpoints or bits: a
weight is whatever ops.linear can multiply with. Nor does it know whether the operations it calls compute at once or are
written down to be run later. Differences between the two families are fields of ModelConfig.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qwench.config import ModelConfig
from qwench.model.batch import Batch, CacheTensors
from qwench.model.parameters import declare
from qwench.ops import rotary
from qwench.ops.arrays import Array, as_torch
from qwench.ops.delta_net import DeltaInputs, DeltaParameters
from qwench.ops.kernels import Kernels
from qwench.ops.linear import Weight, embed
from qwench.ops.operations import Inputs, Operations, Value


class Qwen:
    """The model of ``config`` over ``weights`` (multiplied with) and ``vectors``, named as in model/parameters.

    ``weights`` come out of the store of ``kernels``, which placed the ``vectors``.
    """

    def __init__(
        self, config: ModelConfig, weights: dict[str, Weight], vectors: dict[str, Array], kernels: Kernels
    ) -> None:
        self.config, self.weights, self.vectors, self.kernels = config, weights, vectors, kernels
        differ = (weights.keys() | vectors.keys()) ^ declare(config).keys()
        assert not differ, f"parameters differ: {sorted(differ)[:5]}"
        names = [f"layers.{index}.delta" for index, kind in enumerate(config.layer_types) if kind == "linear_attention"]
        self.delta = {name: self._delta_parameters(name) for name in names}
        self.frequencies, self.axes = rotary.frequencies(config.rope), rotary.axes(config.rope)

    def _delta_parameters(self, name: str) -> DeltaParameters:
        delta = self.config.delta
        assert delta is not None
        conv, a_log, dt_bias, norm = (self.vectors[f"{name}.{part}"] for part in ("conv", "a_log", "dt_bias", "norm"))
        eps = self.config.rms_norm_eps
        heads = (delta.num_key_heads, delta.key_head_dim, delta.value_heads_tiled)
        return DeltaParameters(conv, a_log, dt_bias, norm, eps, *heads)

    def forward(self, batch: Batch, cache: CacheTensors, seen: Mapping[bytes, Array] = MappingProxyType({})) -> Array:
        """Logits [L, V] in fp32 for ``batch.logit_tokens``; the cache is advanced by the whole batch.

        ``seen``: the vision tower's rows for each of the batch's pictures.
        """
        yarn = self.config.rope.yarn
        factor = yarn.attention_factor if yarn else 1.0
        cos, sin = rotary.cos_sin(batch.positions, self.frequencies, self.axes, factor)
        embedded = self._embedded(batch, seen) if batch.pictures else None
        inputs = Inputs(batch.token_ids, batch.rows, batch.logit_tokens, cos, sin, embedded, batch.few_logits)
        return self.kernels.forward(self._logits, inputs, cache)

    def _embedded(self, batch: Batch, seen: Mapping[bytes, Array]) -> Array:
        """What the tokens begin as [T, H]: rows of the embedding, and of what was seen."""
        x = embed(as_torch(self.kernels.place(batch.token_ids)), self.weights["embedding"])
        for each in batch.pictures:
            x[each.first : each.first + each.count] = seen[each.digest][each.row : each.row + each.count].to(x)
        return x

    def _logits(self, ops: Operations[Value], cache: CacheTensors) -> Value:
        """The forward pass: T tokens in, L rows of logits out."""
        x = ops.embed(self.weights["embedding"])
        key_values = zip(cache.keys, cache.values, strict=True)
        states = zip(cache.conv, cache.recurrent, strict=True)
        for index, layer_type in enumerate(self.config.layer_types):
            name = f"layers.{index}"
            normed = self._norm(ops, x, f"{name}.mixer_norm")
            if layer_type == "full_attention":
                x = ops.add(x, self._attention(ops, normed, f"{name}.attention", next(key_values)))
            else:
                x = ops.add(x, self._delta_net(ops, normed, f"{name}.delta", next(states)))
            normed = self._norm(ops, x, f"{name}.mlp_norm")
            if self.config.sparse_layers[index]:
                x = ops.add(x, self._experts(ops, normed, f"{name}.moe"))
            else:
                x = ops.add(x, self._mlp(ops, normed, f"{name}.mlp"))
        x = self._norm(ops, ops.logit_rows(x), "final_norm")
        return ops.logits(x, self.weights["embedding" if self.config.tie_embeddings else "head"])

    def _attention(self, ops: Operations[Value], x: Value, name: str, cached: tuple[Array, Array]) -> Value:
        """Attention with normed queries and keys; in Qwen3.5 each head's output passes a sigmoid gate."""
        head_dim, gate = self.config.head_dim, None
        query, key, value = (ops.linear(x, self.weights[f"{name}.{part}"]) for part in ("query", "key", "value"))
        if self.config.attention_gate:  # [T, Hq * 2D]: per head, first the query, then its gate
            query, gate = ops.halve_heads(query, head_dim)
        query = ops.rotate(self._norm(ops, query, f"{name}.query_norm"), head_dim)
        key = ops.rotate(self._norm(ops, key, f"{name}.key_norm"), head_dim)
        mixed = ops.attention(query, key, value, *cached)
        if gate is not None:
            mixed = ops.sigmoid_multiply(mixed, gate)
        return ops.linear(mixed, self.weights[f"{name}.output"])

    def _delta_net(self, ops: Operations[Value], x: Value, name: str, states: tuple[Array, Array]) -> Value:
        inputs = [ops.linear(x, self.weights[f"{name}.{part}"]) for part in ("qkv", "gate", "beta", "decay")]
        output = ops.delta_net(DeltaInputs(*inputs), self.delta[name], *states)
        return ops.linear(output, self.weights[f"{name}.output"])

    def _mlp(self, ops: Operations[Value], x: Value, name: str) -> Value:
        gate, up = (ops.linear(x, self.weights[f"{name}.{part}"]) for part in ("gate", "up"))
        return ops.linear(ops.silu_multiply(gate, up), self.weights[f"{name}.down"])

    def _experts(self, ops: Operations[Value], x: Value, name: str) -> Value:
        """The chosen experts and, in Qwen3.5, a shared expert behind a sigmoid gate of one number per token."""
        moe = self.config.moe
        assert moe is not None
        router_logits = ops.linear(x, self.weights[f"{name}.router"])
        gate_up, down = self.weights[f"{name}.gate_up"], self.weights[f"{name}.down"]
        chosen = ops.experts(x, router_logits, gate_up, down, moe.experts_per_token, normalise=moe.normalise_top_k)
        if not moe.shared_intermediate_size:
            return chosen
        shared_gate = ops.linear(x, self.weights[f"{name}.shared_gate"])
        return ops.add(chosen, ops.sigmoid_multiply(self._mlp(ops, x, f"{name}.shared"), shared_gate))

    def _norm(self, ops: Operations[Value], x: Value, name: str) -> Value:
        weight, config = self.vectors[name], self.config
        return ops.rms_norm(x, weight, config.rms_norm_eps, zero_centred=config.zero_centred_norms)
