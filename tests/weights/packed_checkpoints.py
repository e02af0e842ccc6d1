"""Whole tiny checkpoints in each packed format, from transformers models that then hold exactly what was stored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.weights import packers

Tensors = dict[str, torch.Tensor]
# A matrix, and the largest number among those that share a global scale with it, to (tensors by suffix, their values).
Pack = Callable[[torch.Tensor, float], tuple[Tensors, torch.Tensor]]
# What producers keep in this family: small projections, routers, gates, the head.
KEPT = ("in_proj_a", "in_proj_b", "mlp.gate", "shared_expert_gate", "lm_head")
INT4 = {"num_bits": 4, "type": "int", "symmetric": False, "group_size": 32, "strategy": "group"}


def compressed(layout: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights}
    ignore = [f"re:.*{name}$".replace(".*mlp", r".*\.mlp") for name in KEPT]
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": group},
        "ignore": ignore,
    }


def rounded(
    weight: torch.Tensor, group: int | None, *, bits: int = 4, symmetric: bool, dtype: torch.dtype = torch.float16
) -> packers.Integers:
    """Rounded to nearest, group by group."""
    out, width = weight.shape
    middle, top = 2 ** (bits - 1), 2**bits - 1
    columns = [weight[:, start : start + (group or width)] for start in range(0, width, group or width)]
    if symmetric:
        scales = torch.stack([each.abs().amax(1) / (middle - 1) for each in columns], dim=1).to(dtype)
        zeros = torch.full(scales.shape, middle)
    else:
        low = torch.stack([each.amin(1) for each in columns], dim=1)
        high = torch.stack([each.amax(1) for each in columns], dim=1)
        scales = ((high - low) / top).to(dtype)
        zeros = (-low / scales.float()).round().clamp(1, top).long()
    codes = torch.empty(out, width, dtype=torch.long)
    for index, each in enumerate(columns):
        place = slice(index * (group or width), index * (group or width) + each.shape[1])
        steps = (each / scales[:, index, None].float()).round() + zeros[:, index, None]
        codes[:, place] = steps.clamp(0, top).long()
    return packers.Integers(codes, scales, zeros, group, bits)


def nearest(weight: torch.Tensor, scales: torch.Tensor, whole: float) -> packers.Floats:
    """E2M1 under the given scales."""
    block = weight.shape[1] // scales.shape[1]
    steps = weight.double() / (scales.repeat_interleave(block, dim=1) * whole)
    table = torch.tensor(packers.E2M1, dtype=torch.float64)
    return packers.Floats((steps[..., None] - table).abs().argmin(-1), scales, whole)


def nvfp4(weight: torch.Tensor, largest_of_all: float) -> packers.Floats:
    whole = float(torch.tensor(largest_of_all / (6 * 448)))
    largest = weight.view(len(weight), -1, 16).abs().amax(-1)
    return nearest(weight, (largest / 6 / whole).to(torch.float8_e4m3fn).double(), whole)


def mxfp4(weight: torch.Tensor, _largest: float) -> packers.Floats:
    largest = weight.view(len(weight), -1, 32).abs().amax(-1).double()
    return nearest(weight, 2.0 ** ((largest / 4).log2().round()), 1.0)


@dataclass(frozen=True)
class Sort:
    """One way to store: what config.json says, what a matrix becomes, and which widths it has a form for."""

    config: dict[str, Any]
    pack: Pack
    multiple: int = 1
    outputs: int = 1
    kind: str | None = None  # the weight type it becomes
    extra: tuple[str, ...] = field(default=())  # further tensors that producers write and that are not used


def _integers(form: Callable[[packers.Integers], Tensors], group: int | None, **how: Any) -> Pack:
    def pack(weight: torch.Tensor, _largest: float) -> tuple[Tensors, torch.Tensor]:
        matrix = rounded(weight, group, **how)
        return form(matrix), matrix.values

    return pack


def _floats(
    form: Callable[[packers.Floats], Tensors], quantise: Callable[[torch.Tensor, float], packers.Floats]
) -> Pack:
    def pack(weight: torch.Tensor, largest: float) -> tuple[Tensors, torch.Tensor]:
        matrix = quantise(weight, largest)
        return form(matrix), matrix.values

    return pack


def _bytes(weight: torch.Tensor, _largest: float) -> tuple[Tensors, torch.Tensor]:
    matrix = rounded(weight, None, bits=8, symmetric=True, dtype=torch.bfloat16)
    return {".weight": (matrix.codes - 128).to(torch.int8), ".weight_scale": matrix.scales}, matrix.values


def _fp8(weight: torch.Tensor, _largest: float) -> tuple[Tensors, torch.Tensor]:
    scale = (weight.abs().amax(1, keepdim=True) / 448).bfloat16()
    codes = (weight / scale.float()).to(torch.float8_e4m3fn)
    return {".weight": codes, ".weight_scale": scale}, codes.double() * scale.double()


def _mx(codes: str, scales: str) -> Callable[[packers.Floats], Tensors]:
    return lambda matrix: {codes: matrix.octets, scales: packers.exponent_bytes(matrix)}


_DYNAMIC: dict[str, dict[str, Any]] = {f"-:.*{name}$".replace(".*mlp", r".*\.mlp"): {} for name in KEPT}
SORTS: dict[str, Sort] = {
    "gptq": Sort(
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False, "dynamic": _DYNAMIC},
        _integers(lambda matrix: packers.gptq(matrix, version=1), 32, symmetric=True),
        kind="int4",
    ),
    "gptq_v2": Sort(
        {"quant_method": "gptq", "bits": 8, "group_size": -1, "sym": False, "desc_act": True, "dynamic": _DYNAMIC}
        | {"checkpoint_format": "gptq_v2"},
        _integers(lambda matrix: packers.gptq(matrix, version=2), None, bits=8, symmetric=False),
        kind="int8_zero",
    ),
    "awq": Sort(
        {"quant_method": "awq", "bits": 4, "group_size": 32, "modules_to_not_convert": list(KEPT)},
        _integers(packers.awq, 32, symmetric=False),
        outputs=8,
        kind="int4_zero",
    ),
    "packed": Sort(
        compressed("pack-quantized", **INT4),
        _integers(lambda m: packers.compressed(m, symmetric=False), 32, symmetric=False, dtype=torch.bfloat16),
        kind="int4_zero",
    ),
    "int8": Sort(compressed("int-quantized", num_bits=8, type="int", strategy="channel"), _bytes, kind="int8"),
    "nvfp4": Sort(
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": [f"*{name}" for name in KEPT]},
        _floats(packers.modelopt, nvfp4),
        multiple=16,
        kind="nvfp4",
        extra=(".input_scale",),
    ),
    "nvfp4_packed": Sort(
        compressed("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16),
        _floats(packers.compressed_nvfp4, nvfp4),
        multiple=16,
        kind="nvfp4",
        extra=(".input_global_scale",),
    ),
    "mxfp4": Sort(
        {
            "quant_method": "quark",
            "global_quant_config": {"weight": {"dtype": "fp4", "qscheme": "per_group", "group_size": 32}},
            "exclude": [f"re:.*{name}$" for name in KEPT],
        },
        _floats(_mx(".weight", ".weight_scale"), mxfp4),
        multiple=32,
        kind="mxfp4",
    ),
    "mxfp4_packed": Sort(
        compressed("mxfp4-pack-quantized", num_bits=4, type="float", group_size=32),
        _floats(_mx(".weight_packed", ".weight_scale"), mxfp4),
        multiple=32,
        kind="mxfp4",
    ),
    "fp8": Sort(compressed("float-quantized", num_bits=8, type="float", strategy="channel"), _fp8),
}


def write(model: Any, source: Path, target: Path, sort: Sort) -> set[str]:
    """The model of the checkpoint ``source`` stored as ``sort``, experts one by one; the names of packed modules.

    The model's own weights become what was stored.
    """
    target.mkdir(parents=True, exist_ok=True)
    stored: Tensors = {}
    packed: set[str] = set()

    def put(module: str, weight: torch.Tensor, largest: float) -> None:
        keeps = module.endswith(KEPT) or weight.shape[1] % sort.multiple or weight.shape[0] % sort.outputs
        if keeps:
            stored[f"{module}.weight"] = weight.clone()
            return
        tensors, values = sort.pack(weight.float(), largest)
        stored.update({module + suffix: tensor.contiguous() for suffix, tensor in tensors.items()})
        stored.update({module + suffix: torch.ones(()) for suffix in sort.extra})
        weight.copy_(values)
        packed.add(module)

    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            base, _, last = name.rpartition(".")
            if last in ("gate_up_proj", "down_proj") and base.endswith("experts"):
                for expert, matrix in enumerate(tensor):
                    halves = matrix.chunk(2) if last == "gate_up_proj" else (matrix,)
                    for part, half in zip(("gate", "up") if len(halves) == 2 else ("down",), halves, strict=True):
                        put(f"{base}.{expert}.{part}_proj", half, float(matrix.abs().max()))
            elif last == "weight" and tensor.dim() == 2 and "embed" not in name and "visual" not in name:
                put(base, tensor, float(tensor.abs().max()))
            else:
                stored[name] = tensor.clone()
    if model.config.tie_word_embeddings:
        stored.pop("lm_head.weight", None)
    save_file(stored, target / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((source / "config.json").read_text()) | {"quantization_config": sort.config}
    (target / "config.json").write_text(json.dumps(raw))
    for path in source.glob("generation_config.json"):
        shutil.copy(path, target)
    return packed
