"""A checkpoint's names <-> ours, both ways: the only file that knows Hugging Face's parameter names.

Checkpoints put the same text model behind different prefixes; what follows the prefix is the same everywhere. Knows
neither shapes nor torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# The prefix before embed_tokens, layers and norm. Order matters: the longest that fits is taken.
PREFIXES = ("model.language_model.", "language_model.model.", "language_model.", "model.", "")
VISION = ("model.visual.", "visual.", "model.vision_tower.", "vision_tower.")
MTP = ("mtp.", "model.mtp.", "language_model.mtp.", "model.language_model.mtp.")
HEADS = (
    "lm_head.weight",
    "language_model.lm_head.weight",
    "model.lm_head.weight",
    "model.language_model.lm_head.weight",
)
SCALE = "_scale_inv"
ACTIVATION_SCALES = (
    *(".input_scale", ".input_global_scale", ".output_scale", ".input_zero_point", ".output_zero_point"),
    *(".q_scale", ".k_scale", ".v_scale", ".kv_scale", ".k_zero_point", ".v_zero_point"),
)

_TOP = {"embed_tokens.weight": "embedding", "norm.weight": "final_norm"}
_LAYER = {
    "input_layernorm.weight": "mixer_norm",
    "post_attention_layernorm.weight": "mlp_norm",
    "self_attn.q_proj.weight": "attention.query",
    "self_attn.k_proj.weight": "attention.key",
    "self_attn.v_proj.weight": "attention.value",
    "self_attn.o_proj.weight": "attention.output",
    "self_attn.q_norm.weight": "attention.query_norm",
    "self_attn.k_norm.weight": "attention.key_norm",
    "linear_attn.in_proj_qkv.weight": "delta.qkv",
    "linear_attn.in_proj_z.weight": "delta.gate",
    "linear_attn.in_proj_b.weight": "delta.beta",
    "linear_attn.in_proj_a.weight": "delta.decay",
    "linear_attn.conv1d.weight": "delta.conv",
    "linear_attn.A_log": "delta.a_log",
    "linear_attn.dt_bias": "delta.dt_bias",
    "linear_attn.norm.weight": "delta.norm",
    "linear_attn.out_proj.weight": "delta.output",
    "mlp.gate_proj.weight": "mlp.gate",
    "mlp.up_proj.weight": "mlp.up",
    "mlp.down_proj.weight": "mlp.down",
    "mlp.gate.weight": "moe.router",
    "mlp.experts.gate_up_proj": "moe.gate_up",
    "mlp.experts.down_proj": "moe.down",
    "mlp.shared_expert.gate_proj.weight": "moe.shared.gate",
    "mlp.shared_expert.up_proj.weight": "moe.shared.up",
    "mlp.shared_expert.down_proj.weight": "moe.shared.down",
    "mlp.shared_expert_gate.weight": "moe.shared_gate",
}
_VISION_TOP = {
    "patch_embed.proj.weight": "patch",
    "patch_embed.proj.bias": "patch.bias",
    "pos_embed.weight": "positions",
    "merger.norm.weight": "merger.norm",
    "merger.norm.bias": "merger.norm.bias",
    "merger.linear_fc1.weight": "merger.up",
    "merger.linear_fc1.bias": "merger.up.bias",
    "merger.linear_fc2.weight": "merger.down",
    "merger.linear_fc2.bias": "merger.down.bias",
}
_VISION_BLOCK = {
    "norm1": "attention_norm",
    "attn.qkv": "qkv",
    "attn.proj": "output",
    "norm2": "mlp_norm",
    "mlp.linear_fc1": "up",
    "mlp.linear_fc2": "down",
}
_VISION_NAME = re.compile(r"blocks\.(0|[1-9]\d*)\.(.+)\.(weight|bias)")
_THEIRS = {ours: theirs for theirs, ours in (_TOP | _LAYER).items()}
_LAYER_NAME = re.compile(r"layers\.(0|[1-9]\d*)\.(.+)")
_EXPERT = re.compile(r"mlp\.experts\.(0|[1-9]\d*)\.(gate|up|down)_proj\.weight")


@dataclass(frozen=True)
class Place:
    """Where a stored tensor belongs: all of parameter ``name``, or one expert's part of it."""

    name: str
    expert: int | None = None
    part: str | None = None  # of an expert: "gate", "up" or "down"


