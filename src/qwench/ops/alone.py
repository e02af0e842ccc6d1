"""Operations of a vision tower: asked for one by one, done together where a native library does them.

The native ones are instructions of one program of csrc/program.cpp, laid down anew each time.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

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
from qwench.ops.native import (
    ATTENTION_WIDTH,
    FramesArguments,
    LayerArguments,
    Native,
    NormArguments,
    require_equal,
    type_of,
    weight_address,
)

TILED = "amx-bf16"
STEP_NUMBERS = 5  # that a program knows of every step; the second is how many tokens there are


class Norm(NamedTuple):
    """A layer norm over vectors [width]."""

    weight: torch.Tensor
    bias: torch.Tensor
    epsilon: float


class Angles(NamedTuple):
    """By which heads turn, as in ops/rotary: fp32 [T, D / 2]."""

    cos: torch.Tensor
    sin: torch.Tensor


class Alone(Protocol):
    """Tensors are of the activations' type. What is asked for is done by ``perform``, in that order."""

    @property
    def threaded(self) -> bool:
        """Whether threads of their own compute these, beside which torch's, which wait for work by spinning, would only
        be in the way."""

    def layer(
        self,
        x: torch.Tensor,
        weight: Weight,
        bias: torch.Tensor,
        to: torch.Tensor,
        *,
        norm: Norm | None = None,
        gelu: bool = False,
        add: bool = False,
    ) -> None:
        """x [T, in], normed, times weight [out, in] transposed, plus bias, and of that gelu by its tanh, is written, or
        with ``add`` added, to ``to`` [T, out].
        """

    def norm(self, x: torch.Tensor, norm: Norm, to: torch.Tensor) -> None:
        """Of the rows of x [T, width]."""

    def attend(self, shown: torch.Tensor, starts: Sequence[int], angles: Angles, seen: torch.Tensor) -> None:
        """seen [T, heads, D] = softmax(query key / sqrt(D)) value inside frames, whose positions all see one another.

        ``shown`` [T, 3, heads, D] are queries, keys and values, of which the first two are turned; that may be
        overwritten. Frame f has rows ``starts``[f] to ``starts``[f + 1]. Of both some heads of more may be given.
        """

    def perform(self, pause: int) -> Iterator[None]:
        """All that was asked for is done, with a pause whenever ``pause`` multiplications are, or a step has more."""


class TorchAlone:
    """The references."""

    threaded = False

    def __init__(self) -> None:
        self._asked: list[tuple[int, Callable[[], object]]] = []  # how many multiplications, and what it is

    def layer(
        self,
        x: torch.Tensor,
        weight: Weight,
        bias: torch.Tensor,
        to: torch.Tensor,
        *,
        norm: Norm | None = None,
        gelu: bool = False,
        add: bool = False,
    ) -> None:
        def multiply() -> None:
            y = linear(x if norm is None else _normed(x, norm), weight, bias)
            y = F.gelu(y, approximate="tanh") if gelu else y
            to.add_(y) if add else to.copy_(y)

        self._asked.append((to.numel() * x.shape[1], multiply))

    def norm(self, x: torch.Tensor, norm: Norm, to: torch.Tensor) -> None:
        self._asked.append((0, lambda: to.copy_(_normed(x, norm))))

    def attend(self, shown: torch.Tensor, starts: Sequence[int], angles: Angles, seen: torch.Tensor) -> None:
        def turn_and_attend() -> None:
            for part in (shown[:, 0], shown[:, 1]):
                part.copy_(rotary.rotate(part, *angles))
            _attend(shown, starts, seen)

        self._asked.append((attention_products(starts, seen[0].numel()), turn_and_attend))

    def perform(self, pause: int) -> Iterator[None]:
        asked, self._asked, done = self._asked, [], 0
        for products, step in asked:
            step()
            if (done := done + products) >= pause:
                done = 0
                yield


def _normed(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    return F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.epsilon)


def _attend(shown: torch.Tensor, starts: Sequence[int], seen: torch.Tensor) -> None:
    """Without turning."""
    for length, frames in itertools.groupby(itertools.pairwise(starts), key=lambda frame: frame[1] - frame[0]):
        neighbours = list(frames)  # of one length: at once
        rows = slice(neighbours[0][0], neighbours[-1][1])
        query, key, value = shown[rows].unflatten(0, (-1, length)).permute(2, 0, 3, 1, 4)
        seen[rows] = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(0, 1)


def attention_products(starts: Sequence[int], width: int) -> int:
    """Multiplications inside frames, of heads that are so wide together."""
    return 2 * width * sum((stop - start) ** 2 for start, stop in itertools.pairwise(starts))


@dataclass(frozen=True)
class _Step:
    """An instruction, or what torch does between two of them; and all memory that it reads and writes."""

    products: int
    what: tuple[Operation, ctypes.Structure] | Callable[[], None]
    kept: tuple[object, ...]


