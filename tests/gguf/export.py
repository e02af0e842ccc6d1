"""A model of transformers -> a GGUF file, as the public converter would write it: the inverse of what we read.

It changes what the converter changes: zero-centred norms get their +1, value heads are tiled, decay rates are stored
ready for use. Written with the gguf package and independent of our own tables of names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
import torch

from bench.projector import describe
from tests.weights.checkpoints import expected

ARCHITECTURES = {
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "qwen3_5_text": "qwen35",
    "qwen3_5_moe_text": "qwen35moe",
    "qwen3_5": "qwen35",
    "qwen3_5_moe": "qwen35moe",
}
LAYER = {
    "mixer_norm": "attn_norm.weight",
    "attention.query": "attn_q.weight",
    "attention.key": "attn_k.weight",
    "attention.value": "attn_v.weight",
    "attention.output": "attn_output.weight",
    "attention.query_norm": "attn_q_norm.weight",
    "attention.key_norm": "attn_k_norm.weight",
    "delta.qkv": "attn_qkv.weight",
    "delta.gate": "attn_gate.weight",
    "delta.beta": "ssm_beta.weight",
    "delta.decay": "ssm_alpha.weight",
    "delta.conv": "ssm_conv1d.weight",
    "delta.a_log": "ssm_a",
    "delta.dt_bias": "ssm_dt.bias",
    "delta.norm": "ssm_norm.weight",
    "delta.output": "ssm_out.weight",
    "mlp.gate": "ffn_gate.weight",
    "mlp.up": "ffn_up.weight",
    "mlp.down": "ffn_down.weight",
    "moe.router": "ffn_gate_inp.weight",
    "moe.down": "ffn_down_exps.weight",
    "moe.shared.gate": "ffn_gate_shexp.weight",
    "moe.shared.up": "ffn_up_shexp.weight",
    "moe.shared.down": "ffn_down_shexp.weight",
    "moe.shared_gate": "ffn_gate_inp_shexp.weight",
}
ZERO_CENTRED = ("mixer_norm", "mlp_norm", "final_norm", "attention.query_norm", "attention.key_norm")

# Which type a tensor is stored in, by its name and shape.
Choose = Callable[[str, tuple[int, ...]], gguf.GGMLQuantizationType]
F32 = gguf.GGMLQuantizationType.F32
# What a writer is told beside the tensors: the tokenizer, mostly.
Tell = Callable[[gguf.GGUFWriter], None]


def all_f32(name: str, shape: tuple[int, ...]) -> gguf.GGMLQuantizationType:
    return F32


def matrices_as(kind: gguf.GGMLQuantizationType) -> Choose:
    """Matrices as ``kind`` where whole blocks fit, everything else F32."""
    block = gguf.GGML_QUANT_SIZES[kind][0]

    def choose(name: str, shape: tuple[int, ...]) -> gguf.GGMLQuantizationType:
        small = len(shape) < 2 or "conv1d" in name
        return F32 if small or shape[-1] % block else kind

    return choose


def stub_tokens(writer: gguf.GGUFWriter, count: int) -> None:
    """A vocabulary of ``count`` tokens that no text is ever made of."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen35")
    writer.add_token_list(["a", "b", "ab", *(f"t{number}" for number in range(3, count))])
    writer.add_token_types([gguf.TokenType.NORMAL] * count)
    writer.add_token_merges(["a b"])


