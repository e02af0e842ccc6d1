"""A forward pass as one native call: a description is recorded once over symbols, then replayed for every step.

Recorder notes each operation as an instruction whose arguments are known but for what differs between steps. Program
gives the symbols places in one scratch memory, lays the instructions down and runs them (csrc/program.cpp). It knows
no model; what the operations compute is said by their references.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch

from qwench.ops.delta_net import DeltaInputs, DeltaParameters
from qwench.ops.instructions import (
    NO_MEMORY,
    STRUCTURES,
    BlankStructure,
    InstructionStructure,
    Operation,
    Pointwise,
    ProgramStructure,
)
from qwench.ops.linear import Packed, Weight
from qwench.ops.native import ALIGNMENT, ATTENTION_WIDTH, DELTA_WIDTH, TYPES, Native, PackedMatrix, require_equal
from qwench.ops.operations import Inputs, Operations


class Number(enum.IntEnum):
    """The numbers of a step: how many rows there are, and where its tensors lie. The library knows the first five."""

    ZERO = 0
    TOKENS = 1
    LOGITS = 2
    TOKEN_SCRATCH = 3
    LOGIT_SCRATCH = 4
    ROWS = 5
    TOKEN_IDS = 6
    STARTS = 7
    CONTEXTS = 8
    PAGE_TABLE = 9
    PAGE_STRIDE = 10
    KV_SLOTS = 11
    STATE_SLOTS = 12
    LOGIT_TOKENS = 13
    COS = 14
    SIN = 15
    RESULT = 16


@dataclass(frozen=True)
class Count:
    """``factor`` for each of the step's ``number``: rows of a norm over heads."""

    number: Number
    factor: int


@dataclass(frozen=True, eq=False)
class Buffer:
    """Memory of ``row_bytes`` for each of the step's ``rows``, TOKENS or LOGITS: in the scratch, or the result."""

    rows: Number
    row_bytes: int
    is_result: bool = False

    @property
    def base(self) -> Number:
        if self.is_result:
            return Number.RESULT
        return Number.TOKEN_SCRATCH if self.rows is Number.TOKENS else Number.LOGIT_SCRATCH


@dataclass(frozen=True, eq=False)
class Symbol:
    """[n, width] in a buffer: runs of ``run`` elements, ``stride`` elements from each to the next, from ``offset`` on."""

    buffer: Buffer
    dtype: torch.dtype
    width: int
    run: int
    stride: int
    offset: int = 0

    @property
    def is_dense(self) -> bool:
        return self.run == self.stride

    def stride_of(self, run: int) -> int:
        """The stride if the symbol is read in runs of ``run``, however its rows are cut."""
        assert self.is_dense or self.run == run, f"runs of {self.run} elements cannot be read as runs of {run}"
        return run if self.is_dense else self.stride


Argument = int | float | torch.Tensor | PackedMatrix | Number | Count | Symbol
Arguments = dict[str, Argument]


@dataclass(frozen=True)
class Instruction:
    """An operation with its arguments, or linear layers over one input as one job."""

    operation: Operation
    calls: list[Arguments]

    @property
    def symbols(self) -> Iterator[Symbol]:
        return (each for call in self.calls for each in call.values() if isinstance(each, Symbol))


