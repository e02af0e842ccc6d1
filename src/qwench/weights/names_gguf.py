"""GGUF's tensor names -> ours, of models and projectors (mmproj): the only file that knows them.

Knows neither shapes nor torch.
"""

from __future__ import annotations

import re

from qwench.weights.names import Place

_TOP = {"token_embd.weight": "embedding", "output_norm.weight": "final_norm", "output.weight": "head"}
_LAYER = {
    "attn_norm.weight": "mixer_norm",
    "post_attention_norm.weight": "mlp_norm",
    "ffn_norm.weight": "mlp_norm",
    "attn_q.weight": "attention.query",
    "attn_k.weight": "attention.key",
    "attn_v.weight": "attention.value",
    "attn_output.weight": "attention.output",
    "attn_q_norm.weight": "attention.query_norm",
    "attn_k_norm.weight": "attention.key_norm",
    "attn_qkv.weight": "delta.qkv",
    "attn_gate.weight": "delta.gate",
    "ssm_beta.weight": "delta.beta",
    "ssm_alpha.weight": "delta.decay",
    "ssm_conv1d.weight": "delta.conv",
    "ssm_a": "delta.a_log",
    "ssm_dt.bias": "delta.dt_bias",
    "ssm_norm.weight": "delta.norm",
    "ssm_out.weight": "delta.output",
    "ffn_gate.weight": "mlp.gate",
    "ffn_up.weight": "mlp.up",
    "ffn_down.weight": "mlp.down",
    "ffn_gate_inp.weight": "moe.router",
    "ffn_gate_up_exps.weight": "moe.gate_up",
    "ffn_down_exps.weight": "moe.down",
    "ffn_gate_shexp.weight": "moe.shared.gate",
    "ffn_up_shexp.weight": "moe.shared.up",
    "ffn_down_shexp.weight": "moe.shared.down",
    "ffn_gate_inp_shexp.weight": "moe.shared_gate",
}
_HALVES = {"ffn_gate_exps.weight": "gate", "ffn_up_exps.weight": "up"}  # of moe.gate_up, of all experts at once
PATCH_SLICES = ("v.patch_embd.weight", "v.patch_embd.weight.1")  # of the vision tower's patch: a frame each
_PROJECTOR = {
    "v.patch_embd.bias": "patch.bias",
    "v.position_embd.weight": "positions",
    "v.post_ln.weight": "merger.norm",
    "v.post_ln.bias": "merger.norm.bias",
    "mm.0.weight": "merger.up",
    "mm.0.bias": "merger.up.bias",
    "mm.2.weight": "merger.down",
    "mm.2.bias": "merger.down.bias",
}
_PROJECTOR_BLOCK = {
    "ln1": "attention_norm",
    "attn_qkv": "qkv",
    "attn_out": "output",
    "ln2": "mlp_norm",
    "ffn_up": "up",
    "ffn_down": "down",
}
_PROJECTOR_NAME = re.compile(r"v\.blk\.(0|[1-9]\d{0,4})\.(\w+)\.(weight|bias)")
_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,4})\.(.+)")


def gguf_place(stored: str) -> Place | None:
    """Our place for a tensor of a GGUF file; None where the language model has no such tensor."""
    if stored in _TOP:
        return Place(_TOP[stored])
    match = _BLOCK.fullmatch(stored)
    if match is None:
        return None
    layer, inner = match.groups()
    if inner in _HALVES:
        return Place(f"layers.{layer}.moe.gate_up", part=_HALVES[inner])
    return Place(f"layers.{layer}.{_LAYER[inner]}") if inner in _LAYER else None


def gguf_names(place: Place) -> str:
    """The tensors that could fill ``place``, to say what is missing."""
    table = {**{inner: f"layers.{ours}" for inner, ours in _LAYER.items()}, **_TOP}
    match = re.fullmatch(r"layers\.(\d+)\.(.+)", place.name)
    if match is None:
        return " or ".join(name for name, ours in table.items() if ours == place.name)
    layer, inner = match.groups()
    if place.part is not None:
        return next(f"blk.{layer}.{name}" for name, part in _HALVES.items() if part == place.part)
    return " or ".join(f"blk.{layer}.{name}" for name, ours in _LAYER.items() if ours == inner)


def unused_gguf_reason(stored: str, predictors: range) -> str | None:
    """Why a tensor of the layers ``predictors``, which lie behind the model's own, is not read; None for any other."""
    match = _BLOCK.fullmatch(stored)
    if match is not None and int(match[1]) in predictors:
        return "multi-token prediction head (nextn): not run yet"
    return None


def mmproj_name(stored: str) -> str | None:
    """The vision tower's name for a tensor of a projector; None for the slices of the patch, and for what it lacks."""
    match = _PROJECTOR_NAME.fullmatch(stored)
    if match is None:
        return _PROJECTOR.get(stored)
    layer, part, kind = match.groups()
    ours = _PROJECTOR_BLOCK.get(part)
    return ours and f"blocks.{layer}.{ours}{'.bias' if kind == 'bias' else ''}"


def mmproj_stored_name(name: str) -> str:
    """A projector's name for a tensor of the vision tower that is not the patch."""
    top = {ours: stored for stored, ours in _PROJECTOR.items()}
    if name in top:
        return top[name]
    _, layer, inner, *bias = name.split(".")
    part = {ours: stored for stored, ours in _PROJECTOR_BLOCK.items()}[inner]
    return f"v.blk.{layer}.{part}.{'bias' if bias else 'weight'}"
