"""A forward pass as one native call: a description is recorded once over symbols, then replayed for every step.

Recorder notes each operation as an instruction whose arguments are known but for what differs between steps. Program
gives the symbols places in one scratch memory, lays the instructions down and runs them (csrc/program.cpp). It knows
no model; what the operations compute is said by their references.
"""

from __future__ import annotations

import ctypes
import enum
import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from qwench.config import CACHE_TILE
from qwench.ops.arrays import FLOAT32, INT8, INT64, Array, DType, Host, address_of, dtype_of, is_dense
from qwench.ops.attention import kept_width
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
from qwench.ops.loading import ALIGNMENT
from qwench.ops.native import (
    ATTENTION_WIDTH,
    DELTA_WIDTH,
    TYPES,
    Native,
    PackedExperts,
    PackedMatrix,
    require_equal,
    type_of,
    weight_address,
)
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
    SAVES = 13
    SAVE_TOKENS = 14
    SAVE_SLOTS = 15
    LOGIT_TOKENS = 16
    COS = 17
    SIN = 18
    RESULT = 19
    EMBEDDED = 20
    FEW_LOGITS = 21


@dataclass(frozen=True)
class Count:
    """``factor`` for each of the step's ``number``: rows of a norm over heads."""

    number: Number
    factor: int


@dataclass(frozen=True, eq=False)
class Buffer:
    """Memory of ``row_bytes`` for each of the step's ``rows``, TOKENS or LOGITS: in the scratch, or where the step says
    that ``outside`` lies."""

    rows: Number
    row_bytes: int
    outside: Number | None = None

    @property
    def base(self) -> Number:
        if self.outside is not None:
            return self.outside
        return Number.TOKEN_SCRATCH if self.rows is Number.TOKENS else Number.LOGIT_SCRATCH


@dataclass(frozen=True, eq=False)
class Symbol:
    """[n, width] in a buffer: runs of ``run`` elements, ``stride`` elements from each to the next, from ``offset``."""

    buffer: Buffer
    dtype: DType
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


