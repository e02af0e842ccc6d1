"""The training forward pass of the language model: transformers' parameters, ragged rows, all experts as one product.

Gives what transformers' own forward gives (a test compares them); it only spends less time. What is seen comes as rows.
Legend: T tokens, H hidden, E experts, I expert width, N chunks, C chunk length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qwench.train import delta_rule
from qwench.train.ragged import Ragged


def zero_centred_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    x = x.float()
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (weight + 1)).to(dtype)


def gated_norm(x: Tensor, weight: Tensor, eps: float, gate: Tensor) -> Tensor:
    """x [T, heads, D] in float32, gate [T, heads * D]."""
    normal = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight
    return normal.to(gate.dtype).flatten(1) * F.silu(gate)


def decay_and_rate(b: Tensor, a: Tensor, decay: Tensor, bias: Tensor) -> Tensor:
    """[T, 2 * heads]: log-decay, then the learning rate, both float32."""
    return torch.cat([-decay.exp() * F.softplus(a.float() + bias), b.float().sigmoid()], -1)


def route(logits: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Weights [T, E], zero for the unchosen experts, and the balance loss."""
    share = logits.float().softmax(-1)
    best, chosen = share.topk(top, -1)
    best = best / best.sum(-1, keepdim=True)
    weights = torch.zeros_like(share).scatter(-1, chosen, best)
    load = (weights > 0).float().mean(0)
    return weights, (load * share.mean(0)).sum() * share.shape[-1]


def gated_unit(gate_up: Tensor, weights: Tensor) -> Tensor:
    """gate_up [T, 2, E, I], weights [T, E] -> [T, E * I]."""
    return (F.silu(gate_up[:, 0]) * gate_up[:, 1] * weights.unsqueeze(-1)).flatten(1)


@dataclass(frozen=True)
class Pieces:
    """The element-wise parts, plain or compiled; the products between them gain nothing from a compiler."""

    norm: Callable[..., Tensor] = zero_centred_norm
    gated_norm: Callable[..., Tensor] = gated_norm
    decay_and_rate: Callable[..., Tensor] = decay_and_rate
    gated_unit: Callable[..., Tensor] = gated_unit
    conv: Callable[..., Tensor] = delta_rule.causal_conv
    prepare: Callable[..., Any] = delta_rule.prepare
    combine: Callable[..., Any] = delta_rule.combine
    loss: Callable[..., Tensor] = F.cross_entropy

    @classmethod
    def compiled(cls) -> Pieces:
        plain = cls()
        return cls(**{field.name: torch.compile(getattr(plain, field.name), dynamic=True) for field in fields(cls)})


