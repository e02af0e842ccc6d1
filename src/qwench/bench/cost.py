"""What a row needs at least: bytes that must be moved and operations that must be done, and so the limit of its speed.

Counted from the declared parameters and how many bits each weight has. Knows no clock and no engine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwench.bench.rows import Row
from qwench.plan.shapes import active_parameters

if TYPE_CHECKING:
    from qwench.cache.storage import CacheSpec
    from qwench.config import ModelConfig

EVERY_EXPERT = 1_000_000  # tokens that touch all of them for certain
Bits = Mapping[str, float]  # of one weight, scales included, by the parameter's name


@dataclass(frozen=True)
class Cost:
    """Of one sample of a row: for a prompt all of it, for decoding one step of the whole batch."""

    tokens: int
    bytes: float
    operations: float

    def limit(self, bytes_per_second: float, operations_per_second: float) -> tuple[float, str]:
        """Most tokens per second, and what bounds them: "memory" or "arithmetic"."""
        memory, arithmetic = self.bytes / bytes_per_second, self.operations / operations_per_second
        return self.tokens / max(memory, arithmetic), "memory" if memory >= arithmetic else "arithmetic"


def cost_of(row: Row, model: ModelConfig, bits: Bits, cache: CacheSpec) -> Cost:
    """A prompt's weights are counted once, however many steps it is read in; a step's weights once for its batch."""
    if row.prefill:
        known = row.depth + row.prefill / 2
        moved = weight_bytes(model, bits, row.prefill) + row.prefill * cache.token_bytes
        return Cost(row.prefill, moved, row.prefill * operations(model, known, logits=1 / row.prefill))
    context = row.depth + row.decode / 2
    remembered = context * cache.token_bytes + 2 * cache.sequence_bytes  # a recurrent state is read and written
    moved = weight_bytes(model, bits, row.batch) + row.batch * remembered
    return Cost(row.batch, moved, row.batch * operations(model, context, logits=1.0))


def weight_bytes(model: ModelConfig, bits: Bits, tokens: int) -> float:
    """Bytes of the weights that ``tokens`` tokens touch.

    Of the experts, those that independent uniform choices are expected to touch; of the embedding, nothing where the
    head is a matrix of its own (one row a token).
    """
    from qwench.model.parameters import declare

    touched = 1 - (1 - model.moe.experts_per_token / model.moe.num_experts) ** tokens if model.moe else 1.0
    total = 0.0
    for name, spec in declare(model).items():
        if name != "embedding" or model.tie_embeddings:
            total += math.prod(spec.shape) * bits[name] / 8 * (touched if spec.kind == "experts" else 1.0)
    return total


def operations(model: ModelConfig, context: float, logits: float) -> float:
    """Operations of one token over ``context`` known ones: two per active weight, and attention's products.

    The head counts for the share ``logits`` of tokens. The delta rule's own products (a few per cent) are left out, so
    shares of the limit are lower bounds.
    """
    head = model.vocab_size * model.hidden_size
    weights = active_parameters(model) - head + head * logits
    attention = 4 * model.num_heads * model.head_dim * context * model.layer_types.count("full_attention")
    return 2 * weights + attention
