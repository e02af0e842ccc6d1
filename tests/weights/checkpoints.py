"""Small random checkpoints made by transformers, and what must arrive of them, read off its modules by attribute.

The second table of names stands here on purpose: it is the oracle for ``weights/names.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

BASE = {"vocab_size": 80, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
HYBRID = {
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
}
DENSE = {"intermediate_size": 24}
MOE = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
SHARED = MOE | {"shared_expert_intermediate_size": 20}
VISION = {
    "depth": 1,
    "hidden_size": 16,
    "num_heads": 2,
    "intermediate_size": 20,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
}
TEXT: dict[str, dict[str, Any]] = {
    "qwen3": BASE | DENSE | {"num_hidden_layers": 2},
    "qwen3_moe": BASE | DENSE | MOE | {"num_hidden_layers": 3, "mlp_only_layers": [1]},
    "qwen3_5_text": BASE | DENSE | HYBRID,
    "qwen3_5_moe_text": BASE | HYBRID | SHARED,
}
CLASSES = {
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
}


def build(kind: str, *, tied: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A transformers model of ``kind`` in which every parameter, norms included, is random."""
    import transformers

    fields: dict[str, Any]
    if kind in TEXT:
        fields = TEXT[kind] | {"tie_word_embeddings": tied}
    else:
        inner = TEXT[f"{kind}_text"] | {"tie_word_embeddings": tied}
        fields = {"text_config": inner, "vision_config": VISION, "tie_word_embeddings": tied}
    config = transformers.CONFIG_MAPPING[kind](**fields)
    model = getattr(transformers, CLASSES[kind])(config).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def save(model: Any, folder: Path, **options: object) -> None:
    model.save_pretrained(folder, **options)


def expected(model: Any) -> dict[str, torch.Tensor]:
    """Our name -> the tensor of the transformers model."""
    text = getattr(model.model, "language_model", model.model)
    found = {"embedding": text.embed_tokens.weight, "final_norm": text.norm.weight}
    if not model.config.tie_word_embeddings:
        found["head"] = model.lm_head.weight
    for index, layer in enumerate(text.layers):
        found |= {f"layers.{index}.{name}": tensor for name, tensor in _layer(layer)}
    return {name: tensor.detach() for name, tensor in found.items()}


def _layer(layer: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield "mixer_norm", layer.input_layernorm.weight
    yield "mlp_norm", layer.post_attention_layernorm.weight
    if hasattr(layer, "self_attn"):
        attention = layer.self_attn
        yield "attention.query", attention.q_proj.weight
        yield "attention.key", attention.k_proj.weight
        yield "attention.value", attention.v_proj.weight
        yield "attention.output", attention.o_proj.weight
        yield "attention.query_norm", attention.q_norm.weight
        yield "attention.key_norm", attention.k_norm.weight
    else:
        delta = layer.linear_attn
        yield "delta.qkv", delta.in_proj_qkv.weight
        yield "delta.gate", delta.in_proj_z.weight
        yield "delta.beta", delta.in_proj_b.weight
        yield "delta.decay", delta.in_proj_a.weight
        yield "delta.conv", delta.conv1d.weight.squeeze(1)
        yield "delta.a_log", delta.A_log
        yield "delta.dt_bias", delta.dt_bias
        yield "delta.norm", delta.norm.weight
        yield "delta.output", delta.out_proj.weight
    yield from _mlp(layer.mlp)


def _mlp(mlp: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if not hasattr(mlp, "experts"):
        for name in ("gate", "up", "down"):
            yield f"mlp.{name}", getattr(mlp, f"{name}_proj").weight
        return
    yield "moe.router", mlp.gate.weight
    yield "moe.gate_up", mlp.experts.gate_up_proj
    yield "moe.down", mlp.experts.down_proj
    if hasattr(mlp, "shared_expert"):
        for name in ("gate", "up", "down"):
            yield f"moe.shared.{name}", getattr(mlp.shared_expert, f"{name}_proj").weight
        yield "moe.shared_gate", mlp.shared_expert_gate.weight
