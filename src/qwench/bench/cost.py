"""What a row needs at least: bytes that must be moved and operations that must be done, and so the limit of its speed.

What is counted says plan/work.py, as for any plan. Knows no clock and no engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwench.bench.rows import Row
from qwench.plan.work import operations

if TYPE_CHECKING:
    from qwench.cache.storage import CacheSpec
    from qwench.config import ModelConfig

EVERY_EXPERT = 1_000_000  # tokens that touch all of them for certain


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


def cost_of(row: Row, model: ModelConfig, read: float, cache: CacheSpec) -> Cost:
    """``read``: bytes of weights, a prompt's counted once, however many steps it is read in, a step's once for all."""
    if row.prefill:
        known = row.depth + row.prefill / 2
        return Cost(
            row.prefill,
            read + row.prefill * cache.token_bytes,
            row.prefill * operations(model, known, logits=1 / row.prefill),
        )
    context = row.depth + row.decode / 2
    remembered = context * cache.token_bytes + 2 * cache.sequence_bytes  # a recurrent state is read and written
    return Cost(row.batch, read + row.batch * remembered, row.batch * operations(model, context, logits=1.0))