def place_of(stored: str) -> Place | None:
    """Our place for a checkpoint's tensor name; None where the text model has no such tensor."""
    if stored in HEADS:
        return Place("head")
    for prefix in PREFIXES:
        if stored.startswith(prefix) and (place := _place_in_model(stored[len(prefix) :])) is not None:
            return place
    return None


def _place_in_model(name: str) -> Place | None:
    if name in _TOP:
        return Place(_TOP[name])
    match = _LAYER_NAME.fullmatch(name)
    if match is None:
        return None
    layer, inner = match.groups()
    if inner in _LAYER:
        return Place(f"layers.{layer}.{_LAYER[inner]}")
    expert = _EXPERT.fullmatch(inner)
    if expert is None:
        return None
    number, part = expert.groups()
    target = "down" if part == "down" else "gate_up"
    return Place(f"layers.{layer}.moe.{target}", int(number), part)


def stored_name(place: Place, prefix: str = "model.language_model.") -> str:
    """The checkpoint's name of ``place`` behind ``prefix`` (the inverse of ``place_of``)."""
    if place.name == "head":
        return "language_model.lm_head.weight" if prefix == "language_model.model." else "lm_head.weight"
    match = _LAYER_NAME.fullmatch(place.name)
    if match is None:
        return prefix + _THEIRS[place.name]
    layer, inner = match.groups()
    if place.expert is not None:
        return f"{prefix}layers.{layer}.mlp.experts.{place.expert}.{place.part}_proj.weight"
    return f"{prefix}layers.{layer}.{_THEIRS[inner]}"


def vision_name(stored: str) -> str | None:
    """The vision tower's name for a checkpoint's tensor; None where it is none of the tower's."""
    for prefix in VISION:
        if stored.startswith(prefix):
            inner = stored[len(prefix) :]
            match = _VISION_NAME.fullmatch(inner)
            if match is None:
                return _VISION_TOP.get(inner)
            layer, part, kind = match.groups()
            ours = _VISION_BLOCK.get(part)
            return ours and f"blocks.{layer}.{ours}{'.bias' if kind == 'bias' else ''}"
    return None


def stored_vision_name(name: str) -> str:
    """What checkpoints call the tower's parameter ``name``, to say what is missing."""
    top = {ours: theirs for theirs, ours in _VISION_TOP.items()}
    if name in top:
        return VISION[0] + top[name]
    _, layer, part, *bias = name.split(".")
    theirs = next(theirs for theirs, ours in _VISION_BLOCK.items() if ours == part)
    return f"{VISION[0]}blocks.{layer}.{theirs}.{'bias' if bias else 'weight'}"


def ending_of(stored: str) -> str:
    """What of a tensor's name is the same in every layer, with ``*`` for an expert's number."""
    for prefix in PREFIXES:
        if stored.startswith(prefix):
            stored = stored[len(prefix) :]
            break
    match = _LAYER_NAME.fullmatch(stored)
    return re.sub(r"\.experts\.\d+\.", ".experts.*.", match.group(2)) if match else stored


def prefix_of(stored: list[str]) -> str:
    """The prefix this checkpoint uses, to name a missing tensor the way its neighbours are named."""
    for prefix in PREFIXES:
        if any(name.startswith(f"{prefix}layers.") or name == f"{prefix}embed_tokens.weight" for name in stored):
            return prefix
    return "model."


def unused_reason(stored: str) -> str | None:
    """Why a tensor that belongs to the family is not read yet; None where it must be read or is unknown."""
    if stored.startswith(VISION):
        return "vision tower: read when the first picture comes"
    if stored.startswith(MTP):
        return "multi-token prediction head (mtp): not run yet"
    if stored.endswith(ACTIVATION_SCALES):
        return "scales for rounded activations or caches: both are kept finer than that"
    if stored.endswith("rotary_emb.inv_freq"):
        return "rotary frequencies: computed from config.json"
    return None