@dataclass(frozen=True)
class Forward:
    """One model's language part, in one dtype for its products."""

    model: Any
    dtype: torch.dtype = torch.float32
    pieces: Pieces = Pieces()

    def linear(self, x: Tensor, *weights: Tensor) -> Tensor:
        return F.linear(x, (weights[0] if len(weights) == 1 else torch.cat(weights)).to(self.dtype))

    def norm(self, x: Tensor, module: Any, dtype: torch.dtype | None = None) -> Tensor:
        return self.pieces.norm(x, module.weight, module.eps, dtype or self.dtype)

    def linear_attention(self, x: Tensor, module: Any, batch: Ragged) -> Tensor:
        heads, size = module.num_v_heads, module.head_k_dim
        wide = self.linear(
            x, module.in_proj_qkv.weight, module.in_proj_z.weight, module.in_proj_b.weight, module.in_proj_a.weight
        )
        mixed, gate, b, a = wide.split([module.conv_dim, module.value_dim, heads, heads], -1)
        mixed = self.pieces.conv(mixed, module.conv1d.weight.squeeze(1).to(self.dtype), batch.positions)
        scalars = self.pieces.decay_and_rate(b, a, module.A_log, module.dt_bias)
        chunks, length = batch.chunk_of.shape
        index = batch.chunk_of.flatten()
        mixed = _with_zero(mixed).index_select(0, index).view(chunks, length, -1, size).transpose(1, 2)
        g, beta = _with_zero(scalars).index_select(0, index).view(chunks, length, -1).transpose(1, 2).chunk(2, 1)
        q, k, v = mixed.float().split([module.num_k_heads, module.num_k_heads, heads], 1)
        q, k, lower, weights, total = self.pieces.prepare(q, k, g, beta)
        inverse = delta_rule.unit_lower_inverse(lower)
        q, k, u, w, last = self.pieces.combine(q, k, v, beta, total, inverse)
        out = delta_rule.scan(q, k, u, w, weights, last, batch.steps).transpose(1, 2).reshape(chunks * length, -1)
        out = out.index_select(0, batch.token_in_chunks).view(len(x), heads, size)
        out = self.pieces.gated_norm(out, module.norm.weight, module.layer_norm_epsilon, gate)
        return self.linear(out, module.out_proj.weight)

    def full_attention(self, x: Tensor, module: Any, batch: Ragged, cos: Tensor, sin: Tensor) -> Tensor:
        size = module.head_dim
        wide = self.linear(x, module.q_proj.weight, module.k_proj.weight, module.v_proj.weight)
        queries, keys = module.q_proj.weight.shape[0], module.k_proj.weight.shape[0]
        q, k, v = (part.unflatten(-1, (-1, size)) for part in wide.split([queries, keys, keys], -1))
        q, gate = q.flatten(1).unflatten(-1, (-1, 2 * size)).chunk(2, -1)
        q = _rotate(self.norm(q, module.q_norm, torch.float32), cos, sin)
        k = _rotate(self.norm(k, module.k_norm, torch.float32), cos, sin)
        heads = (q.shape[1], k.shape[1], v.shape[1])
        together = _with_zero(torch.cat([q, k, v.float()], 1).flatten(1)).index_select(0, batch.square_of)
        outs = []
        for part, (rows, length) in zip(together.split([r * n for r, n in batch.squares]), batch.squares, strict=True):
            q, k, v = part.view(rows, length, -1, size).transpose(1, 2).split(heads, 1)
            # Rows are padded on the right, so the causal mask alone keeps padding out of sight.
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            outs.append(out.transpose(1, 2).reshape(rows * length, -1))
        out = torch.cat(outs).index_select(0, batch.token_in_square).to(self.dtype)
        return self.linear(out * gate.reshape(len(x), -1).sigmoid(), module.o_proj.weight)

    def experts(self, x: Tensor, module: Any) -> tuple[Tensor, Tensor]:
        """All experts for all tokens: with a few narrow ones this is cheaper than sorting tokens, and the same sum."""
        routed, shared = module.experts, module.shared_expert
        weights, balance = route(self.linear(x, module.gate.weight), module.gate.top_k)
        own = self.linear(x, module.shared_expert_gate.weight).float().sigmoid()
        count, double, hidden = routed.gate_up_proj.shape
        parts = routed.gate_up_proj.view(count, 2, double // 2, hidden).unbind(1)
        into = [parts[0].flatten(0, 1), shared.gate_proj.weight, parts[1].flatten(0, 1), shared.up_proj.weight]
        gate_up = self.linear(x, *into).view(len(x), 2, -1, double // 2)
        inner = self.pieces.gated_unit(gate_up, torch.cat([weights, own], -1).to(self.dtype))
        out_of = torch.cat([routed.down_proj.transpose(0, 1).reshape(hidden, -1), shared.down_proj.weight], 1)
        return self.linear(inner, out_of), balance

    def hidden_states(self, batch: Ragged, seen: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """The final hidden states [T, H] and the mean balance loss; the residual stream stays float32.

        `seen` are the rows [P, R, H] of the tower for each of the batch's groups of pictures.
        """
        text = self.model.model.language_model
        x = text.embed_tokens(batch.ids)
        for pictures, rows in zip(batch.pictures, seen, strict=True):
            x = x.index_copy(0, pictures.at.flatten(), rows.flatten(0, 1))
        cos, sin = text.rotary_emb(x, batch.axes.unsqueeze(1))
        cos, sin = cos[0].unsqueeze(1), sin[0].unsqueeze(1)
        balance = x.new_zeros(())
        for layer in text.layers:
            inner = self.norm(x, layer.input_layernorm)
            if hasattr(layer, "linear_attn"):
                x = x + self.linear_attention(inner, layer.linear_attn, batch)
            else:
                x = x + self.full_attention(inner, layer.self_attn, batch, cos, sin)
            mixed, loss = self.experts(self.norm(x, layer.post_attention_layernorm), layer.mlp)
            x, balance = x + mixed, balance + loss
        return self.norm(x, text.norm), balance / len(text.layers)

    def losses(self, batch: Ragged, seen: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy over the learnt tokens, and the balance loss."""
        logits, balance = self.logits(batch, seen)
        return self.pieces.loss(logits, batch.targets), balance

    def logits(self, batch: Ragged, seen: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """Of the learnt tokens [M, vocabulary], and the balance loss."""
        states, balance = self.hidden_states(batch, seen)
        return self.linear(states.index_select(0, batch.learn_at), self.model.lm_head.weight).float(), balance


def _with_zero(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 0, 1))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, heads, D]; the first dimensions turn, the rest pass."""
    width = cos.shape[-1]
    turning, rest = x[..., :width], x[..., width:]
    first, second = turning.chunk(2, -1)
    return torch.cat([turning * cos + torch.cat([-second, first], -1) * sin, rest], -1)
