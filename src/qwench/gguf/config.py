"""ModelConfig from the metadata of a GGUF file. The only file that knows their keys for the shape of a model.

A converter has changed some tensors on the way; what cannot be undone exactly while loading is told to the model here:
value heads keep the file's order (see ``value_heads_tiled``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qwench.config import (
    MAX_LAYERS,
    DeltaNetConfig,
    LayerType,
    ModelConfig,
    MoeConfig,
    RopeConfig,
    VisionConfig,
    YarnConfig,
    vision_problem,
)
from qwench.errors import ConfigError
from qwench.fields import MAX_SIZE
from qwench.gguf.file import GgufFile
from qwench.gguf.metadata import Metadata

TOKENS, MAX_VOCABULARY = "tokenizer.ggml.tokens", 2**20
END_IDS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
NEXTN = "{}.nextn_predict_layers"
PROJECTOR = "qwen3vl_merger"
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
SOFTMAX = 1  # the number of this gating function


@dataclass(frozen=True)
class _Family:
    model_type: str
    hybrid: bool
    sparse: bool


ARCHITECTURES = {
    "qwen35": _Family("qwen3_5_text", hybrid=True, sparse=False),
    "qwen35moe": _Family("qwen3_5_moe_text", hybrid=True, sparse=True),
    "qwen3": _Family("qwen3", hybrid=False, sparse=False),
    "qwen3moe": _Family("qwen3_moe", hybrid=False, sparse=True),
}

# Keys that would change the result: the one value at which they change nothing.
_NEUTRAL: dict[str, float] = {
    "{}.attention.sliding_window": 0,
    "{}.attention.scale": 0,
    "{}.attn_logit_softcapping": 0,
    "{}.final_logit_softcapping": 0,
    "{}.router_logit_softcapping": 0,
    "{}.logit_scale": 1,
    "{}.embedding_scale": 1,
    "{}.residual_scale": 1,
    "{}.leading_dense_block_count": 0,
    "{}.expert_group_count": 1,
    "{}.expert_weights_scale": 1,
    "{}.expert_gating_func": SOFTMAX,
}


def model_config(file: GgufFile) -> ModelConfig:
    """The facts of the model in ``file``, and of the projector beside it. Raises ConfigError naming key and file."""
    data = Metadata(file)
    family = _family(data)
    _refuse_unsupported(data)
    hidden, heads = data.whole("{}.embedding_length"), data.whole("{}.attention.head_count")
    kv_heads = data.whole("{}.attention.head_count_kv", heads)
    if heads % kv_heads:
        raise data.error("{}.attention.head_count_kv", f"is {kv_heads}; it must divide the {heads} heads")
    head_dim = data.whole("{}.attention.key_length", max(1, hidden // heads))
    if data.whole("{}.attention.value_length", head_dim) != head_dim:
        raise data.error("{}.attention.value_length", f"differs from key_length ({head_dim}), which is not supported")
    blocks = data.whole("{}.block_count", maximum=MAX_LAYERS)
    predictors = data.whole(NEXTN, 0, minimum=0, maximum=blocks - 1)
    layer_types = _layer_types(data, family, blocks - predictors)
    rope, window = _rope(data, family, head_dim)
    vocab = data.count(TOKENS)
    if not 1 <= vocab <= MAX_VOCABULARY:
        raise data.error(TOKENS, f"has {vocab} items; 1 to {MAX_VOCABULARY} are possible")
    vision = vision_config(file.projector, hidden) if file.projector is not None and family.hybrid else None
    places = _placeholders(data) if vision is not None else {}
    return ModelConfig(
        model_type=family.model_type,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=0 if family.sparse else data.whole("{}.feed_forward_length"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        layer_types=layer_types,
        sparse_layers=(family.sparse,) * len(layer_types),
        attention_gate=family.hybrid,
        zero_centred_norms=family.hybrid,
        rms_norm_eps=data.real("{}.attention.layer_norm_rms_epsilon"),
        tie_embeddings="output.weight" not in file.tensors,
        max_positions=window,
        rope=rope,
        delta=_delta(data) if "linear_attention" in layer_types else None,
        moe=_moe(data, family) if family.sparse else None,
        vision=vision,
        num_mtp_layers=predictors,
        eos_token_ids=tuple(
            dict.fromkeys(data.whole(key, minimum=0, maximum=vocab - 1) for key in END_IDS if data.has(key))
        ),
        image_token_id=places.get(IMAGE),
        video_token_id=places.get(VIDEO),
        dtype=_dtype(file),
    )


def vision_config(file: GgufFile, hidden: int) -> VisionConfig | None:
    """The vision tower in the projector ``file``; None where it is for a language model of another width than
    ``hidden``, which may lie in the same folder. Raises ConfigError."""
    data = Metadata(file)
    if data.whole("clip.vision.projection_dim") != hidden:
        return None
    if (kind := data.text("clip.projector_type")) != PROJECTOR:
        raise data.error("clip.projector_type", f"is {kind!r:.80}; only {PROJECTOR!r} is supported")
    if not data.flag("clip.use_gelu", default=True):
        raise data.error("clip.use_gelu", "is false; no other activation is supported")
    if data.has("clip.vision.is_deepstack_layers") and any(data.flags("clip.vision.is_deepstack_layers")):
        raise data.error("clip.vision.is_deepstack_layers", "names layers; pictures enter the first layer only")
    patch = data.whole("clip.vision.patch_size")
    config = VisionConfig(
        depth=data.whole("clip.vision.block_count", maximum=MAX_LAYERS),
        hidden_size=data.whole("clip.vision.embedding_length"),
        num_heads=data.whole("clip.vision.attention.head_count"),
        intermediate_size=data.whole("clip.vision.feed_forward_length"),
        out_hidden_size=hidden,
        num_position_embeddings=(data.whole("clip.vision.image_size") // patch) ** 2,
        patch_size=patch,
        temporal_patch_size=2,  # the format has no other
        spatial_merge_size=data.whole("clip.vision.spatial_merge_size", 2),
        in_channels=3,
    )
    if problem := vision_problem(config, hidden):
        raise data.error("clip.vision.*", f"does not fit: {problem[0]} {problem[1]}")
    return config


def _placeholders(data: Metadata) -> dict[str, int]:
    """The ids of the tokens that pictures and videos stand in for."""
    return {token: number for number, token in enumerate(data.strings(TOKENS)) if token in (IMAGE, VIDEO)}


def _family(data: Metadata) -> _Family:
    name = data.architecture
    if name == "clip":
        raise ConfigError(f"{data.path} is a vision projector (mmproj), not a language model; give the model's file.")
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise data.error("general.architecture", f"is {name!r:.80}, which is not supported; supported are {known}")
    if (kind := data.text("general.type", "model")) != "model":
        raise data.error("general.type", f"is {kind!r:.80}; only whole models are run")
    return ARCHITECTURES[name]


def _refuse_unsupported(data: Metadata) -> None:
    for key, neutral in _NEUTRAL.items():
        if not data.has(key):
            continue
        value = _number(data, key)
        if value not in (neutral, 0):  # 0 stands for "not set" where it would make no sense
            raise data.error(key, f"is {value:g}, which is not supported")
    if not data.flag("{}.attention.causal", default=True):
        raise data.error("{}.attention.causal", "is false; only causal models are run")


def _number(data: Metadata, key: str) -> float:
    """Any number."""
    return data.real(key, above=-MAX_SIZE)


def _layer_types(data: Metadata, family: _Family, layers: int) -> tuple[LayerType, ...]:
    if not family.hybrid:
        recurrent = [False] * layers
    elif data.has("{}.attention.recurrent_layers"):
        recurrent = data.flags("{}.attention.recurrent_layers")[:layers]
        if len(recurrent) < layers:
            raise data.error("{}.attention.recurrent_layers", f"has {len(recurrent)} items for {layers} layers")
    else:
        interval = data.whole("{}.full_attention_interval", 4)
        recurrent = [(index + 1) % interval != 0 for index in range(layers)]
    kinds: tuple[LayerType, LayerType] = ("full_attention", "linear_attention")
    return tuple(kinds[flag] for flag in recurrent)


def _delta(data: Metadata) -> DeltaNetConfig:
    key_heads, value_heads = data.whole("{}.ssm.group_count"), data.whole("{}.ssm.time_step_rank")
    if value_heads % key_heads:
        raise data.error("{}.ssm.time_step_rank", f"is {value_heads}, not a multiple of ssm.group_count ({key_heads})")
    inner = data.whole("{}.ssm.inner_size")
    if inner % value_heads:
        raise data.error("{}.ssm.inner_size", f"is {inner}, not a multiple of ssm.time_step_rank ({value_heads})")
    return DeltaNetConfig(
        num_key_heads=key_heads,
        num_value_heads=value_heads,
        key_head_dim=data.whole("{}.ssm.state_size"),
        value_head_dim=inner // value_heads,
        conv_kernel=data.whole("{}.ssm.conv_kernel", minimum=2),
        value_heads_tiled=True,
    )


def _moe(data: Metadata, family: _Family) -> MoeConfig:
    experts, top_k = data.whole("{}.expert_count"), data.whole("{}.expert_used_count")
    if top_k > experts:
        raise data.error("{}.expert_used_count", f"is {top_k}, more than expert_count ({experts})")
    shared = data.whole("{}.expert_shared_feed_forward_length") if family.hybrid else 0
    # Files do not carry the switch; both architectures are run with normalised weights everywhere.
    normalise = data.flag("{}.expert_weights_norm", default=True)
    return MoeConfig(experts, top_k, data.whole("{}.expert_feed_forward_length"), shared, normalise)


def _rope(data: Metadata, family: _Family, head_dim: int) -> tuple[RopeConfig, int]:
    """Rotary positions, and the window in tokens."""
    theta = data.real("{}.rope.freq_base", 10000.0, above=1)  # YaRN divides by its logarithm
    rotary = data.whole("{}.rope.dimension_count", head_dim, maximum=head_dim)
    if rotary % 2 or (rotary != head_dim and not family.hybrid):
        raise data.error("{}.rope.dimension_count", f"is {rotary}, which does not fit heads of {head_dim}")
    window = data.whole("{}.context_length")
    yarn = _yarn(data, window)
    if yarn is not None:
        window = max(window, int(yarn.original_max_positions * yarn.factor))
    if window > MAX_SIZE:
        raise data.error("{}.rope.scaling.factor", f"makes a window of {window} tokens, more than {MAX_SIZE}")
    if not family.hybrid:
        return RopeConfig(theta, rotary, None, yarn), window
    key = "{}.rope.dimension_sections"
    section = data.wholes(key)
    if len(section) not in (3, 4) or min(section) < 0 or sum(section[:3]) != rotary // 2 or any(section[3:]):
        raise data.error(key, f"is {section[:8]}; it must be three numbers with the sum {rotary // 2}, and a zero")
    return RopeConfig(theta, rotary, (section[0], section[1], section[2]), yarn), window


def _yarn(data: Metadata, window: int) -> YarnConfig | None:
    kind = data.text("{}.rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind != "yarn":
        raise data.error("{}.rope.scaling.type", f"is {kind!r:.80}; supported are 'none' and 'yarn'")
    factor = data.real("{}.rope.scaling.factor")
    if factor < 1:
        raise data.error("{}.rope.scaling.factor", f"is {factor:g}; YaRN needs a factor of at least 1")
    for key in ("{}.rope.scaling.yarn_ext_factor", "{}.rope.scaling.yarn_log_multiplier"):
        if data.has(key) and _number(data, key) not in (0, 1):
            raise data.error(key, f"is {_number(data, key):g}, which is not supported")
    original = data.whole("{}.rope.scaling.original_context_length", window)
    attention = data.real("{}.rope.scaling.attn_factor", data.real("{}.rope.scaling.yarn_attn_factor", 1.0))
    return YarnConfig(
        factor=factor,
        original_max_positions=original,
        beta_fast=data.real("{}.rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=data.real("{}.rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=attention * (0.1 * math.log(factor) + 1.0),
        truncate=True,
    )


def _dtype(file: GgufFile) -> str:
    """The type of activations: exact where the matrices are, else BF16, the type the models were published in."""
    matrices = {tensor.type.name for tensor in file.tensors.values() if len(tensor.shape) > 1}
    return "float32" if matrices <= {"F32"} else "bfloat16"