Argument = int | float | Array | PackedMatrix | PackedExperts | Number | Count | Symbol
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
    """Operations noted down. ``half``: rotary angles per token; ``page_size`` of the cache.

    ``embedded``: the step brings what its tokens begin as.
    """

    page_size: int
    half: int
    embedded: bool = False
    instructions: list[Instruction] = field(default_factory=list)
    _linears: dict[Symbol, Instruction] = field(default_factory=dict)  # by what they read

    def embed(self, table: Weight) -> Symbol:
        assert isinstance(table, Packed), "programs read packed tables only"
        (matrix,) = table.matrices
        if self.embedded:
            return _fresh(Number.TOKENS, matrix.width, table.dtype, Number.EMBEDDED)
        y = _fresh(Number.TOKENS, matrix.width, table.dtype)
        self._note(Operation.UNPACK_ROWS, {
            "weight": matrix, "count": Number.TOKENS, "rows": Number.TOKEN_IDS, "type": TYPES[y.dtype],
            "target": y, "target_stride": y.stride,
        })  # fmt: skip
        return y

    def linear(self, x: Symbol, weight: Weight) -> Symbol:
        (matrix,) = _matrices(weight)
        y = _fresh(x.buffer.rows, matrix.out, x.dtype)
        self._multiply(x, matrix, y)
        return y

    def _multiply(self, x: Symbol, matrix: PackedMatrix, y: Symbol) -> None:
        """All layers over one input become one job where the first of them stands: they depend on nothing else."""
        require_equal("linear", "in", x=x.width, weight=matrix.width)
        if x not in self._linears:
            self._linears[x] = self._note(Operation.LINEAR)
        self._linears[x].calls.append({
            "weight": matrix, "tokens": x.buffer.rows, "type": TYPES[x.dtype], "x": x, "x_stride": x.stride_of(x.width),
            "y": y, "y_stride": y.stride,
        })  # fmt: skip

    def rms_norm(self, x: Symbol, weight: Array, eps: float, *, zero_centred: bool) -> Symbol:
        run = len(weight)
        require_equal("rms_norm", "width beyond whole heads", x=x.width % run, needed=0)
        assert dtype_of(weight) == x.dtype
        assert is_dense(weight)
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

    def attention(self, query: Symbol, key: Symbol, value: Symbol, keys: Array, values: Array) -> Symbol:
        slots, kv_heads, width = keys.shape
        head_dim, coded = key.width // kv_heads, dtype_of(keys) == INT8
        require_equal("attention", "kv_heads * head_dim", key=key.width, value=value.width, keys=kv_heads * head_dim)
        require_equal("attention", "width of a kept head", key=kept_width(head_dim, dtype_of(keys)), keys=width)
        require_equal("attention", "width beyond whole groups", query=query.width % key.width, needed=0)
        code = type_of("attention", query=query, key=key, value=value, **({} if coded else {"keys": keys}))
        assert (keys.shape, keys.dtype) == (values.shape, values.dtype)
        assert self.page_size % CACHE_TILE == 0
        assert is_dense(keys)
        assert is_dense(values)
        assert all(each.is_dense for each in (query, key, value))
        assert head_dim <= ATTENTION_WIDTH, f"attention: heads are at most {ATTENTION_WIDTH} wide"
        y = _fresh(query.buffer.rows, query.width, query.dtype)
        self._note(Operation.ATTENTION, {
            "rows": Number.ROWS, "query_heads": query.width // head_dim, "kv_heads": kv_heads, "head_dim": head_dim,
            "page_size": self.page_size, "num_pages": slots // self.page_size, "type": code, "coded": coded,
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
        conv_states: Array,
        states: Array,
    ) -> Symbol:
        slots, value_heads, key_dim, value_dim = states.shape
        mixed, gate, beta, decay = inputs.mixed, inputs.gate, inputs.beta, inputs.decay
        widths = DeltaInputs(mixed.width, gate.width, beta.width, decay.width)
        check_delta(widths, parameters, conv_states, states)
        y = _fresh(gate.buffer.rows, gate.width, gate.dtype)
        self._note(Operation.DELTA_NET, {
            "rows": Number.ROWS, "num_slots": slots, "key_heads": parameters.num_key_heads, "value_heads": value_heads,
            "key_dim": key_dim, "value_dim": value_dim, "taps": parameters.conv.shape[1],
            "tiled": parameters.tiled, "saves": Number.SAVES, "save_tokens": Number.SAVE_TOKENS,
            "save_slots": Number.SAVE_SLOTS,
            "type": type_of("delta_net", mixed=mixed, gate=gate, beta=beta, decay=decay, conv_states=conv_states),
            "epsilon": parameters.eps, "starts": Number.STARTS, "slots": Number.STATE_SLOTS, "mixed": mixed,
            "beta": beta, "decay": decay, "gate": gate, "conv": parameters.taps, "decay_rate": parameters.decay_rate,
            "decay_bias": parameters.dt_bias, "scale": parameters.scale, "conv_states": conv_states, "states": states,
            "output": y,
        })  # fmt: skip
        return y

    def experts(
        self, x: Symbol, logits: Symbol, gate_up: Weight, down: Weight, experts_per_token: int, *, normalise: bool
    ) -> Symbol:
        assert isinstance(gate_up, Packed)
        assert isinstance(down, Packed)
        ups, downs = gate_up.experts, down.experts
        hidden, width = downs.matrices[0].out, downs.matrices[0].width
        require_equal("experts", "experts", logits=logits.width, gate_up=len(ups.matrices), down=len(downs.matrices))
        require_equal("experts", "hidden", x=x.width, gate_up=ups.matrices[0].width, down=hidden)
        require_equal("experts", "2 * width", gate_up=ups.matrices[0].out, down=2 * width)
        assert 0 < experts_per_token <= logits.width
        y = _fresh(x.buffer.rows, hidden, x.dtype)
        self._note(Operation.EXPERTS, {
            "tokens": x.buffer.rows, "hidden": hidden, "width": width, "experts": logits.width,
            "chosen": experts_per_token, "normalise": normalise, "type": type_of("experts", x=x, logits=logits),
            "gate_up": ups, "down": downs, "x": x, "x_stride": x.stride_of(x.width),
            "logits": logits, "logits_stride": logits.stride_of(logits.width), "y": y, "y_stride": y.stride,
        })  # fmt: skip
        return y

    def silu_multiply(self, gate: Symbol, up: Symbol) -> Symbol:
        return self._pointwise(Pointwise.SILU_MULTIPLY, gate, up)

    def sigmoid_multiply(self, x: Symbol, gate: Symbol) -> Symbol:
        return self._pointwise(Pointwise.SIGMOID_MULTIPLY, x, gate)

    def add(self, x: Symbol, y: Symbol) -> Symbol:
        """Where y has just come out of a linear layer, the layer adds x itself."""
        last = self.instructions[-1]
        if last.operation is Operation.LINEAR and len(last.calls) == 1 and last.calls[0]["y"] is y:
            last.calls[0] |= {"residual": x, "residual_stride": x.stride_of(x.width)}
            return replace(y)
        return self._pointwise(Pointwise.ADD, x, y)

    def _pointwise(self, kind: Pointwise, x: Symbol, y: Symbol) -> Symbol:
        if y.width != 1:
            require_equal("pointwise", "width", x=x.width, y=y.width)
        output = _fresh(x.buffer.rows, x.width, x.dtype)
        run = x.run if y.width == 1 else min(x.run, y.run)
        other = min(run, y.width)
        self._note(Operation.POINTWISE, {
            "rows": Count(x.buffer.rows, x.width // run), "width": run, "y_width": other, "kind": kind,
            "type": type_of("pointwise", x=x, y=y), "x": x, "x_stride": x.stride_of(run),
            "y": y, "y_stride": y.stride_of(other),
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
        """Written where the result is wanted; BF16 into the second halves of its rows, to be widened there."""
        (matrix,) = _matrices(head)
        result = Buffer(Number.LOGITS, matrix.out * FLOAT32.itemsize, Number.RESULT)
        y = Symbol(result, FLOAT32, matrix.out, matrix.out, matrix.out)
        narrow = x.dtype != y.dtype
        self._multiply(x, matrix, replace(y, dtype=x.dtype, stride=2 * y.width, offset=y.width) if narrow else y)
        self._linears[x].calls[-1]["few"] = Number.FEW_LOGITS
        if narrow:
            self._note(Operation.WIDEN, {"rows": Number.LOGITS, "width": y.width, "y": y})
        return y

    def _note(self, operation: Operation, *calls: Arguments) -> Instruction:
        self.instructions.append(Instruction(operation, list(calls)))
        return self.instructions[-1]


def _matrices(weight: Weight) -> tuple[PackedMatrix, ...]:
    """The matrices of a packed weight: one, or one for each expert."""
    assert isinstance(weight, Packed), "programs multiply with packed weights only"
    return weight.matrices


def _fresh(rows: Number, width: int, dtype: DType, outside: Number | None = None) -> Symbol:
    return Symbol(Buffer(rows, width * dtype.itemsize, outside), dtype, width, width, width)


def check_delta(widths: DeltaInputs[int], parameters: DeltaParameters, conv_states: Array, states: Array) -> None:
    """Every dimension that two arguments of delta_net share. Raises ValueError naming the one that differs."""
    same = functools.partial(require_equal, "delta_net")
    slots, value_heads, key_dim, value_dim = states.shape
    channels, taps = parameters.conv.shape
    values = value_heads * value_dim
    heads = 2 * parameters.num_key_heads * key_dim + values
    same("key_dim", parameters=parameters.key_dim, states=key_dim)
    same("channels", heads=heads, mixed=widths.mixed, conv=channels, conv_states=conv_states.shape[2])
    same("taps - 1", conv=taps - 1, conv_states=conv_states.shape[1])
    same("value_heads * value_dim", states=values, gate=widths.gate)
    vectors = {"a_log": len(parameters.a_log), "dt_bias": len(parameters.dt_bias)}
    same("value_heads", states=value_heads, beta=widths.beta, decay=widths.decay, **vectors)
    same("value_dim", states=value_dim, norm=len(parameters.norm))
    same("slots", states=slots, conv_states=len(conv_states))
    same("value heads beyond whole groups", value_heads=value_heads % parameters.num_key_heads, needed=0)
    assert max(key_dim, value_dim) <= DELTA_WIDTH, f"delta_net: heads are at most {DELTA_WIDTH} wide"
    assert is_dense(conv_states)
    assert is_dense(states)
    assert dtype_of(states) == dtype_of(parameters.dt_bias) == FLOAT32


def plan(instructions: Iterable[Instruction]) -> tuple[dict[Buffer, int], dict[Number, int]]:
    """A place (bytes per row) for every buffer, and how many bytes a row takes in all, for TOKENS and for LOGITS.

    Buffers whose spans of life overlap do not; each takes the first gap that is wide enough.
    """
    lives: dict[Buffer, tuple[int, int]] = {}
    for index, instruction in enumerate(instructions):
        for symbol in (each for each in instruction.symbols if each.buffer.outside is None):
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
    """A description laid down for ``native``. Serves one caller at a time: a run fills in the blanks."""

    def __init__(self, native: Native, instructions: list[Instruction], vocabulary: int) -> None:
        self._native = native
        self._vocabulary = vocabulary
        self._instructions = instructions  # and with them everything whose address was taken
        places, room = plan(instructions)
        blanks: list[BlankStructure] = []
        self._arguments = [_lay_down(each, places, blanks) for each in instructions]
        self._lines = (InstructionStructure * len(instructions))(
            *(
                InstructionStructure(each.operation, len(each.calls), ctypes.addressof(arguments))
                for each, arguments in zip(instructions, self._arguments, strict=True)
            )
        )
        self._blanks = (BlankStructure * len(blanks))(*blanks)
        self._structure = ProgramStructure(
            ctypes.addressof(self._lines), len(self._lines), ctypes.addressof(self._blanks), len(self._blanks),
            room[Number.TOKENS], room[Number.LOGITS],
        )  # fmt: skip
        self._step = (ctypes.c_int64 * len(Number))()

    def run(self, inputs: Inputs) -> Host:
        """Logits [L, V] of a step, fp32. Raises ValueError naming a dimension in which the step's arrays differ."""
        _check(inputs)
        rows = inputs.rows
        logits = np.empty((len(inputs.logit_tokens), self._vocabulary), FLOAT32)
        self._step[Number.TOKENS], self._step[Number.LOGITS] = len(inputs.token_ids), len(logits)
        self._step[Number.ROWS :] = [
            len(rows.lengths), *map(address_of, (inputs.token_ids, rows.starts, rows.context_lengths, rows.page_table)),
            rows.page_table.shape[1], *map(address_of, (rows.kv_slots, rows.state_slots)),
            len(rows.saves), *map(address_of, (rows.save_tokens, rows.save_slots, inputs.logit_tokens)),
            *map(address_of, (inputs.cos, inputs.sin, logits)),
            *(0 if each is None else address_of(each) for each in (inputs.embedded, inputs.few_logits)),
        ]  # fmt: skip
        status, failed = self._native.run(ctypes.addressof(self._structure), ctypes.addressof(self._step))
        if status == NO_MEMORY:
            raise MemoryError(f"a step of {len(inputs.token_ids)} tokens does not fit into memory")
        if status:
            name = self._instructions[failed].operation.name.lower()
            raise IndexError(f"{name}: the step names a row, a page or a slot that does not exist")
        return logits


def _check(inputs: Inputs) -> None:
    rows = inputs.rows
    angles = {"cos": len(inputs.cos), "sin": len(inputs.sin)}
    tokens = {"token_ids": len(inputs.token_ids), "lengths": sum(rows.lengths), "kv_slots": len(rows.kv_slots)}
    if inputs.embedded is not None:
        tokens["embedded"] = len(inputs.embedded)
        assert inputs.embedded.is_contiguous()
    if inputs.few_logits is not None:
        assert dtype_of(inputs.few_logits) == FLOAT32
        assert inputs.few_logits.shape == (2,)
        assert is_dense(inputs.few_logits)
    require_equal("step", "tokens", **tokens, **angles)
    slots = {"page_table": len(rows.page_table), "state_slots": len(rows.state_slots)}
    require_equal("step", "rows", lengths=len(rows.lengths), contexts=len(rows.contexts), **slots)
    for array in (inputs.token_ids, inputs.logit_tokens, rows.page_table, rows.kv_slots, rows.state_slots):
        assert dtype_of(array) == INT64
        assert is_dense(array)
    for array in (inputs.cos, inputs.sin):
        assert dtype_of(array) == FLOAT32
        assert is_dense(array)


def _lay_down(
    instruction: Instruction, places: Mapping[Buffer, int], blanks: list[BlankStructure]
) -> ctypes.Array[ctypes.Structure]:
    """An instruction's structures; what is not known before a step becomes one of ``blanks``."""
    kind = STRUCTURES[instruction.operation]
    structures = (kind * len(instruction.calls))()
    for structure, arguments in zip(structures, instruction.calls, strict=True):
        for name, argument in arguments.items():
            if isinstance(argument, Number | Count | Symbol):
                place = getattr(kind, name)
                assert place.size == ctypes.sizeof(ctypes.c_int64), f"{name} is too small for a number of a step"
                blanks.append(_blank(ctypes.addressof(structure) + place.offset, argument, places))
            elif isinstance(argument, int | float):
                setattr(structure, name, argument)
            elif isinstance(argument, PackedMatrix):
                setattr(structure, name, weight_address(argument))
            elif isinstance(argument, PackedExperts):
                setattr(structure, name, ctypes.addressof(argument.weights))
            else:
                setattr(structure, name, address_of(argument))
    return structures


def _blank(address: int, argument: Number | Count | Symbol, places: Mapping[Buffer, int]) -> BlankStructure:
    if isinstance(argument, Number):
        return BlankStructure(address, argument, Number.ZERO, 0, 0)
    if isinstance(argument, Count):
        return BlankStructure(address, Number.ZERO, argument.number, argument.factor, 0)
    buffer, offset = argument.buffer, argument.offset * argument.dtype.itemsize
    return BlankStructure(address, buffer.base, buffer.rows, places.get(buffer, 0), offset)
