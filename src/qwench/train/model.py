"""Builds the model: transformers' own Qwen3.5-MoE class with a small configuration, and writes checkpoints of it.

Token ids come from the tokenizer, never from constants.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from qwench.train.data.pictures import PIXELS

MAX_POSITIONS = 8192
FLOAT32 = ("A_log", "dt_bias")  # the decay is an exponential of an exponential: rounding here is seen in the logits


@dataclass(frozen=True)
class Sizes:
    """The shape of the model; heads are of size 64 (linear attention) and 32 (full attention) throughout."""

    vocabulary: int = 4096
    hidden: int = 256
    layers: int = 8
    key_heads: int = 2
    value_heads: int = 4
    expert_width: int = 48
    experts: int = 8
    tower: int = 64
    tower_layers: int = 4
    tower_inner: int = 192


def configuration(sizes: Sizes, tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json as Qwen3.5 writes it."""
    ids = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "model_type": "qwen3_5_moe",
        "dtype": "bfloat16",
        **{name: tokenizer.token_to_id(token) for name, token in ids.items()},
        "tie_word_embeddings": True,
        "text_config": text_configuration(sizes, tokenizer),
        "vision_config": vision_configuration(sizes),
    }


def text_configuration(sizes: Sizes, tokenizer: Tokenizer) -> dict[str, Any]:
    """The language model's part of it."""
    return {
        "model_type": "qwen3_5_moe_text",
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_output_gate": True,
        "full_attention_interval": 4,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "layer_types": ["full_attention" if index % 4 == 3 else "linear_attention" for index in range(sizes.layers)],
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
        "linear_num_key_heads": sizes.key_heads,
        "linear_num_value_heads": sizes.value_heads,
        "mamba_ssm_dtype": "float32",
        "max_position_embeddings": MAX_POSITIONS,
        "moe_intermediate_size": sizes.expert_width,
        "shared_expert_intermediate_size": sizes.expert_width,
        "num_experts": sizes.experts,
        "num_experts_per_tok": 2,
        "mtp_num_hidden_layers": 0,
        "mtp_use_dedicated_embeddings": False,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.01,
        "rms_norm_eps": 1e-6,
        "use_cache": True,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [2, 1, 1],
            "rope_type": "default",
            "rope_theta": 100000,
            "partial_rotary_factor": 0.25,
        },
    }


def vision_configuration(sizes: Sizes) -> dict[str, Any]:
    """The tower's part of it."""
    return {
        "model_type": "qwen3_5_moe",
        "deepstack_visual_indexes": [],
        "depth": sizes.tower_layers,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": sizes.tower,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": sizes.tower_inner,
        "num_heads": 4,
        "num_position_embeddings": 64,
        "out_hidden_size": sizes.hidden,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }


def build(config: dict[str, Any], seed: int) -> Any:
    """A fresh float32 model. The decay starts as in flash-linear-attention: transformers' own start forgets at once."""
    from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

    torch.manual_seed(seed)
    model = Qwen3_5MoeForConditionalGeneration(Qwen3_5MoeConfig.from_dict(config)).float()
    for layer in model.model.language_model.layers:
        if hasattr(layer, "linear_attn"):
            heads = layer.linear_attn.dt_bias.shape
            dt = torch.exp(torch.rand(heads) * (math.log(0.1) - math.log(0.001)) + math.log(0.001))
            layer.linear_attn.dt_bias.data = dt + torch.log(-torch.expm1(-dt))
            layer.linear_attn.A_log.data = torch.log(torch.rand(heads) * 15 + 1)
    return model


def save_weights(model: Any, path: Path) -> None:
    """Official names, bfloat16 (the decay parameters float32), the tied head left out."""
    tensors = {}
    for name, value in model.state_dict().items():
        if name != "lm_head.weight":
            keep = name.rsplit(".", 1)[-1] in FLOAT32
            tensors[name] = value.detach().to("cpu", torch.float32 if keep else torch.bfloat16).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})


def side_files(config: dict[str, Any], tokenizer: Tokenizer) -> dict[str, str]:
    """Everything beside weights and tokenizer, by file name."""
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    generation = {
        "do_sample": True,
        "eos_token_id": [end, pad],
        "pad_token_id": pad,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
    }
    media: dict[str, Any] = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    media |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "processor_class": "Qwen3VLProcessor"}
    picture = {"size": {"longest_edge": PIXELS[1], "shortest_edge": PIXELS[0]}}
    video = {"size": {"longest_edge": 262144, "shortest_edge": 4096}}
    files = {
        "config.json": config,
        "generation_config.json": generation,
        "preprocessor_config.json": picture | media | {"image_processor_type": "Qwen2VLImageProcessorFast"},
        "video_preprocessor_config.json": video | media | {"video_processor_type": "Qwen3VLVideoProcessor"},
    }
    return {name: json.dumps(content, indent=2) + "\n" for name, content in files.items()}
