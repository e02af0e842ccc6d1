"""Operations that are called one by one, outside a forward pass of the language model: what a vision tower is made of.

The native ones are single instructions of csrc/program.cpp.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from typing import Protocol

from qwench.ops import rotary
from qwench.ops.arrays import BFLOAT16, dtype_of
from qwench.ops.instructions import (
    InstructionStructure,
    Operation,
    ProgramStructure,
    RotationArguments,
)
from qwench.ops.lazy import F, torch
from qwench.ops.linear import Packed, Weight, linear
from qwench.ops.loading import ALIGNMENT
from qwench.ops.native import Native, type_of

TILED = "amx-bf16"
STEP_NUMBERS = 5  # that a program knows of every step; the second is how many tokens there are


class Alone(Protocol):
    """Tensors are of the activations' type, angles fp32."""

    @property
    def threaded(self) -> bool:
        """Whether threads of their own compute these, beside which torch's, which wait for work by spinning, would only
        be in the way."""

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
        """Turn heads x [T, heads, D] in place by angles [T, D / 2]; see ops/rotary."""

    def layer(
        self,
        x: torch.Tensor,
        weight: Weight,
        bias: torch.Tensor,
        *,
        gelu: bool = False,
        add_to: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x [T, in] times weight [out, in] transposed, plus bias, and of that gelu by its tanh: [T, out].

        With ``add_to`` [T, out] this is added to it, which is the result.
        """

    def layer_norm(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Of the rows of x [T, width]."""

    def attend(self, shown: torch.Tensor, starts: Sequence[int], seen: torch.Tensor) -> None:
        """seen [T, heads, D] = softmax(query key / sqrt(D)) value inside frames, whose positions all see one another.

        ``shown`` [T, 3, heads, D] are queries, keys and values; frame f has rows ``starts``[f] to ``starts``[f + 1]. Of
        both some heads of more may be given.
        """


class TorchAlone:
    """The references."""

    threaded = False

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
        x.copy_(rotary.rotate(x, cos, sin))

    def layer(
        self,
        x: torch.Tensor,
        weight: Weight,
        bias: torch.Tensor,
        *,
        gelu: bool = False,
        add_to: torch.Tensor | None = None,
    ) -> torch.Tensor:
        y = linear(x, weight, bias)
        if gelu:
            y = F.gelu(y, approximate="tanh")
        return y if add_to is None else add_to.add_(y)

    def layer_norm(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> torch.Tensor:
        return F.layer_norm(x, weight.shape, weight, bias, epsilon)

    def attend(self, shown: torch.Tensor, starts: Sequence[int], seen: torch.Tensor) -> None:
        for length, frames in itertools.groupby(itertools.pairwise(starts), key=lambda frame: frame[1] - frame[0]):
            neighbours = list(frames)  # of one length: at once
            rows = slice(neighbours[0][0], neighbours[-1][1])
            query, key, value = shown[rows].unflatten(0, (-1, length)).permute(2, 0, 3, 1, 4)
            seen[rows] = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(0, 1)


class NativeAlone:
    """The native library where it is faster."""

    def __init__(self, native: Native) -> None:
        self._native = native
        self.threaded = native.isa != TILED  # there attention is torch's

    def rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
        tokens, heads, width = x.shape
        assert x.stride()[1:] == (width, 1)
        assert cos.shape == sin.shape == (tokens, width // 2)
        assert cos.is_contiguous()
        assert sin.is_contiguous()
        arguments = RotationArguments(
            tokens, heads, width, width // 2, type_of("rotate", x=x), x.data_ptr(), x.stride(0),
            cos.data_ptr(), sin.data_ptr(), x.data_ptr(), x.stride(0),
        )  # fmt: skip
        self._perform(Operation.ROTATION, arguments)

    def layer(
        self,
        x: torch.Tensor,
        weight: Weight,
        bias: torch.Tensor,
        *,
        gelu: bool = False,
        add_to: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert isinstance(weight, Packed)
        return self._native.layer(x, weight.matrices[0], bias, gelu=gelu, add_to=add_to)

    def layer_norm(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> torch.Tensor:
        return self._native.layer_norm(x, weight, bias, epsilon)

    def attend(self, shown: torch.Tensor, starts: Sequence[int], seen: torch.Tensor) -> None:
        if self._native.isa == TILED and dtype_of(shown) == BFLOAT16:
            TorchAlone().attend(shown, starts, seen)  # torch multiplies with tiles here, which ours does not
        else:
            self._native.attend_frames(shown, starts, seen)

    def _perform(self, operation: Operation, arguments: ctypes.Structure) -> None:
        """A program of one instruction, for a step of one token: there is no scratch memory for none."""
        line = InstructionStructure(operation, 1, ctypes.addressof(arguments))
        program = ProgramStructure(ctypes.addressof(line), 1, None, 0, ALIGNMENT, 0)
        step = (ctypes.c_int64 * STEP_NUMBERS)(0, 1)
        status, _ = self._native.run(ctypes.addressof(program), ctypes.addressof(step))
        if status:
            raise MemoryError(f"{operation.name.lower()}: what it needs does not fit into memory (status {status})")
