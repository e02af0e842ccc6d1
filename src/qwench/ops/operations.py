"""What a forward pass is written in: the operations of a language model over values that may not be there yet.

A model's description calls them in order. Eager (ops/eager) computes at once with torch; Recorder (ops/program) writes
native instructions down, to be run for every step. Nothing here knows a model, and a description knows neither of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from qwench.ops.arrays import Array, Host
from qwench.ops.delta_net import DeltaInputs, DeltaParameters
from qwench.ops.linear import Weight
from qwench.ops.rows import Rows

Value = TypeVar("Value")


@dataclass(frozen=True)
class Inputs:
    """A step: token_ids [T], their rows, logit_tokens [L], and cos and sin [T, rotary_dim / 2] of their positions.

    ``embedded`` [T, H], in the activations' type, is what the tokens begin as where some of them are no ids. Where L
    is 1 and ``few_logits``, fp32, says (n, d) with n above 0, only the n largest logits count, and others less than d
    below these: only they need be exact.
    """

    token_ids: Array
    rows: Rows
    logit_tokens: Array
    cos: Array
    sin: Array
    embedded: Array = None
    few_logits: Host | None = None  # without it all count

    def map(self, change: Callable[[Array], Array]) -> Inputs:
        """The same step over other arrays."""
        token_ids, logit_tokens, cos, sin = map(change, (self.token_ids, self.logit_tokens, self.cos, self.sin))
        embedded = None if self.embedded is None else change(self.embedded)
        return Inputs(token_ids, self.rows.map(change), logit_tokens, cos, sin, embedded, self.few_logits)


class Operations(Protocol[Value]):
    """A value is [n, width] of the activations' type, heads side by side; n is T, or L after ``logit_rows``.

    Weights, vectors and the cache's arrays are always real. The contract of each operation is its reference's.
    """

    def embed(self, table: Weight) -> Value:
        """The step's tokens [T, H]; see ops/linear."""

    def linear(self, x: Value, weight: Weight) -> Value:
        """See ops/linear."""

    def rms_norm(self, x: Value, weight: Array, eps: float, *, zero_centred: bool) -> Value:
        """Every len(weight) numbers normed by themselves: the whole width or each head; see ops/norm."""

    def halve_heads(self, x: Value, width: int) -> tuple[Value, Value]:
        """Heads of 2 ``width`` as their first halves and their second halves."""

    def rotate(self, x: Value, head_dim: int) -> Value:
        """Each head turned by its token's angles; see ops/rotary."""

    def attention(self, query: Value, key: Value, value: Value, keys: Array, values: Array) -> Value:
        """[T, Hq * D]; the cache is advanced; see ops/attention."""

    def delta_net(
        self,
        inputs: DeltaInputs[Value],
        parameters: DeltaParameters,
        conv_states: Array,
        states: Array,
    ) -> Value:
        """[T, Hv * dv]; the states are advanced; see ops/delta_net."""

    def experts(
        self, x: Value, logits: Value, gate_up: Weight, down: Weight, experts_per_token: int, *, normalise: bool
    ) -> Value:
        """The feed-forwards that the router's logits [T, E] choose, summed; see route and expert_mlp in ops/linear."""

    def silu_multiply(self, gate: Value, up: Value) -> Value:
        """See ops/activation."""

    def sigmoid_multiply(self, x: Value, gate: Value) -> Value:
        """See ops/activation; a gate of width 1 is for all of x."""

    def add(self, x: Value, y: Value) -> Value:
        """x + y."""

    def logit_rows(self, x: Value) -> Value:
        """The rows [L, width] of x whose successors are asked for."""

    def logits(self, x: Value, head: Weight) -> Value:
        """``linear``, as fp32: [L, V]."""


class Description(Protocol):
    """A model's forward pass, from the embedding to the logits, over the arrays of its cache."""

    def __call__(self, ops: Operations[Value], cache: Any) -> Value: ...
