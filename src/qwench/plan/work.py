"""What a step must at least move and compute: bytes by where they lie, operations by token. No clock, no machine.

The planner divides these by what a machine gives, the benchmark sets the limit of each row from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from qwench.config import ModelConfig
from qwench.model.parameters import declare
from qwench.plan.shapes import FULL, active_parameters

Bits = Mapping[str, float]  # of one weight, scales included, by the parameter's name


def coverage(model: ModelConfig, tokens: float) -> float:
    """The share of experts that ``tokens`` tokens touch, if they choose independently and uniformly."""
    if model.moe is None:
        return 1.0
    missed: float = (1 - model.moe.experts_per_token / model.moe.num_experts) ** tokens
    return 1 - missed


def weight_bytes(model: ModelConfig, bits: Bits, tokens: int) -> float:
    """Bytes of the weights that ``tokens`` tokens touch."""
    touched, total = coverage(model, tokens), 0.0
    for name, spec in declare(model).items():
        if is_read(model, name):
            total += math.prod(spec.shape) * bits[name] / 8 * (touched if spec.kind == "experts" else 1.0)
    return total


def is_read(model: ModelConfig, name: str) -> bool:
    """Whether a step reads this parameter as a whole: of an embedding that is no head, a token reads one row."""
    return name != "embedding" or model.tie_embeddings


def operations(model: ModelConfig, context: float, logits: float) -> float:
    """Operations of one token over ``context`` known ones: two per active weight, and attention's products.

    The head counts for the share ``logits`` of tokens. The delta rule's own products (a few per cent) are left out, so
    shares of the limit are lower bounds.
    """
    head = model.vocab_size * model.hidden_size
    weights = active_parameters(model) - head + head * logits
    attention = 4 * model.num_heads * model.head_dim * context * model.layer_types.count(FULL)
    return 2 * weights + attention
