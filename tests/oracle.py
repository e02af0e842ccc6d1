"""Fresh random checkpoints made by transformers, the tests' oracle.

Weights are scaled so that activations stay of order 1, every branch matters, and fp32 noise is about 1e-4 of a logit.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import transformers

VOCABULARY = 320
VISION = {
    "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "patch_size": 16, "temporal_patch_size": 2,
    "spatial_merge_size": 2, "in_channels": 3, "num_position_embeddings": 16, "deepstack_visual_indexes": [],
}  # fmt: skip
DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 24,
}  # fmt: skip
ROPE35 = {
    "rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25, "mrope_interleaved": True,
    "mrope_section": [3, 3, 2],
}  # fmt: skip
BASE35 = {
    "vocab_size": VOCABULARY, "hidden_size": 96, "num_hidden_layers": 8, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 4096, "rope_parameters": ROPE35, **DELTA,
}  # fmt: skip
BASE3 = {
    "vocab_size": VOCABULARY, "hidden_size": 80, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 112, "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}  # fmt: skip
EXPERTS35 = {
    "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 56,
}  # fmt: skip
EXPERTS3 = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
ODD = {"hidden_size": 88, "num_hidden_layers": 5, "num_attention_heads": 6, "num_key_value_heads": 3}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}

# name -> (configuration class, model class, fields)
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "dense": (
        "Qwen3_5TextConfig",
        "Qwen3_5ForCausalLM",
        {**BASE35, "intermediate_size": 160, "tie_word_embeddings": True},
    ),
    "dense_odd": (
        "Qwen3_5TextConfig",
        "Qwen3_5ForCausalLM",
        {**BASE35, **ODD, "intermediate_size": 136, "linear_num_value_heads": 6, "tie_word_embeddings": False},
    ),
    "dense_yarn": (
        "Qwen3_5TextConfig",
        "Qwen3_5ForCausalLM",
        {**BASE35, "intermediate_size": 160, "rope_parameters": {**ROPE35, **YARN}, "tie_word_embeddings": False},
    ),
    "moe": (
        "Qwen3_5MoeTextConfig",
        "Qwen3_5MoeForCausalLM",
        {**BASE35, **EXPERTS35, "linear_num_value_heads": 8, "tie_word_embeddings": False},
    ),
    "wrapper_dense": (
        "Qwen3_5Config",
        "Qwen3_5ForConditionalGeneration",
        {
            "text_config": {**BASE35, "intermediate_size": 160, "tie_word_embeddings": True},
            "vision_config": {**VISION, "out_hidden_size": 96},
            "tie_word_embeddings": True,
        },
    ),
    "wrapper_moe": (
        "Qwen3_5MoeConfig",
        "Qwen3_5MoeForConditionalGeneration",
        {"text_config": {**BASE35, **EXPERTS35}, "vision_config": {**VISION, "out_hidden_size": 96}},
    ),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**BASE3, "tie_word_embeddings": True}),
    "qwen3_yarn": (
        "Qwen3Config",
        "Qwen3ForCausalLM",
        {**BASE3, "rope_parameters": {"rope_theta": 1e6, **YARN}, "tie_word_embeddings": False},
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {**BASE3, **EXPERTS3, "norm_topk_prob": True, "tie_word_embeddings": False},
    ),
    "qwen3_moe_mixed": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {**BASE3, **EXPERTS3, "norm_topk_prob": False, "mlp_only_layers": [1], "tie_word_embeddings": False},
    ),
}


def build_model(config_class: str, model_class: str, fields: dict[str, Any], *, seed: int) -> Any:
    """A transformers model with random fp32 weights."""
    config = getattr(transformers, config_class)(**fields)
    config._attn_implementation = "eager"
    model = getattr(transformers, model_class)(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = _draw(name, tuple(parameter.shape), generator, zero_centred="3_5" in model_class)
            parameter.copy_(drawn)
    return model


def make_checkpoint(folder: Path, kind: str, seed: int, **save: Any) -> Any:
    """A model of ``kind``, saved to ``folder`` in Hugging Face layout; returns it."""
    model = build_model(*KINDS[kind], seed=seed)
    model.save_pretrained(folder, **save)
    return model


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator, *, zero_centred: bool) -> torch.Tensor:
    def normal(std: float, mean: float = 0.0) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * std + mean

    if name.endswith("A_log"):
        return math.log(0.02) + torch.rand(shape, generator=generator) * math.log(125)
    if name.endswith("dt_bias"):
        return normal(1.0, -1.5)
    if name.endswith("linear_attn.norm.weight"):
        return normal(0.2, 1.0)
    if name.endswith("norm.weight") or "norm" in name.rsplit(".", 2)[-2]:
        return normal(0.2, 0.0 if zero_centred else 1.0)
    if name.endswith("embed_tokens.weight"):
        return normal(0.3)
    if name.endswith("conv1d.weight"):
        return normal(0.6)
    if name.endswith("lm_head.weight"):
        return normal(3.0 / math.sqrt(shape[-1]))
    return normal(1.0 / math.sqrt(shape[-1]))
