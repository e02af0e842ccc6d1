"""Which type each parameter gets under a quantization: what is known of this family's sensitivity, as one table.

Rounding the output projection of DeltaNet hurts most, then attention and DeltaNet's queries, keys and values, then what
leads back into the residual stream (down); gate and up bear it best, those of experts above all. The table and the head
come behind DeltaNet: the bytes of a bit more for them buy less than half of what they buy there (docs/accuracy.md).
Small matrices that steer (router, gates, write strength and decay of the state) are left as they are: they weigh
nothing. Knows no values, and loads no torch: plans are made of it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from qwench.config import ModelConfig
from qwench.model.parameters import ParameterSpec, declare
from qwench.ops.weight_types import OWN_TYPES, SUPER_BLOCK, WeightType

if TYPE_CHECKING:
    from qwench.ops.arrays import DType
    from qwench.ops.store import Kind

UNEVEN = "q8"  # instead of a type with super-blocks, where the depth is no multiple of them


@dataclass(frozen=True)
class Recipe:
    """The type of each group of matrices; behind the table the most sensitive come first."""

    table: str  # embedding and head
    delta_output: str
    attention: str
    shared: str  # of the shared expert
    delta: str  # queries, keys and values of DeltaNet
    down: str  # and DeltaNet's gate
    gate_up: str
    expert_down: str
    expert_gate_up: str

    def type_of(self, name: str, width: int) -> WeightType | None:
        """Of the parameter ``name`` [..., width]; None where it is left as it is."""
        group = _group_of(name)
        if group is None:
            return None
        found = OWN_TYPES[getattr(self, group)]
        return OWN_TYPES[UNEVEN] if found.nested and width % SUPER_BLOCK else found


_GROUPS = {
    "table": r"embedding|head",
    "delta_output": r".*\.delta\.output",
    "attention": r".*\.attention\.(query|key|value|output)",
    "shared": r".*\.moe\.shared\.(gate|up|down)",
    "delta": r".*\.delta\.qkv",
    "down": r".*\.mlp\.down|.*\.delta\.gate",
    "gate_up": r".*\.mlp\.(gate|up)",
    "expert_down": r".*\.moe\.down",
    "expert_gate_up": r".*\.moe\.gate_up",
}


@functools.lru_cache(maxsize=4096)
def _group_of(name: str) -> str | None:
    return next((group for group, pattern in _GROUPS.items() if re.fullmatch(pattern, name)), None)


assert tuple(_GROUPS) == tuple(field.name for field in fields(Recipe))

RECIPES: Mapping[str, Recipe] = {
    "q8": Recipe(*["q8"] * 9),
    "q6": Recipe("q6", "q8", *["q6"] * 7),
    "q5": Recipe("q6", "q8", "q6", "q6", *["q5"] * 5),
    "q4": Recipe("q5", "q6", "q5", "q5", "q5", *["q4"] * 4),
    "q3": Recipe("q5", "q5", "q5", "q5", "q5", "q4", "q3", "q4", "q3"),
    "q2": Recipe("q5", "q5", "q5", "q5", "q4", "q3", "q2", "q3", "q2"),
    "mxfp4": Recipe("q5", "q6", "q5", "q5", "q5", *["mxfp4"] * 4),
}


def type_for(name: str, spec: ParameterSpec, quantization: str) -> WeightType | None:
    """The type of one parameter; None where it is left as it is."""
    if spec.kind not in ("table", "matrix", "experts"):
        return None
    return RECIPES[quantization].type_of(name, spec.shape[-1])


def kinds_for(config: ModelConfig, quantization: str | None, dtype: DType) -> dict[str, Kind]:
    """The type of every parameter; what is not quantised is ``dtype``, or float32 where it must be."""
    from qwench.weights.source import plain_kinds

    kinds = plain_kinds(config, dtype)
    if quantization is None:
        return kinds
    return {name: type_for(name, spec, quantization) or kinds[name] for name, spec in declare(config).items()}
