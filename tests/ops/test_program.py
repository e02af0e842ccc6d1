"""Programs against the same description carried out at once: bit for bit where the arithmetic is the same.

A value gets into a program as the rows of an embedding table, and out of it through a head that is the identity, which
changes no finite number.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwench.config import RopeConfig
from qwench.ops import rotary
from qwench.ops.arrays import FLOAT32, to_torch
from qwench.ops.eager import Eager
from qwench.ops.instructions import Operation
from qwench.ops.kernels import NativeKernels, TorchKernels
from qwench.ops.linear import Dense, Weight
from qwench.ops.native import Native
from qwench.ops.operations import Description, Inputs, Operations, Value
from qwench.ops.program import Buffer, Instruction, Number, Symbol, plan
from qwench.ops.rows import Rows
from tests.ops.stored import stored
from tests.ops.test_native import DTYPES, normal, sets
from tests.tolerances import tolerance

Combine = Callable[[Any, list[Any]], Any]  # of operations and values: what a description is made of
HALF = 8


@pytest.fixture(params=sets())
def isa(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name.startswith("no native"):
        pytest.skip(name)
    return name


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param  # type: ignore[no-any-return]


def step_of(tokens: int, logit_tokens: list[int] | None = None) -> Inputs:
    """Every token its own row; token i is row i of every table."""
    places = np.arange(tokens)
    rows = Rows((1,) * tokens, (1,) * tokens, places[:, None].copy(), 1, places, places)
    rope = RopeConfig(1e4, 2 * HALF, None, None)
    positions = np.random.default_rng(5).integers(0, 3000, (3, tokens))
    cos, sin = rotary.cos_sin(positions, rotary.frequencies(rope), rotary.axes(rope), 1.0)
    return Inputs(places, rows, places if logit_tokens is None else np.array(logit_tokens, np.int64), cos, sin)


class Case:
    """``combine`` of the rows of ``tables`` [T, .], by a program and by torch's references."""

    def __init__(self, combine: Combine, tables: list[torch.Tensor], isa: str, threads: int = 1) -> None:
        self.combine, self.tables = combine, tables
        self.kernels = NativeKernels(Native(isa, threads))

    def describe(self, weights: list[Weight], head: Weight) -> Description:
        def description(ops: Operations[Value], cache: object) -> Value:
            x: Value = self.combine(ops, [ops.embed(table) for table in weights])
            return ops.logits(ops.logit_rows(x), head)

        return description

    def run(self, width: int, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """What the program gives, and what torch gives; ``width`` of the result."""
        identity = torch.eye(width, dtype=self.tables[0].dtype)
        named = {str(index): table for index, table in enumerate([*self.tables, identity])}
        *packed, head = stored(self.kernels, named).values()
        found = to_torch(self.kernels.forward(self.describe(packed, head), inputs, SimpleNamespace()))
        *dense, dense_head = (Dense(table) for table in [*self.tables, identity])
        expected = TorchKernels().forward(self.describe(list(dense), dense_head), inputs, SimpleNamespace())
        return found, expected


def every_bf16() -> torch.Tensor:
    """All finite numbers of BF16, [1020, 64]."""
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    return numbers[numbers.isfinite()].view(-1, 64)


@pytest.mark.parametrize("name", ["silu_multiply", "sigmoid_multiply"])
def test_gates_of_every_bf16_number_are_rounded_as_torch_rounds_them(isa: str, name: str) -> None:
    gate = every_bf16()
    ones = torch.ones_like(gate)
    tables = [gate, ones] if name == "silu_multiply" else [ones, gate]
    found, expected = Case(lambda ops, x: getattr(ops, name)(*x), tables, isa).run(64, step_of(len(gate)))
    assert (found - expected).abs().max() < 1e-37  # some instruction sets take the smallest numbers for zero


@pytest.mark.parametrize("width", [1, 15, 64, 100])
@pytest.mark.parametrize("name", ["add", "silu_multiply", "sigmoid_multiply"])
def test_pointwise(isa: str, dtype: torch.dtype, name: str, width: int) -> None:
    tables = [normal(70, width, seed=seed, dtype=dtype) for seed in (1, 2)]
    case = Case(lambda ops, x: getattr(ops, name)(*x), tables, isa, threads=3)
    found, expected = case.run(width, step_of(70))
    if dtype == torch.bfloat16 or name == "add":
        assert torch.equal(found, expected)
    else:
        assert (found - expected).abs().max() < tolerance("gates", backend="native")


def test_one_gate_for_a_whole_row(isa: str) -> None:
    tables = [normal(9, 40, dtype=torch.bfloat16), normal(9, 1, seed=1, dtype=torch.bfloat16)]
    found, expected = Case(lambda ops, x: ops.sigmoid_multiply(*x), tables, isa).run(40, step_of(9))
    assert torch.equal(found, expected)


def test_halves_of_heads_and_rotation(isa: str, dtype: torch.dtype) -> None:
    """Three heads of a query and its gate side by side; a head is wider than what is turned."""

    def combine(ops: Operations[Value], x: list[Value]) -> Value:
        query, gate = ops.halve_heads(x[0], 20)
        normed = ops.rms_norm(query, scale, 1e-6, zero_centred=True)
        return ops.add(ops.sigmoid_multiply(ops.rotate(normed, 20), gate), gate)

    scale = normal(20, seed=3, dtype=dtype)
    found, expected = Case(combine, [normal(33, 120, dtype=dtype)], isa, threads=2).run(60, step_of(33))
    assert (found - expected).abs().max() < tolerance("norm", str(dtype).removeprefix("torch."), "native")


def test_rotation_alone_is_exact(isa: str, dtype: torch.dtype) -> None:
    case = Case(lambda ops, x: ops.rotate(x[0], 20), [normal(300, 60, dtype=dtype)], isa, threads=2)
    found, expected = case.run(60, step_of(300))
    assert torch.equal(found, expected)


def test_only_the_rows_asked_for_come_back(isa: str, dtype: torch.dtype) -> None:
    case = Case(lambda ops, x: ops.add(*x), [normal(6, 5, dtype=dtype), normal(6, 5, seed=1, dtype=dtype)], isa)
    for asked in ([5, 0, 0], [3], []):
        found, expected = case.run(5, step_of(6, asked))
        assert found.shape == (len(asked), 5)
        assert torch.equal(found, expected)


def test_layers_over_one_input_are_one_instruction_and_a_sum_is_part_of_its_layer(isa: str) -> None:
    first, second = normal(24, 30, seed=4) / 6, normal(24, 24, seed=5) / 5
    weights: dict[bool, list[Weight]] = {}

    def combine(ops: Operations[Value], x: list[Value]) -> Value:
        one, two = weights[isinstance(ops, Eager)]
        gate, up = ops.linear(x[0], one), ops.linear(x[0], one)
        return ops.add(gate, ops.linear(ops.add(gate, up), two))

    case = Case(combine, [normal(7, 30)], isa)
    weights[True] = [Dense(first), Dense(second)]
    weights[False] = list(stored(case.kernels, {"first": first, "second": second}).values())
    found, expected = case.run(24, step_of(7))
    assert (found - expected).abs().max() < tolerance("linear", backend="native")
    program = case.kernels._programs[False]
    lines = [(each.operation, len(each.calls)) for each in program._instructions]
    assert lines == [
        (Operation.UNPACK_ROWS, 1),
        (Operation.LINEAR, 2),
        (Operation.POINTWISE, 1),
        (Operation.LINEAR, 1),
        (Operation.TAKE_ROWS, 1),
        (Operation.LINEAR, 1),
    ]


def test_what_does_not_exist_or_does_not_fit_is_named(isa: str) -> None:
    case = Case(lambda ops, x: ops.add(*x), [normal(6, 5), normal(6, 5)], isa)
    with pytest.raises(IndexError, match="unpack_rows: the step names a row"):
        case.run(5, step_of(7))
    with pytest.raises(IndexError, match="take_rows"):
        case.run(5, step_of(6, [6]))
    inputs = step_of(6)
    with pytest.raises(ValueError, match="step: tokens is 5 in token_ids but 6 in lengths"):
        case.run(5, Inputs(inputs.token_ids[:5], inputs.rows, inputs.logit_tokens, inputs.cos, inputs.sin))
    with pytest.raises(ValueError, match="pointwise: width is 5 in x but 6 in y"):
        Case(lambda ops, x: ops.add(*x), [normal(6, 5), normal(6, 6)], isa).run(5, inputs)


def test_a_step_too_large_for_memory_is_an_error_and_the_next_one_runs(isa: str) -> None:
    case = Case(lambda ops, x: ops.add(*x), [normal(6, 5), normal(6, 5)], isa)
    found, _ = case.run(5, step_of(6))
    program = case.kernels._programs[False]
    small, program._structure.token_bytes = program._structure.token_bytes, 2**55
    with pytest.raises(MemoryError, match="a step of 6 tokens does not fit into memory"):
        program.run(step_of(6))
    program._structure.token_bytes = small
    assert torch.equal(to_torch(program.run(step_of(6))), found)


Lives = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 400), st.booleans()), max_size=12)


@given(Lives)
@settings(deadline=None)
def test_buffers_that_live_at_the_same_time_lie_apart(lives: list[tuple[int, int, int, bool]]) -> None:
    spans = {}
    calls: list[dict[str, object]] = [{} for _ in range(10)]
    for index, (born, dead, size, logits) in enumerate(lives):
        buffer = Buffer(Number.LOGITS if logits else Number.TOKENS, size)
        spans[buffer] = min(born, dead), max(born, dead)
        for moment in spans[buffer]:
            calls[moment][str(index)] = Symbol(buffer, FLOAT32, 1, 1, 1)
    places, room = plan([Instruction(Operation.POINTWISE, [call]) for call in calls])
    assert places.keys() == spans.keys()
    for buffer, place in places.items():
        assert place % 64 == 0
        assert place + buffer.row_bytes <= room[buffer.rows]
    for (one, first), (two, second) in itertools.combinations(spans.items(), 2):
        apart = first[1] < second[0] or second[1] < first[0]
        if one.rows == two.rows and not apart:
            low, high = sorted((one, two), key=places.__getitem__)
            assert places[low] + low.row_bytes <= places[high]
