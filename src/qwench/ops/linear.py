"""Linear layers, embedding rows and expert feed-forwards over the weight types. A weight's type is its quantisation.

Packed low-bit types join here, and nothing above this file mentions bits.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from qwench.ops.activation import silu_multiply
from qwench.ops.arrays import DType, torch_dtype
from qwench.ops.lazy import F, torch
from qwench.ops.native import LinearInput, Native, PackedExperts, PackedMatrix
from qwench.ops.quantised import Codes, dequantise, quantised_linear


@dataclass(frozen=True)
class Dense:
    """An unquantised weight: [out, in], or [experts, out, in]."""

    data: torch.Tensor

    def expert(self, index: int) -> Dense:
        """[out, in] of one expert."""
        return Dense(self.data[index])


@dataclass(frozen=True)
class Quantised:
    """A quantised weight for the references: one matrix, or one for each expert; ``dtype`` of activations."""

    matrices: tuple[Codes, ...]
    dtype: DType

    def expert(self, index: int) -> Quantised:
        """[out, in] of one expert."""
        return Quantised(self.matrices[index : index + 1], self.dtype)


@dataclass(frozen=True)
class Packed:
    """A weight of any type in the native kernels' layout: one matrix, or one for each expert."""

    native: Native
    matrices: tuple[PackedMatrix, ...]
    dtype: DType

    def expert(self, index: int) -> Packed:
        """[out, in] of one expert."""
        return Packed(self.native, self.matrices[index : index + 1], self.dtype)

    @functools.cached_property
    def experts(self) -> PackedExperts:
        """All matrices, as the kernel for experts reads them."""
        return PackedExperts(self.matrices)


Weight = Dense | Quantised | Packed


def linear(x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [T, in] times weight [out, in] transposed, plus bias [out] if there is one: [T, out] in x's type."""
    if isinstance(weight, Packed):
        residual = None if bias is None else bias.expand(len(x), -1)
        return weight.native.linear_many([LinearInput(x, weight.matrices[0], residual)])[0]
    if isinstance(weight, Quantised):
        product = quantised_linear(x, weight.matrices[0])
        return product if bias is None else product + bias
    return F.linear(x, weight.data, bias)


def embed(token_ids: torch.Tensor, table: Weight) -> torch.Tensor:
    """Rows [T, H] of the table [V, H] for token_ids [T]."""
    if isinstance(table, Packed):
        return table.native.unpack_rows(table.matrices[0], token_ids, table.dtype)
    if isinstance(table, Quantised):
        return dequantise(table.matrices[0].rows(token_ids)).to(torch_dtype(table.dtype))
    return F.embedding(token_ids, table.data)


def route(logits: torch.Tensor, experts_per_token: int, *, normalise: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Router logits [T, E] to (weights [T, k] fp32, expert ids [T, k]): softmax over all experts, then the top k.

    Among experts that are equally probable the lower number is taken: logits of 16 bits are often equal.
    """
    probabilities = torch.softmax(logits.float(), dim=-1)
    weights, experts = torch.sort(probabilities, dim=-1, descending=True, stable=True)
    weights, experts = weights[:, :experts_per_token], experts[:, :experts_per_token]
    if normalise:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights, experts


def expert_mlp(
    x: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor, gate_up: Weight, down: Weight
) -> torch.Tensor:
    """Sum over each token's experts of weight * down(silu(gate x) * up x).

    x [T, H], weights [T, k] fp32, experts [T, k], gate_up [E, 2I, H] (gate rows first), down [E, H, I] -> [T, H].
    Experts are visited in ascending order and summed in fp32, so the result does not depend on the batch's order.
    """
    total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in torch.unique(experts).tolist():
        tokens, places = torch.where(experts == expert)
        hidden = linear(x[tokens], gate_up.expert(expert))
        width = hidden.shape[-1] // 2
        output = linear(silu_multiply(hidden[:, :width], hidden[:, width:]), down.expert(expert))
        total.index_add_(0, tokens, output.float() * weights[tokens, places, None])
    return total.to(x.dtype)