@dataclass
class Recorder(Operations[Symbol]):
    """Operations noted down. ``half``: rotary angles per token; ``page_size`` of the cache."""

    page_size: int
    half: int
    instructions: list[Instruction] = field(default_factory=list)
    _linears: dict[Symbol, Instruction] = field(default_factory=dict)  # by what they read

    def embed(self, table: Weight) -> Symbol:
        matrix = matrices(table)[0]
        y = _fresh(Number.TOKENS, matrix.width, matrix.dtype)
        arguments: Arguments = {
            "tokens": Number.TOKENS, "in": matrix.width, "out": matrix.out, "weight_type": TYPES[matrix.dtype],
            "packed": matrix, "ids": Number.TOKEN_IDS, "y": y, "y_stride": y.width,
        }  # fmt: skip
        self._note(Operation.EMBEDDING, arguments)
        return y

    def linear(self, x: Symbol, weight: Weight) -> Symbol:
        matrix = matrices(weight)[0]
        y = _fresh(x.buffer.rows, matrix.out, x.dtype)
        self._multiply(x, matrix, y)
        return y

    def _multiply(self, x: Symbol, matrix: PackedMatrix, y: Symbol) -> None:
        """All layers over one input become one job where the first of them stands: they depend on nothing else."""
        require_equal("linear", "in", x=x.width, weight=matrix.width)
        if x not in self._linears:
            self._linears[x] = Instruction(Operation.LINEAR, [])
            self.instructions.append(self._linears[x])
        self._linears[x].calls.append({
            "tokens": x.buffer.rows, "in": matrix.width, "out": matrix.out, "weight_type": TYPES[matrix.dtype],
            "type": TYPES[x.dtype], "packed": matrix, "x": x, "x_stride": x.stride_of(x.width), "y": y,
            "y_stride": y.stride,
        })  # fmt: skip

    def rms_norm(self, x: Symbol, weight: torch.Tensor, eps: float, *, zero_centred: bool) -> Symbol:
        run = len(weight)
        require_equal("rms_norm", "width beyond whole heads", x=x.width % run, needed=0)
        assert weight.dtype == x.dtype
        assert weight.is_contiguous()
        y = _fresh(x.buffer.rows, x.width, x.dtype)
        self._note(Operation.RMS_NORM, {
            "rows": Count(x.buffer.rows, x.width // run), "width": run, "type": TYPES[x.dtype], "epsilon": eps,
            "offset": 1.0 if zero_centred else 0.0, "x": x, "x_stride": x.stride_of(run), "weight": weight,
            "y": y, "y_stride": run,
        })  # fmt: skip
        return y

    def halve_heads(self, x: Symbol, width: int) -> tuple[Symbol, Symbol]:
        assert x.is_dense
        first = replace(x, width=x.width // 2, run=width, stride=2 * width)
        return first, replace(first, offset=width)

    def rotate(self, x: Symbol, head_dim: int) -> Symbol:
        assert x.is_dense
        y = _fresh(x.buffer.rows, x.width, x.dtype)
        self._note(Operation.ROTATION, {
            "tokens": x.buffer.rows, "heads": x.width // head_dim, "head_dim": head_dim, "half": self.half,
            "type": TYPES[x.dtype], "x": x, "x_stride": x.width, "cosine": Number.COS, "sine": Number.SIN,
            "output": y, "output_stride": y.width,
        })  # fmt: skip
        return y

    def attention(
        self, query: Symbol, key: Symbol, value: Symbol, keys: torch.Tensor, values: torch.Tensor
    ) -> Symbol:
        slots, kv_heads, head_dim = keys.shape
        require_equal("attention", "kv_heads * head_dim", key=key.width, value=value.width, keys=kv_heads * head_dim)
        require_equal("attention", "width beyond whole groups", query=query.width % key.width, needed=0)
        require_equal("attention", "shape", keys=keys.shape, values=values.shape)
        require_equal("attention", "type", query=query.dtype, keys=keys.dtype, values=values.dtype)
        assert all(each.is_dense for each in (query, key, value))
        assert keys.is_contiguous() and values.is_contiguous()
        assert head_dim <= ATTENTION_WIDTH, f"attention: heads are at most {ATTENTION_WIDTH} wide"
        y = _fresh(query.buffer.rows, query.width, query.dtype)
        self._note(Operation.ATTENTION, {
            "rows": Number.ROWS, "query_heads": query.width // head_dim, "kv_heads": kv_heads, "head_dim": head_dim,
            "page_size": self.page_size, "num_pages": slots // self.page_size, "type": TYPES[query.dtype],
            "scale": head_dim**-0.5, "starts": Number.STARTS, "contexts": Number.CONTEXTS,
            "page_table": Number.PAGE_TABLE, "page_stride": Number.PAGE_STRIDE, "kv_slots": Number.KV_SLOTS,
            "query": query, "query_stride": query.width, "key": key, "key_stride": key.width, "value": value,
            "value_stride": value.width, "keys": keys, "values": values, "output": y, "output_stride": y.width,
        })  # fmt: skip
        return y

    def delta_net(
        self,
        inputs: DeltaInputs[Symbol],
        parameters: DeltaParameters,
        conv_states: torch.Tensor,
        states: torch.Tensor,
    ) -> Symbol:
        slots, value_heads, key_dim, value_dim = states.shape
        mixed, gate, beta, decay = parts = (inputs.mixed, inputs.gate, inputs.beta, inputs.decay)
        check_delta(DeltaInputs(*(part.width for part in parts)), parameters, conv_states, states)
        require_equal("delta_net", "type", **dict(zip(("mixed", "gate", "beta", "decay"), (p.dtype for p in parts))))
        y = _fresh(gate.buffer.rows, gate.width, gate.dtype)
        self._note(Operation.DELTA_NET, {
            "rows": Number.ROWS, "num_slots": slots, "key_heads": parameters.num_key_heads, "value_heads": value_heads,
            "key_dim": key_dim, "value_dim": value_dim, "taps": parameters.conv.shape[1], "type": TYPES[mixed.dtype],
            "epsilon": parameters.eps, "starts": Number.STARTS, "slots": Number.STATE_SLOTS, "mixed": mixed,
            "beta": beta, "decay": decay, "gate": gate, "conv": parameters.taps, "decay_rate": parameters.decay_rate,
            "decay_bias": parameters.dt_bias, "scale": parameters.scale, "conv_states": conv_states, "states": states,
            "output": y,
        })  # fmt: skip
        return y

    def experts(
        self, x: Symbol, logits: Symbol, gate_up: Weight, down: Weight, experts_per_token: int, *, normalise: bool
    ) -> Symbol:
        raise NotImplementedError

    def silu_multiply(self, gate: Symbol, up: Symbol) -> Symbol:
        return self._pointwise(Pointwise.SILU_MULTIPLY, gate, up)

    def sigmoid_multiply(self, x: Symbol, gate: Symbol) -> Symbol:
        return self._pointwise(Pointwise.SIGMOID_MULTIPLY, x, gate)

    def add(self, x: Symbol, y: Symbol) -> Symbol:
        return self._pointwise(Pointwise.ADD, x, y)

    def _pointwise(self, kind: Pointwise, x: Symbol, y: Symbol) -> Symbol:
        require_equal("pointwise", "width", x=x.width, y=x.width if y.width == 1 else y.width)
        require_equal("pointwise", "type", x=x.dtype, y=y.dtype)
        output = _fresh(x.buffer.rows, x.width, x.dtype)
        run = min(x.run, x.run if y.width == 1 else y.run)
        self._note(Operation.POINTWISE, {
            "rows": Count(x.buffer.rows, x.width // run), "width": run, "y_width": min(run, y.width), "kind": kind,
            "type": TYPES[x.dtype], "x": x, "x_stride": x.stride_of(run), "y": y, "y_stride": y.stride_of(min(run, y.width)),
            "output": output, "output_stride": run,
        })  # fmt: skip
        return output

    def logit_rows(self, x: Symbol) -> Symbol:
        assert x.is_dense
        y = _fresh(Number.LOGITS, x.width, x.dtype)
        self._note(Operation.TAKE_ROWS, {
            "count": Number.LOGITS, "rows": x.buffer.rows, "width": x.width, "type": TYPES[x.dtype],
            "ids": Number.LOGIT_TOKENS, "x": x, "x_stride": x.width, "y": y, "y_stride": y.width,
        })  # fmt: skip
        return y

    def logits(self, x: Symbol, head: Weight) -> Symbol:
        """Written where the result is wanted; BF16 takes half the room, and is widened there."""
        matrix = matrices(head)[0]
        result = Buffer(Number.LOGITS, matrix.out * torch.float32.itemsize, is_result=True)
        parts = torch.float32.itemsize // x.dtype.itemsize
        self._multiply(x, matrix, Symbol(result, x.dtype, matrix.out, matrix.out, parts * matrix.out, (parts - 1) * matrix.out))
        y = Symbol(result, torch.float32, matrix.out, matrix.out, matrix.out)
        if x.dtype != y.dtype:
            self._note(Operation.WIDEN, {"rows": Number.LOGITS, "width": y.width, "y": y})
        return y

    def _note(self, operation: Operation, arguments: Arguments) -> None:
        self.instructions.append(Instruction(operation, [arguments]))


def matrices(weight: Weight) -> tuple[PackedMatrix, ...]:
    """The matrices of a packed weight: one, or one for each expert."""
    assert isinstance(weight, Packed), "programs multiply with packed weights only"
    return weight.matrices


def _fresh(rows: Number, width: int, dtype: torch.dtype) -> Symbol:
    return Symbol(Buffer(rows, width * dtype.itemsize), dtype, width, width, width)


def plan(instructions: Iterable[Instruction]) -> tuple[dict[Buffer, int], dict[Number, int]]:
    """A place (bytes per row) for every buffer, and how many bytes a row takes in all, for TOKENS and for LOGITS.

    Buffers whose spans of life overlap do not; each takes the first gap that is wide enough.
    """
    lives: dict[Buffer, tuple[int, int]] = {}
    for index, instruction in enumerate(instructions):
        for symbol in (each for each in instruction.symbols if not each.buffer.is_result):
            first, _ = lives.get(symbol.buffer, (index, index))
            lives[symbol.buffer] = first, index
    places: dict[Buffer, int] = {}
    totals = {Number.TOKENS: 0, Number.LOGITS: 0}
    for buffer, (first, _) in sorted(lives.items(), key=lambda item: item[1]):
        living = [each for each in places if each.rows == buffer.rows and lives[each][1] >= first]
        place = 0
        for other in sorted(living, key=places.__getitem__):
            if place + _room(buffer) <= places[other]:
                break
            place = max(place, places[other] + _room(other))
        places[buffer] = place
        totals[buffer.rows] = max(totals[buffer.rows], place + _room(buffer))
    return places, totals


def _room(buffer: Buffer) -> int:
    """Whole cache lines, so that every buffer begins at one, whatever the number of rows."""
    return -(-buffer.row_bytes // ALIGNMENT) * ALIGNMENT


class Program:
    """Instructions laid down for ``native``, with logits [L, ``vocabulary``] as their result."""

    def __init__(self, native: Native, instructions: list[Instruction]) -> None:
        self._native = native
        self._instructions = instructions  # and with them everything whose address was taken
        places, totals = plan(instructions)
        self._blanks: list[BlankStructure] = []
        self._arguments = [self._lay_down(each, places) for each in instructions]
        lines = [
            InstructionStructure(each.operation, len(each.calls), ctypes.addressof(arguments))
            for each, arguments in zip(instructions, self._arguments, strict=True)
        ]
        self._lines = (InstructionStructure * len(lines))(*lines)
        blanks = self._all_blanks = (BlankStructure * len(self._blanks))(*self._blanks)
        self._structure = ProgramStructure(
            ctypes.addressof(self._lines), len(lines), ctypes.addressof(blanks), len(blanks),
            totals[Number.TOKENS], totals[Number.LOGITS],
        )  # fmt: skip
        self._step = (ctypes.c_int64 * len(Number))()
        self._vocabulary = int(instructions[-1].calls[0]["width"])  # type: ignore[arg-type]

    def _lay_down(self, instruction: Instruction, places: dict[Buffer, int]) -> ctypes.Array[ctypes.Structure]:
        """The structures of an instruction; what is not known yet becomes a blank."""
        structure = STRUCTURES[instruction.operation]
        laid = (structure * len(instruction.calls))()
        for filled, arguments in zip(laid, instruction.calls, strict=True):
            for name, argument in arguments.items():
                if isinstance(argument, Number | Count | Symbol):
                    place = getattr(structure, name)
                    assert place.size == ctypes.sizeof(ctypes.c_int64)
                    self._blanks.append(_blank(ctypes.addressof(filled) + place.offset, argument, places))
                else:
                    setattr(filled, name, _known(argument))
        return laid

    def run(self, inputs: Inputs) -> torch.Tensor:
        """Logits [L, V] of a step, fp32."""
        rows = inputs.rows
        step = self._step
        tensors = {}
        logits = torch.empty(len(inputs.logit_tokens), self._vocabulary)
        step[1:3] = len(inputs.token_ids), len(inputs.logit_tokens)
        step[5:] = (
            len(rows.lengths), inputs.token_ids.data_ptr(), rows.starts.data_ptr(), rows.context_lengths.data_ptr(),
            rows.page_table.data_ptr(), rows.page_table.shape[1], rows.kv_slots.data_ptr(), rows.state_slots.data_ptr(),
            inputs.logit_tokens.data_ptr(), inputs.cos.data_ptr(), inputs.sin.data_ptr(), logits.data_ptr(),
        )  # fmt: skip
        status, failed = self._native.run(ctypes.addressof(self._structure), ctypes.addressof(step))
        if status == NO_MEMORY:
            raise MemoryError(f"a step of {len(inputs.token_ids)} tokens does not fit into memory")
        if status:
            name = self._instructions[failed].operation.name.lower()
            raise IndexError(f"{name}: the step names a row, page or slot that does not exist")
        return logits


def _known(argument: int | float | torch.Tensor | PackedMatrix) -> int | float:
    if isinstance(argument, torch.Tensor):
        return argument.data_ptr()
    return argument.address if isinstance(argument, PackedMatrix) else argument


def _blank(address: int, argument: Number | Count | Symbol, places: dict[Buffer, int]) -> BlankStructure:
    if isinstance(argument, Number):
        return BlankStructure(address, argument, Number.ZERO, 0, 0)
    if isinstance(argument, Count):
        return BlankStructure(address, Number.ZERO, argument.number, argument.factor, 0)
    buffer, offset = argument.buffer, argument.offset * argument.dtype.itemsize
    return BlankStructure(address, buffer.base, buffer.rows, places.get(buffer, 0), offset)