class NativeAlone:
    """The native library where it is faster."""

    def __init__(self, native: Native) -> None:
        self._native = native
        self.threaded = native.isa != TILED  # there attention is torch's
        self._asked: list[_Step] = []

    def layer(
        self,
        x: torch.Tensor,
        weight: Weight,
        bias: torch.Tensor,
        to: torch.Tensor,
        *,
        norm: Norm | None = None,
        gelu: bool = False,
        add: bool = False,
    ) -> None:
        assert isinstance(weight, Packed)
        (matrix,) = weight.matrices
        require_equal("layer", "in", x=x.shape[1], weight=matrix.width, **_widths(norm))
        require_equal("layer", "out", y=to.shape[1], bias=len(bias), weight=matrix.out)
        require_equal("layer", "tokens", x=len(x), y=len(to))
        assert all(each.stride(-1) == 1 for each in (x, to, bias))
        vectors = {} if norm is None else {"norm": norm.weight, "norm_bias": norm.bias}
        self._ask(len(x) * matrix.width * matrix.out, Operation.LAYER, LayerArguments(
            weight_address(matrix), len(x), type_of("layer", x=x, bias=bias, y=to, **vectors), gelu,
            0.0 if norm is None else norm.epsilon, x.data_ptr(), x.stride(0), *_addresses(norm), bias.data_ptr(),
            to.data_ptr() if add else None, to.stride(0), to.data_ptr(), to.stride(0),
        ), x, to)  # fmt: skip

    def norm(self, x: torch.Tensor, norm: Norm, to: torch.Tensor) -> None:
        rows, width = x.shape
        require_equal("norm", "width", x=width, y=to.shape[1], **_widths(norm))
        require_equal("norm", "rows", x=rows, y=len(to))
        assert x.stride(1) == to.stride(1) == 1
        weight, bias = _addresses(norm)
        self._ask(0, Operation.RMS_NORM, NormArguments(
            rows, width, type_of("norm", x=x, weight=norm.weight, bias=norm.bias, y=to), norm.epsilon, 0.0,
            x.data_ptr(), x.stride(0), weight, to.data_ptr(), to.stride(0), bias,
        ), x, to)  # fmt: skip

    def attend(self, shown: torch.Tensor, starts: Sequence[int], angles: Angles, seen: torch.Tensor) -> None:
        rows, _, heads, width = shown.shape
        assert shown.stride()[2:] == seen.stride()[1:] == (width, 1)
        require_equal("attend", "rows", shown=rows, starts=starts[-1], seen=len(seen), cos=len(angles.cos))
        require_equal("attend", "heads", shown=heads, seen=seen.shape[1])
        require_equal("attend", "width", shown=width, seen=seen.shape[2], angles=2 * angles.cos.shape[1])
        assert angles.cos.shape == angles.sin.shape
        assert all(each.is_contiguous() for each in angles)
        assert starts[0] == 0
        assert width <= ATTENTION_WIDTH, f"heads are at most {ATTENTION_WIDTH} wide"
        assert all(first < last for first, last in itertools.pairwise(starts)), "a frame has rows"
        kind = type_of("attend", shown=shown, seen=seen)
        products = attention_products(starts, heads * width)
        if self._native.isa == TILED and dtype_of(shown) == BFLOAT16:
            self._turn(shown, angles, kind)  # torch multiplies with tiles here, which ours does not
            self._asked.append(_Step(products, lambda: _attend(shown, starts, seen), ()))
            return
        bounds = (ctypes.c_int64 * len(starts))(*starts)
        self._ask(products, Operation.FRAMES, FramesArguments(
            len(starts) - 1, heads, width, kind, width**-0.5, ctypes.addressof(bounds), *_addresses(angles),
            *(shown[:, part].data_ptr() for part in range(3)), shown.stride(0), seen.data_ptr(), seen.stride(0),
        ), shown, angles, bounds, seen)  # fmt: skip

    def _turn(self, shown: torch.Tensor, angles: Angles, kind: int) -> None:
        rows, _, heads, width = shown.shape
        for part in (shown[:, 0], shown[:, 1]):
            self._ask(0, Operation.ROTATION, RotationArguments(
                rows, heads, width, width // 2, kind, part.data_ptr(), part.stride(0), *_addresses(angles),
                part.data_ptr(), part.stride(0),
            ), part, angles)  # fmt: skip

    def _ask(self, products: int, operation: Operation, arguments: ctypes.Structure, *kept: object) -> None:
        self._asked.append(_Step(products, (operation, arguments), kept))

    def perform(self, pause: int) -> Iterator[None]:
        """Raises MemoryError where there is not enough."""
        asked, self._asked, done = self._asked, [], 0
        together: list[tuple[Operation, ctypes.Structure]] = []
        for step in asked:
            if callable(step.what):
                self._run(together)
                step.what()
            else:
                together.append(step.what)
            if (done := done + step.products) >= pause:
                self._run(together)
                done = 0
                yield
        self._run(together)

    def _run(self, together: list[tuple[Operation, ctypes.Structure]]) -> None:
        """One program of all instructions in the list, which is empty then."""
        lines = (InstructionStructure * len(together))(
            *(InstructionStructure(each, 1, ctypes.addressof(arguments)) for each, arguments in together)
        )
        program = ProgramStructure(ctypes.addressof(lines), len(lines), None, 0, ALIGNMENT, 0)
        step = (ctypes.c_int64 * STEP_NUMBERS)(0, 1)  # of one token: there is no scratch memory for none
        status, failed = self._native.run(ctypes.addressof(program), ctypes.addressof(step))
        if status:
            what = together[failed][0].name.lower() if failed >= 0 else "scratch"
            raise MemoryError(f"{what}: what it needs does not fit into memory (status {status})")
        together.clear()


def _addresses(pair: Norm | Angles | None) -> tuple[int | None, int | None]:
    return (None, None) if pair is None else (pair[0].data_ptr(), pair[1].data_ptr())


def _widths(norm: Norm | None) -> dict[str, int]:
    if norm is None:
        return {}
    assert norm.weight.stride(0) == norm.bias.stride(0) == 1
    return {"norm": len(norm.weight), "norm_bias": len(norm.bias)}
