"""How far a fast path may lie from its reference: one row per operation, type and backend, each with its reason.

The same values everywhere, CI included. ``absolute`` is the largest difference of any element.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    absolute: float
    reason: str


TOLERANCES: dict[tuple[str, str, str], Tolerance] = {
    ("linear", "float32", "torch"): Tolerance(1e-5, "sums of up to a few hundred products in another order"),
    ("attention", "float32", "torch"): Tolerance(5e-6, "softmax weights sum to 1; values are of order 1"),
    ("causal_conv", "float32", "torch"): Tolerance(2e-6, "four products, order differs between the two paths"),
    ("delta_rule", "float32", "torch"): Tolerance(
        2e-5, "chunks solve a 64 x 64 triangular system; measured 5e-6 on the state"
    ),
    ("norm", "float32", "torch"): Tolerance(2e-6, "one reciprocal root and two products"),
    ("rotary", "float32", "torch"): Tolerance(
        1e-5, "cos and sin of angles up to 300 have an absolute error of 1e-5 in fp32"
    ),
    ("experts", "float32", "torch"): Tolerance(1e-5, "experts are summed in another order"),
    ("model_logits", "float32", "torch"): Tolerance(1e-3, "the reference's own distance from fp64 is about 1e-4"),
    ("model_logits", "float32", "cuda"): Tolerance(1e-3, "the same fp32 arithmetic in another order; TF32 is off"),
}


def tolerance(operation: str, dtype: str = "float32", backend: str = "torch") -> float:
    return TOLERANCES[operation, dtype, backend].absolute
