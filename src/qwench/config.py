"""ModelConfig: the checkpoint's facts, read from config.json. EngineConfig: the operator's choices.

Both are frozen. This file is the only one that knows Hugging Face's configuration fields; it does not know torch.
A field that is absent takes the reference implementation's default; a field that cannot be honoured is refused by
name, because a model that ignores part of its configuration answers wrongly without saying so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from qwench.errors import UsageError
from qwench.fields import Fields as _Fields
from qwench.fields import is_real, is_whole, read_json
from qwench.quantisation import QUANTIZATIONS, SIDE_FILE, StoredQuantisation, read_quantisation, read_side_file

LayerType = Literal["full_attention", "linear_attention"]
DTYPES = ("float32", "bfloat16", "float16")
KV_CACHE_DTYPES = ("auto", "int8")
CACHE_TILE = 64  # tokens that the native kernels keep side by side: pages are whole tiles
ON_DISCONNECT = ("stop", "finish")
WHOLE_SETTINGS = (
    "max_model_len",
    "max_num_seqs",
    "memory",
    "max_step_tokens",
    "page_size",
    "cache_dir_size",
    "tensor_parallel_size",
    "max_queue",
)
MAX_LAYERS = 4096


@dataclass(frozen=True)
class YarnConfig:
    """Static YaRN scaling; ``attention_factor`` multiplies cos and sin."""

    factor: float
    original_max_positions: int
    beta_fast: float
    beta_slow: float
    attention_factor: float
    truncate: bool


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding of the first ``rotary_dim`` values of a head; ``mrope_section`` is (t, h, w) or None."""

    theta: float
    rotary_dim: int
    mrope_section: tuple[int, int, int] | None
    yarn: YarnConfig | None


@dataclass(frozen=True)
class DeltaNetConfig:
    """Gated DeltaNet; ``conv_kernel`` taps of the causal convolution.

    Value head j reads key head j // (value heads / key heads), or j % key heads where ``value_heads_tiled``: GGUF files
    hold their value heads in that order.
    """

    num_key_heads: int
    num_value_heads: int
    key_head_dim: int
    value_head_dim: int
    conv_kernel: int
    value_heads_tiled: bool = False

    @property
    def key_dim(self) -> int:
        return self.num_key_heads * self.key_head_dim

    @property
    def value_dim(self) -> int:
        return self.num_value_heads * self.value_head_dim

    @property
    def conv_dim(self) -> int:
        return 2 * self.key_dim + self.value_dim


@dataclass(frozen=True)
class MoeConfig:
    """Sparse experts; ``shared_intermediate_size`` is 0 where there is no shared expert."""

    num_experts: int
    experts_per_token: int
    intermediate_size: int
    shared_intermediate_size: int
    normalise_top_k: bool


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower's shape. ``num_position_embeddings`` form a square; patches of ``spatial_merge_size`` squared
    become one token."""

    depth: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    out_hidden_size: int
    num_position_embeddings: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    in_channels: int

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_width(self) -> int:
        """Numbers of one patch: channels, frames, rows and columns."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merged_width(self) -> int:
        """Numbers of the patches that become one token, side by side."""
        return self.hidden_size * self.spatial_merge_size**2