def export(
    model: Any, path: Path, *, choose: Choose = all_f32, tell: Tell | None = None, fused: bool = False, split: int = 0
) -> Path:
    """Write ``model`` to ``path``; a part holds at most ``split`` tensors (0: one file). Returns what to open."""
    text = getattr(model.config, "text_config", model.config)
    writer = gguf.GGUFWriter(path, ARCHITECTURES[model.config.model_type], split_max_tensors=split)
    write_configuration(writer, text)
    if tell is None:
        stub_tokens(writer, text.vocab_size)
    else:
        tell(writer)
    for name, tensor in tensors(model, text, fused=fused):
        write_tensor(writer, name, tensor, choose(name, tuple(tensor.shape)))
    finish(writer)
    return path if not split else min(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_tensor(writer: gguf.GGUFWriter, name: str, tensor: torch.Tensor, kind: gguf.GGMLQuantizationType) -> None:
    values = np.ascontiguousarray(tensor.float().numpy())
    if kind == F32:
        writer.add_tensor(name, values)
    elif kind == gguf.GGMLQuantizationType.F16:
        writer.add_tensor(name, values.astype(np.float16))
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


def write_configuration(writer: gguf.GGUFWriter, text: Any) -> None:
    writer.add_block_count(text.num_hidden_layers)
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    if getattr(text, "intermediate_size", None):
        writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_key_length(text.head_dim)
    writer.add_value_length(text.head_dim)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    rope = text.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if getattr(text, "num_experts", None):
        writer.add_expert_count(text.num_experts)
        writer.add_expert_used_count(text.num_experts_per_tok)
        writer.add_expert_feed_forward_length(text.moe_intermediate_size)
        if getattr(text, "norm_topk_prob", True) is False:
            writer.add_expert_weights_norm(False)
    if hasattr(text, "linear_num_key_heads"):
        rotary = int(text.head_dim * rope["partial_rotary_factor"])
        writer.add_rope_dimension_count(rotary)
        writer.add_rope_dimension_sections([*rope.get("mrope_section", (rotary // 2 - 1, 1, 0)), 0])
        writer.add_ssm_conv_kernel(text.linear_conv_kernel_dim)
        writer.add_ssm_state_size(text.linear_key_head_dim)
        writer.add_ssm_group_count(text.linear_num_key_heads)
        writer.add_ssm_time_step_rank(text.linear_num_value_heads)
        writer.add_ssm_inner_size(text.linear_num_value_heads * text.linear_value_head_dim)
        if getattr(text, "num_experts", None):
            writer.add_expert_shared_feed_forward_length(text.shared_expert_intermediate_size)
        write_layer_types(writer, text)


def write_layer_types(writer: gguf.GGUFWriter, text: Any) -> None:
    usual = ["linear_attention" if (n + 1) % 4 else "full_attention" for n in range(text.num_hidden_layers)]
    if list(text.layer_types) == usual:
        writer.add_full_attention_interval(4)
    else:
        flags = [kind == "linear_attention" for kind in text.layer_types]
        writer.add_array(f"{writer.arch}.attention.recurrent_layers", flags)


def tensors(model: Any, text: Any, *, fused: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """Everything the file holds, by its name there."""
    hybrid = hasattr(text, "linear_num_key_heads")
    top = {"embedding": "token_embd.weight", "final_norm": "output_norm.weight", "head": "output.weight"}
    for name, tensor in expected(model).items():
        changed = converted(name, tensor.float(), text) if hybrid else tensor.float()
        if name in top:
            yield top[name], changed
            continue
        _, layer, inner = name.split(".", 2)
        if inner == "mlp_norm":
            yield f"blk.{layer}.{'post_attention_norm' if hybrid else 'ffn_norm'}.weight", changed
        elif inner == "moe.gate_up" and not fused:
            gate, up = changed.chunk(2, dim=1)
            yield f"blk.{layer}.ffn_gate_exps.weight", gate
            yield f"blk.{layer}.ffn_up_exps.weight", up
        elif inner == "moe.gate_up":
            yield f"blk.{layer}.ffn_gate_up_exps.weight", changed
        else:
            yield f"blk.{layer}.{LAYER[inner]}", changed


def converted(name: str, tensor: torch.Tensor, text: Any) -> torch.Tensor:
    """What the converter makes of a tensor of Qwen3.5."""
    heads, width = text.linear_num_value_heads, text.linear_value_head_dim
    keys = 2 * text.linear_num_key_heads * text.linear_key_head_dim

    def tiled(x: torch.Tensor, each: int) -> torch.Tensor:
        """Rows of value heads, ``each`` rows a head, from grouped to tiled."""
        groups = text.linear_num_key_heads
        return x.reshape(groups, heads // groups, each, *x.shape[1:]).transpose(0, 1).reshape(x.shape)

    if name.endswith(ZERO_CENTRED):
        return tensor + 1
    inner = name.rpartition(".")[2]
    if inner == "a_log":
        return -tiled(tensor, 1).exp()
    if inner == "shared_gate":
        return tensor[0]
    if ".delta." not in name:
        return tensor
    if inner in ("qkv", "conv"):
        return torch.cat((tensor[:keys], tiled(tensor[keys:], width)))
    if inner == "gate":
        return tiled(tensor, width)
    if inner in ("beta", "decay", "dt_bias"):
        return tiled(tensor, 1)
    if inner == "output":
        return tiled(tensor.T, width).T
    return tensor


def tell_tokenizer(raw: Mapping[str, Any], *, pre: str, rows: int, template: str | None = None) -> Tell:
    """What the converter writes of a tokenizer.json (as ``raw``); ``rows`` of the embedding are padded with tokens."""

    def tell(writer: gguf.GGUFWriter) -> None:
        tokens = {number: (token, gguf.TokenType.NORMAL) for token, number in raw["model"]["vocab"].items()}
        for token in raw["added_tokens"]:
            looks_special = token["content"].startswith("<|") and token["content"].endswith("|>")
            special = token["special"] or looks_special
            kind = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
            tokens[token["id"]] = (token["content"], kind)
        listed = [tokens.get(number, (f"[PAD{number}]", gguf.TokenType.UNUSED)) for number in range(rows)]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list([token for token, _ in listed])
        writer.add_token_types([kind for _, kind in listed])
        merges = raw["model"]["merges"]
        writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
        ends = {token: number for number, (token, _) in tokens.items()}
        if "<|im_end|>" in ends:
            writer.add_eos_token_id(ends["<|im_end|>"])
            writer.add_bos_token_id(ends["<|endoftext|>"])
            writer.add_add_bos_token(False)
        if template is not None:
            writer.add_chat_template(template)

    return tell


PROJECTOR = {
    "patch_embed.proj.bias": "v.patch_embd.bias",
    "pos_embed.weight": "v.position_embd.weight",
    "merger.norm": "v.post_ln",
    "merger.linear_fc1": "mm.0",
    "merger.linear_fc2": "mm.2",
    "norm1": "ln1",
    "norm2": "ln2",
    "attn.qkv": "attn_qkv",
    "attn.proj": "attn_out",
    "mlp.linear_fc1": "ffn_up",
    "mlp.linear_fc2": "ffn_down",
}


def export_projector(
    model: Any, path: Path, *, choose: Choose = all_f32, tell: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Write the vision tower of ``model``, with other metadata where ``tell`` says so."""
    vision = model.config.vision_config
    told = {"projector_type": "qwen3vl_merger", "projection_dim": vision.out_hidden_size} | dict(tell)
    writer = gguf.GGUFWriter(path, "clip")
    describe(writer, vision, told["projector_type"], told["projection_dim"])
    for name, tensor in model.model.visual.state_dict().items():
        if name == "patch_embed.proj.weight":
            for index, part in enumerate(tensor.unbind(2)):
                write_tensor(writer, f"v.patch_embd.weight{'.1' * index}", part, F32)
            continue
        theirs = name
        for long, short in PROJECTOR.items():
            theirs = theirs.replace(long, short)
        theirs = theirs.replace("blocks.", "v.blk.")
        kind = F32 if theirs.startswith("v.position") else choose(theirs, tuple(tensor.shape))
        write_tensor(writer, theirs, tensor, kind)
    finish(writer)
