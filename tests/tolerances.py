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
    ("linear", "float32", "native"): Tolerance(1e-5, "up to 96 products of order 1, in the order of the depth"),
    ("linear", "bfloat16", "native"): Tolerance(0.02, "half a unit in the last of BF16's 8 bits, of results up to 4"),
    ("quantised_linear", "float32", "native"): Tolerance(
        5e-5, "sums of up to 50 blocks, magnitudes up to 30, in another order than the reference's 800 products"
    ),
    ("quantised_linear", "bfloat16", "native"): Tolerance(
        0.07, "one unit in the last of BF16's 8 bits, of results up to 10"
    ),
    ("experts", "float32", "native"): Tolerance(1e-5, "sums in another order"),
    ("experts", "bfloat16", "native"): Tolerance(0.05, "both sides round hidden values and results to BF16"),
    ("norm", "float32", "native"): Tolerance(1e-5, "one root and three products on results up to 10"),
    ("norm", "bfloat16", "native"): Tolerance(0.07, "one unit in the last of BF16's 8 bits, of results up to 10"),
    ("gates", "float32", "native"): Tolerance(2e-6, "e^x within 2 units in the last place, on results up to 10"),
    ("delta_net", "float32", "native"): Tolerance(
        2e-4, "the gated norm divides a readout by its own size, and so magnifies the 2e-5 of the delta rule"
    ),
    ("delta_net", "bfloat16", "native"): Tolerance(0.07, "one unit in the last of BF16's 8 bits, of results up to 10"),
    ("delta_state", "float32", "native"): Tolerance(2e-5, "as the delta rule's"),
    ("delta_state", "bfloat16", "native"): Tolerance(
        0.05, "keys and values are rounded to BF16 after a silu that may differ in its last bit"
    ),
    ("attention", "float32", "native"): Tolerance(5e-6, "softmax weights sum to 1; values are of order 1"),
    ("attention", "bfloat16", "native"): Tolerance(
        0.02, "one unit in the last of BF16's 8 bits, of results up to 3; torch rounds the weights as well"
    ),
    ("coded_attention", "float32", "native"): Tolerance(
        1e-5, "the same codes; scales multiply scores and weights here, keys and values there"
    ),
    ("coded_attention", "bfloat16", "native"): Tolerance(
        0.03, "as attention; the reference rounds keys and values to BF16 when it reads them, the kernels the weights"
    ),
    ("vision", "float32", "torch"): Tolerance(1e-4, "sums in another order, on rows of order 1"),
    ("vision", "float32", "native"): Tolerance(1e-4, "sums in another order, on rows of order 1"),
    ("vision", "bfloat16", "native"): Tolerance(0.05, "both layers and the sums between them are rounded to 8 bits"),
    ("vision", "float32", "cuda"): Tolerance(1e-4, "sums in another order, on rows of order 1; TF32 is off"),
    ("model_logits", "float32", "native"): Tolerance(1e-3, "the same fp32 arithmetic in another order"),
    ("model_logits", "float32", "torch"): Tolerance(1e-3, "the reference's own distance from fp64 is about 1e-4"),
    ("model_logits", "float32", "cuda"): Tolerance(1e-3, "the same fp32 arithmetic in another order; TF32 is off"),
}


def tolerance(operation: str, dtype: str = "float32", backend: str = "torch") -> float:
    return TOLERANCES[operation, dtype, backend].absolute
