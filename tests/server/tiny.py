"""A complete checkpoint in a moment: Qwen3.5's architecture, random weights, a real tokenizer and template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

import qwench
from tests.text.tiny import tokenizer_json, write_text_files

WINDOW = 512
TEMPLATE = Path(qwench.__file__).parent / "train" / "chat_template.jinja"


def configuration(vocab_size: int, end: int | None) -> dict[str, Any]:
    """config.json of a Qwen3.5 text model with two DeltaNet layers and two of attention."""
    return {
        "architectures": ["Qwen3_5ForCausalLM"],
        "model_type": "qwen3_5_text",
        "attention_bias": False,
        "attn_output_gate": True,
        "dtype": "float32",
        "eos_token_id": end,
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 64,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "max_position_embeddings": WINDOW,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "vocab_size": vocab_size,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    }


def write_text(folder: Path) -> Path:
    """Everything but the weights."""
    write_text_files(folder, template=TEMPLATE.read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_str(tokenizer_json())
    size = tokenizer.get_vocab_size() + 7  # some padding rows, as real checkpoints have
    config = configuration(size, tokenizer.token_to_id("<|im_end|>"))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_checkpoint(folder: Path) -> Path:
    """The whole folder."""
    from safetensors.torch import save_file

    from qwench.config import ModelConfig
    from qwench.ops.arrays import FLOAT32
    from qwench.weights.names import Place, stored_name
    from qwench.weights.random import RandomSource
    from qwench.weights.source import plain_kinds
    from tests.weights.collected import tensors_of

    write_text(folder)
    config = ModelConfig.from_folder(folder)
    tensors = tensors_of(config, RandomSource(config, plain_kinds(config, FLOAT32), seed=7))
    stored = {stored_name(Place(name), "model."): tensor for name, tensor in tensors.items()}
    convolutions = {name: tensor.unsqueeze(1) for name, tensor in stored.items() if name.endswith("conv1d.weight")}
    stored |= convolutions  # [C, 4] -> [C, 1, 4], as checkpoints keep them
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