@dataclass(frozen=True)
class ModelConfig:
    """The facts of one checkpoint. ``sparse_layers[i]`` says whether layer i has experts or a dense MLP."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layer_types: tuple[LayerType, ...]
    sparse_layers: tuple[bool, ...]
    attention_gate: bool
    zero_centred_norms: bool
    rms_norm_eps: float
    tie_embeddings: bool
    max_positions: int
    rope: RopeConfig
    delta: DeltaNetConfig | None
    moe: MoeConfig | None
    vision: VisionConfig | None
    num_mtp_layers: int
    eos_token_ids: tuple[int, ...]
    image_token_id: int | None
    video_token_id: int | None
    dtype: str
    quantised: StoredQuantisation | None = None  # how the checkpoint stores its matrices; None: as plain numbers

    @property
    def num_layers(self) -> int:
        return len(self.layer_types)

    @property
    def fp8_block(self) -> tuple[int, int] | None:
        """(rows, columns) that share one scale in a block-FP8 checkpoint."""
        scheme = self.quantised.default if self.quantised is not None else None
        if scheme is None or scheme.format != "fp8_block":
            return None
        rows, columns = scheme.block
        assert rows is not None
        assert columns is not None
        return rows, columns

    @classmethod
    def from_folder(cls, folder: Path) -> ModelConfig:
        """Read ``config.json``, and the end-of-sequence ids of ``generation_config.json``. Raises ConfigError."""
        path = folder / "config.json"
        config = cls.from_dict(read_json(path), str(path))
        if config.quantised is None and (side := folder / SIDE_FILE).exists():
            config = replace(config, quantised=read_side_file(_Fields(read_json(side), str(side))))
        path = folder / "generation_config.json"
        if not path.exists():
            return config
        generation = _eos_ids(_Fields(read_json(path), str(path)), config.vocab_size)
        return replace(config, eos_token_ids=tuple(dict.fromkeys(generation + config.eos_token_ids)))

    @classmethod
    def from_dict(cls, raw: dict[str, Any], source: str = "config.json") -> ModelConfig:
        """The configuration in ``raw``, multimodal wrapper or text-only. Raises ConfigError naming field and source."""
        top = _Fields(raw, source)
        family = _family(top)
        text = top.section("text_config") or top
        _refuse_unsupported(text, family)
        _check_text_type(top, text)
        hidden, layers = text.whole("hidden_size"), text.whole("num_hidden_layers", maximum=MAX_LAYERS)
        heads, vocab = text.whole("num_attention_heads"), text.whole("vocab_size")
        kv_heads = text.whole("num_key_value_heads", heads if "num_key_value_heads" in text.values else None)
        if heads % kv_heads:
            raise text.error("num_key_value_heads", f"is {kv_heads}; it must divide num_attention_heads ({heads})")
        # Only the reference of qwen3_moe has no number of its own for this.
        fallback = 256 if family.hybrid else 128 if not family.sparse else hidden // heads
        head_dim = text.whole("head_dim", fallback)
        sparse = _sparse_layers(text, family, layers)
        layer_types = _layer_types(text, family, layers)
        rope = _rope(text, family, head_dim)
        window = text.whole("max_position_embeddings", 32768)
        if rope.yarn is not None:
            window = max(window, int(rope.yarn.original_max_positions * rope.yarn.factor))
        ids = tuple(dict.fromkeys(_eos_ids(top, vocab) + _eos_ids(text, vocab)))
        return cls(
            model_type=top.text("model_type"),
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=0 if all(sparse) else text.whole("intermediate_size"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            layer_types=layer_types,
            sparse_layers=sparse,
            attention_gate=family.hybrid,
            zero_centred_norms=family.hybrid,
            rms_norm_eps=text.real("rms_norm_eps", 1e-6),
            tie_embeddings=top.flag("tie_word_embeddings", text.flag("tie_word_embeddings", False)),
            max_positions=window,
            rope=rope,
            delta=_delta(text) if "linear_attention" in layer_types else None,
            moe=_moe(text, family) if any(sparse) else None,
            vision=_vision(top, hidden),
            num_mtp_layers=text.whole("mtp_num_hidden_layers", 0, minimum=0),
            eos_token_ids=ids,
            image_token_id=_placeholder(top, "image_token_id"),
            video_token_id=_placeholder(top, "video_token_id"),
            dtype=_dtype(top, text),
            quantised=read_quantisation(top, text),
        )


@dataclass(frozen=True)
class EngineConfig:
    """What the operator chose. ``memory`` is in bytes, for KV pages and states; None and "auto" are resolved later.

    At most ``max_queue`` requests are unfinished at a time. ``on_disconnect``: whether a prompt whose client has left
    ends with the step that reads it ("stop"), or is read to its end in the background, for the next try ("finish").
    """

    model: str = "nano"
    device: str = "auto"
    dtype: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    memory: int | None = None
    seed: int = 0
    max_step_tokens: int = 512
    page_size: int = CACHE_TILE
    offline: bool = False
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    prefix_cache: bool = True
    cache_dir: str | None = None
    cache_dir_size: int | None = None
    max_queue: int = 1024
    on_disconnect: str = "stop"

    def __post_init__(self) -> None:
        if self.dtype not in ("auto", *DTYPES):
            raise UsageError(f"dtype is {self.dtype!r}; use auto, {', '.join(DTYPES)}.", param="dtype")
        if self.quantization not in (None, *QUANTIZATIONS):
            near = get_close_matches(str(self.quantization).lower(), QUANTIZATIONS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"use {', '.join(QUANTIZATIONS)}, or leave it out."
            raise UsageError(f"quantization is {self.quantization!r}; {hint}", param="quantization")
        if self.on_disconnect not in ON_DISCONNECT:
            raise UsageError(
                f"on_disconnect is {self.on_disconnect!r}; use {' or '.join(ON_DISCONNECT)}.", param="on_disconnect"
            )
        for name in WHOLE_SETTINGS:
            value = getattr(self, name)
            if value is not None and (not is_whole(value) or value < 1):
                raise UsageError(f"{name} is {value!r}; give a whole number of at least 1.", param=name)
        if self.page_size % CACHE_TILE:
            raise UsageError(
                f"page_size is {self.page_size}; give a multiple of {CACHE_TILE}: so many tokens are read together.",
                param="page_size",
            )
        if self.kv_cache_dtype not in KV_CACHE_DTYPES:
            raise UsageError(
                f"kv_cache_dtype is {self.kv_cache_dtype!r}; use {' or '.join(KV_CACHE_DTYPES)}.",
                param="kv_cache_dtype",
            )
        if self.cache_dir is not None and not self.prefix_cache:
            raise UsageError("cache_dir is set but prefix_cache is off; give one of them.", param="cache_dir")
        if self.tensor_parallel_size > 1:
            raise UsageError(
                f"tensor_parallel_size is {self.tensor_parallel_size}; several devices are not available yet, use 1.",
                param="tensor_parallel_size",
            )
        if not is_real(self.gpu_memory_utilization) or not 0 < self.gpu_memory_utilization <= 1:
            raise UsageError(
                f"gpu_memory_utilization is {self.gpu_memory_utilization!r}; give a number above 0, at most 1.",
                param="gpu_memory_utilization",
            )


@dataclass(frozen=True)
class _Family:
    """What the model_type alone decides: ``hybrid`` is Qwen3.5 (DeltaNet layers, gates, 1+w norms), else Qwen3."""

    hybrid: bool
    sparse: bool
    wrapper: bool = False


_FAMILIES = {
    "qwen3": _Family(hybrid=False, sparse=False),
    "qwen3_moe": _Family(hybrid=False, sparse=True),
    "qwen3_5": _Family(hybrid=True, sparse=False, wrapper=True),
    "qwen3_5_moe": _Family(hybrid=True, sparse=True, wrapper=True),
    "qwen3_5_text": _Family(hybrid=True, sparse=False),
    "qwen3_5_moe_text": _Family(hybrid=True, sparse=True),
}


def _family(top: _Fields) -> _Family:
    name = top.text("model_type")
    if name in _FAMILIES:
        return _FAMILIES[name]
    nearest = get_close_matches(name, _FAMILIES, n=1)
    hint = f"; the nearest is {nearest[0]}" if nearest else ""
    raise top.error("model_type", f"is {name!r}, which is not known; known are {', '.join(_FAMILIES)}{hint}")


def _check_text_type(top: _Fields, text: _Fields) -> None:
    """A wrapper must hold the text model of its own family."""
    if text is top:
        return
    family, inner = top.text("model_type"), text.text("model_type", "")
    if not _FAMILIES[family].wrapper:
        raise top.error("text_config", f"is present, but model_type {family!r} has its fields at the top level")
    if inner and inner not in (family, f"{family}_text"):
        raise text.error("model_type", f"is {inner!r}; inside {family!r} it must be {family + '_text'!r}")


def _refuse_unsupported(text: _Fields, family: _Family) -> None:
    """Options of the field list that no published Qwen checkpoint uses and that would change the result."""
    if (activation := text.text("hidden_act", "silu")) != "silu":
        raise text.error("hidden_act", f"is {activation!r}; only 'silu' is supported")
    if text.flag("attention_bias", False):
        raise text.error("attention_bias", "is true; projections with a bias are not supported")
    if text.flag("use_sliding_window", False):
        raise text.error("use_sliding_window", "is true; sliding-window attention is not supported")
    if family.hybrid and not text.flag("attn_output_gate", True):
        raise text.error("attn_output_gate", "is false; Qwen3.5 attention always has its output gate")
    if (gate := text.text("output_gate_type", "swish")) not in ("swish", "silu"):
        raise text.error("output_gate_type", f"is {gate!r}; only 'swish' is supported")


def _layer_types(text: _Fields, family: _Family, layers: int) -> tuple[LayerType, ...]:
    kinds: Sequence[object] | None = text.get("layer_types")
    if kinds is None:
        interval = text.whole("full_attention_interval", 4) if family.hybrid else 1
        return tuple("linear_attention" if (index + 1) % interval else "full_attention" for index in range(layers))
    if not isinstance(kinds, list) or len(kinds) != layers:
        count = len(kinds) if isinstance(kinds, list) else repr(kinds)
        raise text.error("layer_types", f"has {count} entries; num_hidden_layers is {layers}")
    known = ("full_attention", "linear_attention") if family.hybrid else ("full_attention",)
    for index, kind in enumerate(kinds):
        if kind not in known:
            raise text.error(f"layer_types[{index}]", f"is {kind!r}; supported here: {', '.join(known)}")
    return tuple(kinds)


def _sparse_layers(text: _Fields, family: _Family, layers: int) -> tuple[bool, ...]:
    if not family.sparse:
        return (False,) * layers
    dense_only = text.whole_list("mlp_only_layers") or ()
    if family.hybrid and dense_only:
        raise text.error("mlp_only_layers", f"is {list(dense_only)}; every layer of this model type has experts")
    step = 1 if family.hybrid else text.whole("decoder_sparse_step", 1)
    return tuple(index not in dense_only and (index + 1) % step == 0 for index in range(layers))


def _delta(text: _Fields) -> DeltaNetConfig:
    delta = DeltaNetConfig(
        num_key_heads=text.whole("linear_num_key_heads", 16),
        num_value_heads=text.whole("linear_num_value_heads", 32),
        key_head_dim=text.whole("linear_key_head_dim", 128),
        value_head_dim=text.whole("linear_value_head_dim", 128),
        conv_kernel=text.whole("linear_conv_kernel_dim", 4, minimum=2),
    )
    if delta.num_value_heads % delta.num_key_heads:
        reason = f"is {delta.num_value_heads}, not a multiple of linear_num_key_heads ({delta.num_key_heads})"
        raise text.error("linear_num_value_heads", reason)
    return delta


def _moe(text: _Fields, family: _Family) -> MoeConfig:
    # Newer files of qwen3_moe call the number of experts num_local_experts.
    name = "num_local_experts" if text.get("num_experts") is None and text.get("num_local_experts") else "num_experts"
    experts, top_k = text.whole(name), text.whole("num_experts_per_tok")
    if top_k > experts:
        raise text.error("num_experts_per_tok", f"is {top_k}, more than {name} ({experts})")
    return MoeConfig(
        num_experts=experts,
        experts_per_token=top_k,
        intermediate_size=text.whole("moe_intermediate_size"),
        shared_intermediate_size=text.whole("shared_expert_intermediate_size") if family.hybrid else 0,
        normalise_top_k=True if family.hybrid else text.flag("norm_topk_prob", False),
    )


def _rope(text: _Fields, family: _Family, head_dim: int) -> RopeConfig:
    rope = _rope_section(text)
    # YaRN divides by its logarithm.
    theta = rope.real("rope_theta", text.real("rope_theta", 10000.0, above=1), above=1)
    part = rope.real("partial_rotary_factor", text.real("partial_rotary_factor", 0.25 if family.hybrid else 1.0))
    rotary = int(head_dim * part)
    if part > 1 or rotary < 2 or rotary % 2:
        raise rope.error("partial_rotary_factor", f"is {part:g}; with head_dim {head_dim} it rotates {rotary} values")
    if not family.hybrid:
        if part != 1:
            raise rope.error("partial_rotary_factor", f"is {part:g}; Qwen3 rotates the whole head, it must be 1")
        return RopeConfig(theta, rotary, None, _yarn(rope, text))
    if not rope.flag("mrope_interleaved", True):
        raise rope.error("mrope_interleaved", "is false; Qwen3.5 interleaves its position axes")
    section = rope.whole_list("mrope_section")
    if section is not None and (len(section) != 3 or sum(section) != rotary // 2):
        reason = f"is {list(section)}; it must be three numbers with the sum {rotary // 2} (half of the rotated values)"
        raise rope.error("mrope_section", reason)
    axes = (section[0], section[1], section[2]) if section is not None else (11, 11, 10)
    return RopeConfig(theta, rotary, axes, _yarn(rope, text))


def _rope_section(text: _Fields) -> _Fields:
    """The object with the rotary fields: ``rope_parameters`` in newer files, ``rope_scaling`` in older ones."""
    new, old = text.section("rope_parameters"), text.section("rope_scaling")
    if new is not None and old is not None and new.values != old.values:
        raise text.error("rope_scaling", "differs from rope_parameters; keep only rope_parameters")
    rope = new or old or _Fields({}, text.source, text.prefix)
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind not in ("default", "yarn"):
        raise rope.error("rope_type", f"is {kind!r}; supported are 'default' and 'yarn'")
    for name in rope.values if rope.prefix != text.prefix else ():
        if name not in _ROPE_FIELDS:
            raise rope.error(name, f"is not known; known are {', '.join(_ROPE_FIELDS)}")
    theta = text.get("rope_theta")
    if new is not None and theta is not None and new.get("rope_theta") not in (None, theta):
        raise text.error("rope_theta", f"is {theta!r}, but rope_parameters.rope_theta is {new.get('rope_theta')!r}")
    return rope


_ROPE_FIELDS = (
    *("rope_type", "type", "rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved", "factor"),
    *("original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "truncate"),
    *("mscale", "mscale_all_dim"),
)


def _yarn(rope: _Fields, text: _Fields) -> YarnConfig | None:
    if rope.text("rope_type", rope.text("type", "default")) != "yarn":
        return None
    factor = rope.real("factor")
    if factor < 1:
        raise rope.error("factor", f"is {factor:g}; YaRN needs a factor of at least 1")

    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0

    attention = magnitude(1.0)
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        attention = magnitude(rope.real("mscale")) / magnitude(rope.real("mscale_all_dim"))
    window = text.whole("max_position_embeddings", 32768)
    return YarnConfig(
        factor=factor,
        original_max_positions=rope.whole("original_max_position_embeddings", window),
        beta_fast=rope.real("beta_fast", 32.0),
        beta_slow=rope.real("beta_slow", 1.0),
        attention_factor=rope.real("attention_factor", attention),
        truncate=rope.flag("truncate", True),
    )


def _vision(top: _Fields, hidden: int) -> VisionConfig | None:
    """The tower that looks for a language model of width ``hidden``."""
    vision = top.section("vision_config")
    if vision is None:
        return None
    if (activation := vision.text("hidden_act", "gelu_pytorch_tanh")) != "gelu_pytorch_tanh":
        raise vision.error("hidden_act", f"is {activation!r}; only 'gelu_pytorch_tanh' is supported")
    if layers := vision.get("deepstack_visual_indexes"):
        raise vision.error("deepstack_visual_indexes", f"is {layers!r:.80}; pictures enter the first layer only")
    config = VisionConfig(
        depth=vision.whole("depth", 27, maximum=MAX_LAYERS),
        hidden_size=vision.whole("hidden_size", 1152),
        num_heads=vision.whole("num_heads", 16),
        intermediate_size=vision.whole("intermediate_size", 4304),
        out_hidden_size=vision.whole("out_hidden_size", 3584),
        num_position_embeddings=vision.whole("num_position_embeddings", 2304),
        patch_size=vision.whole("patch_size", 16),
        temporal_patch_size=vision.whole("temporal_patch_size", 2),
        spatial_merge_size=vision.whole("spatial_merge_size", 2),
        in_channels=vision.whole("in_channels", 3),
    )
    if problem := vision_problem(config, hidden):
        raise vision.error(*problem)
    return config


def vision_problem(config: VisionConfig, hidden: int) -> tuple[str, str] | None:
    """The field that does not fit the others, or the language model's width ``hidden``, and what is wrong with it."""
    if config.hidden_size % config.num_heads or config.head_dim % 4:
        return "hidden_size", f"is {config.hidden_size}; {config.num_heads} heads must divide it to a multiple of 4"
    if math.isqrt(config.num_position_embeddings) ** 2 != config.num_position_embeddings:
        return "num_position_embeddings", f"is {config.num_position_embeddings}, which is no square"
    if config.out_hidden_size != hidden:
        return "out_hidden_size", f"is {config.out_hidden_size}; the language model's hidden_size is {hidden}"
    return None


def _placeholder(top: _Fields, name: str) -> int | None:
    return top.whole(name, minimum=0) if top.get(name) is not None else None


def _eos_ids(fields: _Fields, vocab_size: int) -> tuple[int, ...]:
    value = fields.get("eos_token_id")
    if value is None:
        return ()
    ids = value if isinstance(value, list) else [value]
    for token in ids:
        if not is_whole(token) or not 0 <= token < vocab_size:
            raise fields.error(
                "eos_token_id", f"holds {token!r}; ids are whole numbers below {vocab_size} (vocab_size)"
            )
    return tuple(ids)


def _dtype(top: _Fields, text: _Fields) -> str:
    """The type the weights were saved in; a file that does not say so is read without loss, as float32."""
    for fields in (text, top):
        for name in ("dtype", "torch_dtype"):
            if fields.get(name) is not None:
                value = fields.text(name).removeprefix("torch.")
                if value not in DTYPES:
                    raise fields.error(name, f"is {value!r}; supported are {', '.join(DTYPES)}")
                return value
    return "float32"
