"""GGUF files of a published shape with random weights, for engines that read nothing else: valid blocks, no quantiser.

Which tensor gets which type follows llama.cpp's own choices for these names (its Q4_0, Q4_K_M, Q8_0 and BF16 files), so
that such a file costs what a published one costs. The vocabulary is made up: bytes, the named special tokens, and
fillers. Written tensor by tensor: the largest one is all that is ever in memory.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwench.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from qwench.config import ModelConfig

MIXES = ("Q4_0", "Q4_K_M", "Q8_0", "BF16")
FILE_TYPES = {"Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15, "BF16": 32}  # llama.cpp's numbers of whole-file mixes
POOL_BLOCKS = 32_749  # drawn once and read on and on; a prime, so that rows do not repeat one another
SPREADS = {"Q4_0": 4.6, "Q5_0": 9.2, "Q8_0": 74.0, "Q4_K": 170.0, "Q6_K": 1360.0}  # of random codes at scale 1
SPECIAL = {248044: "<|endoftext|>", 248045: "<|im_start|>", 248046: "<|im_end|>"}
SPECIAL_QWEN3 = {151643: "<|endoftext|>", 151644: "<|im_start|>", 151645: "<|im_end|>"}
NORMAL, CONTROL = 1, 3  # token types


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of the file: its shape as numpy sees it, and its type by GGML's name."""

    name: str
    shape: tuple[int, ...]
    type: str


def write_random_gguf(path: Path, model: ModelConfig, mix: str, seed: int = 0) -> int:
    """Write the file (whole or not at all) and return its bytes. Raises UsageError without the gguf package."""
    try:
        import gguf
    except ImportError:
        raise UsageError("random GGUF files need the package gguf; run `pip install gguf`.") from None
    if mix not in MIXES:
        raise UsageError(f"{mix!r} is no mix of types; give one of {', '.join(MIXES)}.")
    import numpy as np

    architecture = _architecture(model)
    unfinished = path.with_name(path.name + ".unfinished")
    writer = gguf.GGUFWriter(unfinished, architecture)
    writer.add_file_type(FILE_TYPES[mix])
    _add_metadata(writer, architecture, model)
    _add_vocabulary(writer, model)
    tensors = list(tensors_of(model, mix))
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[tensor.type]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        stored = math.prod(tensor.shape) // block * size
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), stored, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    draw = np.random.default_rng(seed)
    pools: dict[tuple[str, int], np.ndarray[Any, np.dtype[np.uint8]]] = {}
    offset = 0
    for tensor in tensors:
        values, offset = _values(tensor, draw, pools, offset)
        writer.write_tensor_data(values)
    writer.close()
    unfinished.rename(path)
    return path.stat().st_size


def tensors_of(model: ModelConfig, mix: str) -> Iterator[Tensor]:
    """Every tensor of the file in the order of layers."""
    hidden, tied = model.hidden_size, model.tie_embeddings
    head = {"BF16": "BF16", "Q8_0": "Q8_0"}.get(mix, "Q6_K")
    base = {"Q4_K_M": "Q4_K"}.get(mix, mix)
    yield Tensor("token_embd.weight", (model.vocab_size, hidden), _fit(head if tied else base, hidden))
    yield Tensor("output_norm.weight", (hidden,), "F32")
    if not tied:
        yield Tensor("output.weight", (model.vocab_size, hidden), _fit(head, hidden))
    for layer in range(model.num_layers):
        finer = "Q6_K" if mix == "Q4_K_M" and _more_bits(layer, model.num_layers) else base
        parts = [*_mixer(model, layer), *_feed_forward(model, layer)]
        for name, shape in parts:
            kind = finer if name in ("attn_v", "attn_qkv", "ffn_down", "ffn_down_exps", "ffn_down_shexp") else base
            kept = len(shape) == 1 or name in ("ssm_conv1d", "ffn_gate_inp")
            suffix = {"ssm_a": "", "ssm_dt": ".bias"}.get(name, ".weight")
            yield Tensor(f"blk.{layer}.{name}{suffix}", shape, "F32" if kept else _fit(kind, shape[-1]))


def _fit(kind: str, width: int) -> str:
    """Types with blocks of 256 give way to types with blocks of 32 where the width asks for it."""
    return {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}.get(kind, kind) if width % 256 else kind


