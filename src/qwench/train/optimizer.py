"""Muon for the matrices, AdamW for everything else; state that can be saved and resumed.

Knows the parameters only by name and shape; the caller sets the learning rate of each step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# Matrices whose rows are single gates or lookups: an orthogonal update makes no sense for them.
NOT_MATRICES = (
    "embed_tokens",
    "patch_embed",
    "pos_embed",
    "labels",
    "conv1d",
    "mlp.gate.weight",
    "shared_expert_gate",
    "in_proj_a",
    "in_proj_b",
    "norm",
    "A_log",
    "dt_bias",
)


def orthogonal(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Newton-Schulz: pushes all singular values of [n, rows, columns] towards 1."""
    x = matrices.to(torch.bfloat16)
    tall = x.shape[-2] > x.shape[-1]
    x = x.transpose(-1, -2) if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        square = x @ x.transpose(-1, -2)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x.transpose(-1, -2) if tall else x).float()


class Optimizer:
    """Two rules, one step: matrices of the same shape are updated in one stack.

    Without ``matrices`` AdamW is the rule for all: where batches are small, Muon's products cost more than the pass.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        *,
        matrices: bool = True,
    ) -> None:
        self.parameters = parameters
        self.momentum, self.betas, self.count = momentum, betas, 0
        self.matrices = [
            name
            for name in parameters
            if matrices and parameters[name].ndim >= 2 and not any(part in name for part in NOT_MATRICES)
        ]
        self.rest = [name for name in parameters if name not in self.matrices]
        self.first = {name: torch.zeros_like(value) for name, value in parameters.items()}
        self.second = {name: torch.zeros_like(parameters[name]) for name in self.rest}
        self.stacks: dict[tuple[int, int], list[str]] = {}
        for name in self.matrices:
            rows, columns = parameters[name].shape[-2:]
            self.stacks.setdefault((rows, columns), []).append(name)

    @torch.no_grad()
    def step(self, rate_matrices: float, rate_rest: float) -> None:
        self.count += 1
        for (rows, columns), names in self.stacks.items():
            updates = []
            for name in names:
                gradient, first = self.parameters[name].grad, self.first[name]
                assert gradient is not None
                first.lerp_(gradient, 1 - self.momentum)
                updates.append(gradient.lerp(first, self.momentum).view(-1, rows, columns))
            update = orthogonal(torch.cat(updates)) * max(1.0, rows / columns) ** 0.5
            for name, part in zip(names, update.split([len(one) for one in updates]), strict=True):
                self.parameters[name].sub_(part.view_as(self.parameters[name]), alpha=rate_matrices)
        one, two = self.betas
        for name in self.rest:
            value, first, second = self.parameters[name], self.first[name], self.second[name]
            gradient = value.grad
            assert gradient is not None
            first.lerp_(gradient, 1 - one)
            second.lerp_(gradient.square(), 1 - two)
            scale = (second / (1 - two**self.count)).sqrt_().add_(1e-8)
            value.addcdiv_(first, scale, value=-rate_rest / (1 - one**self.count))

    def state(self) -> dict[str, Any]:
        return {"count": self.count, "first": self.first, "second": self.second}

    def load(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        for mine, saved in ((self.first, state["first"]), (self.second, state["second"])):
            for name, value in saved.items():
                mine[name].copy_(value)