def _more_bits(layer: int, layers: int) -> bool:
    """The first eighth, the last, and every third between them are worth finer values."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _mixer(model: ModelConfig, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, width = model.hidden_size, model.head_dim
    yield "attn_norm", (hidden,)
    if model.layer_types[layer] == "full_attention":
        query, key = model.num_heads * width, model.num_kv_heads * width
        yield "attn_q", (query * (2 if model.attention_gate else 1), hidden)
        yield "attn_k", (key, hidden)
        yield "attn_v", (key, hidden)
        yield "attn_output", (hidden, query)
        yield "attn_q_norm", (width,)
        yield "attn_k_norm", (width,)
        return
    delta = model.delta
    assert delta is not None
    yield "attn_qkv", (delta.conv_dim, hidden)
    yield "attn_gate", (delta.value_dim, hidden)
    yield "ssm_conv1d", (delta.conv_dim, delta.conv_kernel)
    yield "ssm_dt", (delta.num_value_heads,)
    yield "ssm_a", (delta.num_value_heads,)
    yield "ssm_beta", (delta.num_value_heads, hidden)
    yield "ssm_alpha", (delta.num_value_heads, hidden)
    yield "ssm_norm", (delta.value_head_dim,)
    yield "ssm_out", (hidden, delta.value_dim)


def _feed_forward(model: ModelConfig, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, moe = model.hidden_size, model.moe
    yield "post_attention_norm" if model.delta else "ffn_norm", (hidden,)
    if moe is None or not model.sparse_layers[layer]:
        yield "ffn_gate", (model.intermediate_size, hidden)
        yield "ffn_up", (model.intermediate_size, hidden)
        yield "ffn_down", (hidden, model.intermediate_size)
        return
    yield "ffn_gate_inp", (moe.num_experts, hidden)
    yield "ffn_gate_exps", (moe.num_experts, moe.intermediate_size, hidden)
    yield "ffn_up_exps", (moe.num_experts, moe.intermediate_size, hidden)
    yield "ffn_down_exps", (moe.num_experts, hidden, moe.intermediate_size)
    if moe.shared_intermediate_size:
        yield "ffn_gate_inp_shexp", (hidden,)
        yield "ffn_gate_shexp", (moe.shared_intermediate_size, hidden)
        yield "ffn_up_shexp", (moe.shared_intermediate_size, hidden)
        yield "ffn_down_shexp", (hidden, moe.shared_intermediate_size)


def _architecture(model: ModelConfig) -> str:
    names = {"qwen3_5": "qwen35", "qwen3_5_moe": "qwen35moe", "qwen3": "qwen3", "qwen3_moe": "qwen3moe"}
    return names[model.model_type.removesuffix("_text")]


def _add_metadata(writer: Any, architecture: str, model: ModelConfig) -> None:
    """The fields a reader needs to know the shape."""
    writer.add_name("random weights")
    writer.add_block_count(model.num_layers)
    writer.add_context_length(model.max_positions)
    writer.add_embedding_length(model.hidden_size)
    writer.add_feed_forward_length(model.intermediate_size or (model.moe.intermediate_size if model.moe else 0))
    writer.add_head_count(model.num_heads)
    writer.add_head_count_kv(model.num_kv_heads)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_layer_norm_rms_eps(model.rms_norm_eps)
    writer.add_rope_freq_base(model.rope.theta)
    if model.moe is not None:
        writer.add_expert_count(model.moe.num_experts)
        writer.add_expert_used_count(model.moe.experts_per_token)
        writer.add_expert_feed_forward_length(model.moe.intermediate_size)
        if model.moe.shared_intermediate_size:
            writer.add_expert_shared_feed_forward_length(model.moe.shared_intermediate_size)
    delta = model.delta
    if delta is None:
        return
    writer.add_rope_dimension_count(model.rope.rotary_dim)
    writer.add_array(f"{architecture}.rope.dimension_sections", [*(model.rope.mrope_section or (0, 0, 0)), 0])
    writer.add_ssm_conv_kernel(delta.conv_kernel)
    writer.add_ssm_state_size(delta.key_head_dim)
    writer.add_ssm_group_count(delta.num_key_heads)
    writer.add_ssm_time_step_rank(delta.num_value_heads)
    writer.add_ssm_inner_size(delta.value_dim)
    writer.add_uint32(f"{architecture}.full_attention_interval", model.layer_types.index("full_attention") + 1)


def _add_vocabulary(writer: Any, model: ModelConfig) -> None:
    """Every byte is a token, the chat's own tokens stand where they are published, the rest are merges of two others.

    As many merges as a published vocabulary has: reading them is a part of starting.
    """
    special = SPECIAL if model.delta else SPECIAL_QWEN3
    spelled = list(_byte_tokens())
    pairs = list(itertools.islice(_merges(spelled), max(0, model.vocab_size - len(spelled))))
    tokens = (spelled + [first + second for first, second in pairs])[: model.vocab_size]
    types = [NORMAL] * len(tokens)
    for number, text in special.items():
        if number < model.vocab_size:
            tokens[number], types[number] = text, CONTROL
    end = next((number for number, text in special.items() if text == "<|im_end|>" and number < model.vocab_size), 0)
    known = set(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen35" if model.delta else "qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(
        [f"{first} {second}" for first, second in pairs if {first, second, first + second} <= known]
    )
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)


def _merges(spelled: Sequence[str]) -> Iterator[tuple[str, str]]:
    """All tokens of two bytes, then those of three, 16 million in all: each is a shorter one and one more."""
    yield from itertools.product(spelled, repeat=2)
    for first, second in itertools.product(spelled, repeat=2):
        yield from ((first + second, third) for third in spelled)


def _byte_tokens() -> Iterator[str]:
    """How byte-level tokenizers spell each byte: itself where it can be printed, else a character from 256 on."""
    shift = 0
    for byte in range(256):
        if byte in (*range(33, 127), *range(161, 173), *range(174, 256)):
            yield chr(byte)
        else:
            yield chr(256 + shift)
            shift += 1


def _values(
    tensor: Tensor,
    draw: np.random.Generator,
    pools: dict[tuple[str, int], np.ndarray[Any, np.dtype[np.uint8]]],
    offset: int,
) -> tuple[np.ndarray[Any, Any], int]:
    """The tensor's stored bytes (or fp32 values), and where in the pools the next tensor starts."""
    import numpy as np

    width = tensor.shape[-1]
    if tensor.type == "F32":
        return _plain(tensor, draw), offset
    key = tensor.type, width
    if key not in pools:
        pools[key] = BLOCKS[tensor.type](draw, 1 / math.sqrt(width))
    pool = pools[key]
    block = {"Q4_0": 32, "Q5_0": 32, "Q8_0": 32, "BF16": 32}.get(tensor.type, 256)
    count = math.prod(tensor.shape) // block
    repeats = -(-(count + offset) // len(pool))
    rows = np.tile(pool, (repeats, 1))[offset : offset + count]
    return rows.reshape(*tensor.shape[:-1], -1), (offset + count) % len(pool)


def _plain(tensor: Tensor, draw: np.random.Generator) -> np.ndarray[Any, Any]:
    """Vectors and the router: norms about one, decays as trained ones are."""
    import numpy as np

    name = tensor.name
    values: np.ndarray[Any, Any] = draw.standard_normal(tensor.shape, dtype=np.float32)
    if name.endswith("ssm_a"):
        rates: np.ndarray[Any, Any] = -np.exp(values - 1.5)
        return rates
    if name.endswith("ssm_dt.bias"):
        return values - 1.5
    if "norm" in name:
        return 1 + values / 10
    values /= np.sqrt(np.float32(tensor.shape[-1]))
    return values


def _halves(count: int, value: float) -> np.ndarray[Any, Any]:
    """``count`` times one float16 as two bytes."""
    import numpy as np

    halves: np.ndarray[Any, Any] = np.full((count, 1), value, dtype=np.float16).view(np.uint8)
    return halves


def _codes(draw: np.random.Generator, count: int) -> np.ndarray[Any, Any]:
    import numpy as np

    codes: np.ndarray[Any, Any] = draw.integers(0, 256, (POOL_BLOCKS, count), dtype=np.uint8)
    return codes


def _simple_blocks(codes: int, kind: str) -> Callable[[np.random.Generator, float], np.ndarray[Any, Any]]:
    """A scale, then nothing but codes."""

    def make(draw: np.random.Generator, spread: float) -> np.ndarray[Any, Any]:
        import numpy as np

        return np.hstack([_halves(POOL_BLOCKS, spread / SPREADS[kind]), _codes(draw, codes)])

    return make


def _blocks_q4_k(draw: np.random.Generator, spread: float) -> np.ndarray[Any, Any]:
    """Scale, scale of mins, eight scales and eight mins of 6 bits in 12 bytes, codes. Mins equal scales, so that
    7.5 times the one takes the mean out of the other."""
    import numpy as np

    fine = draw.integers(16, 64, (POOL_BLOCKS, 8), dtype=np.uint8)
    low, high = fine[:, :4], fine[:, 4:]
    packed = np.hstack([low | high >> 4 << 6, low | high >> 4 << 6, (high & 15) | (high & 15) << 4])
    scale = spread / SPREADS["Q4_K"]
    return np.hstack([_halves(POOL_BLOCKS, scale), _halves(POOL_BLOCKS, 7.5 * scale), packed, _codes(draw, 128)])


def _blocks_q6_k(draw: np.random.Generator, spread: float) -> np.ndarray[Any, Any]:
    """Low and high bits of the codes, sixteen signed scales, a scale of those."""
    import numpy as np

    return np.hstack([_codes(draw, 192), _codes(draw, 16), _halves(POOL_BLOCKS, spread / SPREADS["Q6_K"])])


def _blocks_bf16(draw: np.random.Generator, spread: float) -> np.ndarray[Any, Any]:
    import numpy as np

    values = draw.standard_normal((POOL_BLOCKS, 32), dtype=np.float32) * np.float32(spread)
    return np.ascontiguousarray(values.view(np.uint8).reshape(POOL_BLOCKS, 32, 4)[:, :, 2:]).reshape(POOL_BLOCKS, 64)


BLOCKS: Mapping[str, Callable[[np.random.Generator, float], np.ndarray[Any, Any]]] = {
    "Q4_0": _simple_blocks(16, "Q4_0"),
    "Q5_0": _simple_blocks(20, "Q5_0"),
    "Q8_0": _simple_blocks(32, "Q8_0"),
    "Q4_K": _blocks_q4_k,
    "Q6_K": _blocks_q6_k,
    "BF16": _blocks_bf16,
}
