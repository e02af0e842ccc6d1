"""The native kernels against torch's references: every instruction set this machine runs, odd sizes, strides.

And the law that makes batching exact: a result depends neither on the number of threads nor on its company, to the bit.
"""

from __future__ import annotations

import ctypes
import dataclasses
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from qwench.config import CACHE_TILE
from qwench.ops import choosing, instructions, loading, program, weight_types
from qwench.ops import native as binding
from qwench.ops.delta_net import DeltaInputs, DeltaParameters, delta_net
from qwench.ops.linear import Dense, Packed, embed, expert_mlp, linear
from qwench.ops.loading import Arena
from qwench.ops.native import Native
from qwench.ops.norm import rms_norm
from qwench.ops.rows import Rows
from qwench.ops.weight_types import SUPER_BLOCK
from tests.ops.calls import NativeCalls
from tests.ops.stored import stored
from tests.tolerances import tolerance

HEADER = (Path(__file__).parents[2] / "csrc" / "include" / "qwench.h").read_text(encoding="utf-8")
DTYPES = (torch.float32, torch.bfloat16)


def sets() -> list[str]:
    try:
        return binding.instruction_sets()
    except OSError as error:
        return [f"no native library: {error}"]


@pytest.fixture(params=sets())
def isa(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name.startswith("no native"):
        pytest.skip(name)
    return name


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    return request.param  # type: ignore[no-any-return]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed(isa: str, weight: torch.Tensor, threads: int = 1) -> Packed:
    found = stored(NativeCalls(Native(isa, threads)), {"weight": weight})["weight"]
    assert isinstance(found, Packed)
    return found


def bound(operation: str, dtype: torch.dtype) -> float:
    return tolerance(operation, str(dtype).removeprefix("torch."), "native")


def far(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).abs().max())


@pytest.mark.parametrize(("out", "width"), [(1, 1), (5, 3), (16, 32), (17, 33), (64, 64), (130, 47), (200, 96)])
@pytest.mark.parametrize("tokens", [1, 2, 7, 16, 17, 33, 200])
def test_linear(isa: str, dtype: torch.dtype, out: int, width: int, tokens: int) -> None:
    x, weight = normal(tokens, width, dtype=dtype), normal(out, width, seed=1, dtype=dtype) / width**0.5
    expected = x.double() @ weight.double().T
    found = linear(x, packed(isa, weight))
    assert found.dtype == dtype
    assert far(found, expected) < bound("linear", dtype)
    assert far(linear(x, Dense(weight)), expected) < bound("linear", dtype)  # what it replaces is no better


def test_linear_on_rows_that_lie_apart(isa: str, dtype: torch.dtype) -> None:
    wide, weight = normal(9, 80, dtype=dtype), normal(70, 40, seed=1, dtype=dtype)
    matrix = packed(isa, weight)
    assert torch.equal(linear(wide[:, 13:53], matrix), linear(wide[:, 13:53].contiguous(), matrix))
    assert torch.equal(linear(wide.T[:40].T, matrix), linear(wide[:, :40].contiguous(), matrix))
    assert linear(wide[:0, :40], matrix).shape == (0, 70)


def test_a_row_alone_equals_the_row_in_any_company_and_on_any_number_of_threads(isa: str, dtype: torch.dtype) -> None:
    x, weight = normal(205, 96, dtype=dtype), normal(150, 96, seed=1, dtype=dtype)
    one, three = packed(isa, weight.clone()), packed(isa, weight.clone(), threads=3)
    together = linear(x, one)
    assert torch.equal(linear(x, three), together)
    for count in (1, 2, 3, 4, 5, 6, 7, 8, 13, 16, 17, 31, 100):
        assert torch.equal(linear(x[3 : 3 + count], one), together[3 : 3 + count]), count


def test_not_a_number_stays_in_its_row(isa: str, dtype: torch.dtype) -> None:
    x, weight = normal(20, 33, dtype=dtype), normal(33, 33, seed=1, dtype=dtype)
    expected = linear(x, packed(isa, weight.clone()))
    x[7] = torch.nan
    found = linear(x, packed(isa, weight))
    assert found[7].isnan().all()
    kept = [token for token in range(20) if token != 7]
    assert torch.equal(found[kept], expected[kept])


def test_embedding_rows_come_back_as_they_were(isa: str, dtype: torch.dtype) -> None:
    table = normal(130, 37, dtype=dtype)
    ids = torch.tensor([0, 129, 64, 63, 128, 5, 5])
    matrix = packed(isa, table.clone())
    assert torch.equal(embed(ids, matrix), table[ids])
    for wrong in (-1, 130):
        with pytest.raises(IndexError, match="130"):
            embed(torch.tensor([0, wrong]), matrix)


def test_experts(isa: str, dtype: torch.dtype) -> None:
    gate_up, down = normal(4, 10, 12, seed=2, dtype=dtype) * 0.3, normal(4, 12, 5, seed=3, dtype=dtype) * 0.3
    x, weights = normal(7, 12, dtype=dtype), torch.rand(7, 2)
    experts = torch.tensor([[0, 3], [1, 2], [3, 1], [0, 1], [2, 3], [1, 0], [3, 2]])
    expected = expert_mlp(x, weights, experts, Dense(gate_up), Dense(down))
    found = expert_mlp(x, weights, experts, packed(isa, gate_up), packed(isa, down))
    assert far(found, expected) < bound("experts", dtype)


@pytest.mark.parametrize("zero_centred", [True, False])
@pytest.mark.parametrize("width", [1, 15, 16, 100, 256])
def test_rms_norm(isa: str, dtype: torch.dtype, zero_centred: bool, width: int) -> None:
    kernels = NativeCalls(Native(isa, 2))
    both, weight = normal(5, 3, 2 * width, dtype=dtype), normal(width, seed=1, dtype=dtype)
    for x in (both[..., :width], both[..., width:].contiguous()):
        expected = rms_norm(x, weight, 1e-6, zero_centred=zero_centred)
        assert far(kernels.rms_norm(x, weight, 1e-6, zero_centred=zero_centred), expected) < bound("norm", dtype)


def delta_case(
    dtype: torch.dtype, heads: tuple[int, int], dims: tuple[int, int], tokens: int
) -> tuple[DeltaInputs[torch.Tensor], DeltaParameters, torch.Tensor, torch.Tensor]:
    (key_heads, value_heads), (key_dim, value_dim) = heads, dims
    channels = 2 * key_heads * key_dim + value_heads * value_dim
    inputs = DeltaInputs(
        normal(tokens, channels, seed=1, dtype=dtype),
        normal(tokens, value_heads * value_dim, seed=2, dtype=dtype),
        normal(tokens, value_heads, seed=3, dtype=dtype),
        normal(tokens, value_heads, seed=4, dtype=dtype),
    )
    parameters = DeltaParameters(
        normal(channels, 4, seed=5, dtype=dtype),
        normal(value_heads, seed=6) * 0.5,
        normal(value_heads, seed=7),
        normal(value_dim, seed=8, dtype=dtype),
        1e-6,
        key_heads,
        key_dim,
    )
    conv_states = normal(5, 3, channels, seed=9, dtype=dtype)
    return inputs, parameters, conv_states, normal(5, value_heads, key_dim, value_dim, seed=10)


def delta_rows(lengths: tuple[int, ...], slots: list[int]) -> Rows:
    empty = torch.zeros(0, dtype=torch.int64)
    return Rows(lengths, lengths, empty, 16, empty, torch.tensor(slots))


def checked_delta_net(
    isa: str,
    inputs: DeltaInputs[torch.Tensor],
    parameters: DeltaParameters,
    conv_states: torch.Tensor,
    states: torch.Tensor,
    rows: Rows,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The native output and states, held to the reference, which moves ``conv_states`` and ``states`` on."""
    dtype = inputs.mixed.dtype
    found_conv, found_states = conv_states.clone(), states.clone()
    expected = delta_net(inputs, parameters, conv_states, states, rows)
    found = NativeCalls(Native(isa, 1)).delta_net(inputs, parameters, found_conv, found_states, rows)
    assert far(found, expected) < bound("delta_net", dtype)
    assert torch.equal(found_conv, conv_states)
    assert far(found_states, states) < bound("delta_state", dtype)
    return found, found_states


@pytest.mark.parametrize("dims", [(16, 24), (128, 128), (5, 7), (64, 256)])
@pytest.mark.parametrize("heads", [(2, 6), (2, 2)])
@pytest.mark.parametrize("lengths", [(1,), (1, 1, 1), (1, 2, 70)])
def test_delta_net(
    isa: str, dtype: torch.dtype, heads: tuple[int, int], dims: tuple[int, int], lengths: tuple[int, ...]
) -> None:
    inputs, parameters, conv_states, states = delta_case(dtype, heads, dims, sum(lengths))
    rows = delta_rows(lengths, [4, 0, 3][: len(lengths)])
    found, found_states = checked_delta_net(isa, inputs, parameters, conv_states, states, rows)
    again_conv, again_states = (part.clone() for part in delta_case(dtype, heads, dims, sum(lengths))[2:])
    again = NativeCalls(Native(isa, 3)).delta_net(inputs, parameters, again_conv, again_states, rows)
    assert torch.equal(again, found)
    assert torch.equal(again_states, found_states)


@pytest.mark.parametrize("taps", [1, 2, 5])
def test_delta_net_with_a_convolution_of_any_length(isa: str, dtype: torch.dtype, taps: int) -> None:
    inputs, parameters, _, states = delta_case(dtype, (2, 4), (16, 40), 37)
    channels = len(parameters.conv)
    parameters = dataclasses.replace(parameters, conv=normal(channels, taps, seed=5, dtype=dtype))
    conv_states, rows = normal(5, taps - 1, channels, seed=9, dtype=dtype), delta_rows((1, 36), [4, 0])
    checked_delta_net(isa, inputs, parameters, conv_states, states, rows)


@pytest.mark.parametrize("cuts", [(1,) * 12, (2, 1, 9), (33, 64, 1), (40, 58)])
def test_any_cut_of_a_sequence_gives_the_same_bits(isa: str, dtype: torch.dtype, cuts: tuple[int, ...]) -> None:
    length = sum(cuts)
    inputs, parameters, conv_states, states = delta_case(dtype, (2, 4), (16, 24), length)
    whole_conv, whole_states = conv_states.clone(), states.clone()
    kernels = NativeCalls(Native(isa, 2))
    whole = kernels.delta_net(inputs, parameters, whole_conv, whole_states, delta_rows((length,), [1]))
    parts, first = [], 0
    for count in cuts:
        cut = slice(first, first + count)
        part = DeltaInputs(inputs.mixed[cut], inputs.gate[cut], inputs.beta[cut], inputs.decay[cut])
        parts.append(kernels.delta_net(part, parameters, conv_states, states, delta_rows((count,), [1])))
        first += count
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(conv_states, whole_conv)
    assert torch.equal(states, whole_states)


def test_states_are_saved_on_the_way_and_that_changes_nothing(isa: str, dtype: torch.dtype) -> None:
    inputs, parameters, conv_states, states = delta_case(dtype, (2, 4), (16, 24), 72)
    conv_states, states = (torch.cat((part, part[:1])) for part in (conv_states, states))
    start_conv, start_states = conv_states.clone(), states.clone()
    kernels = NativeCalls(Native(isa, 2))
    rows = delta_rows((1, 71), [1, 2])
    whole = kernels.delta_net(inputs, parameters, conv_states, states, rows)
    saving_conv, saving_states = start_conv.clone(), start_states.clone()
    saving = dataclasses.replace(rows, saves=((0, 4), (1, 0), (33, 3), (71, 5)))
    assert torch.equal(kernels.delta_net(inputs, parameters, saving_conv, saving_states, saving), whole)
    assert torch.equal(saving_conv[1:3], conv_states[1:3])
    assert torch.equal(saving_states[1:3], states[1:3])
    for (token, slot), row in zip(saving.saves, (1, 2, 2, 2), strict=True):
        cut_conv, cut_states, first = start_conv.clone(), start_states.clone(), row - 1
        part = slice(first, token + 1)
        piece = DeltaInputs(inputs.mixed[part], inputs.gate[part], inputs.beta[part], inputs.decay[part])
        kernels.delta_net(piece, parameters, cut_conv, cut_states, delta_rows((token + 1 - first,), [row]))
        assert torch.equal(saving_conv[slot], cut_conv[row])
        assert torch.equal(saving_states[slot], cut_states[row])
    expected_conv, expected_states = start_conv.clone(), start_states.clone()
    delta_net(inputs, parameters, expected_conv, expected_states, saving)
    assert torch.equal(expected_conv, saving_conv)
    assert far(saving_states, expected_states) < bound("delta_state", dtype)


@pytest.mark.parametrize("saves", [((3, 0),), ((-1, 0),), ((1, 5),), ((1, 0), (1, 4))])
def test_a_save_that_cannot_be_is_refused(saves: tuple[tuple[int, int], ...]) -> None:
    if sets()[0].startswith("no native"):
        pytest.skip(sets()[0])
    inputs, parameters, conv_states, states = delta_case(torch.float32, (2, 4), (16, 24), 3)
    rows = dataclasses.replace(delta_rows((3,), [1]), saves=saves)
    before = states.clone()
    with pytest.raises(IndexError):
        NativeCalls(Native(sets()[0], 1)).delta_net(inputs, parameters, conv_states, states, rows)
    assert torch.equal(states, before)


def test_a_mismatch_names_the_dimension_and_both_sizes() -> None:
    if sets()[0].startswith("no native"):
        pytest.skip(sets()[0])
    matrix = packed("scalar", normal(4, 6))
    with pytest.raises(ValueError, match="linear: in is 5 in x but 6 in weight"):
        linear(normal(2, 5), matrix)
    with pytest.raises(ValueError, match=r"linear: types are x float64"):
        linear(normal(2, 6).double(), matrix)
    inputs, parameters, conv_states, states = delta_case(torch.float32, (2, 2), (8, 8), 1)
    kernels, rows = NativeCalls(Native("scalar", 1)), delta_rows((1,), [0])
    with pytest.raises(
        ValueError, match="channels is 48 in heads but 48 in mixed but 48 in conv but 47 in conv_states"
    ):
        kernels.delta_net(inputs, parameters, conv_states[..., :47], states, rows)
    with pytest.raises(ValueError, match="types are"):
        kernels.delta_net(inputs, parameters, conv_states.bfloat16(), states, rows)
    for slot in (-1, 5):
        with pytest.raises(IndexError, match=f"slot of .{slot}. is not among the 5"):
            kernels.delta_net(inputs, parameters, conv_states, states, delta_rows((1,), [slot]))
    with pytest.raises(AssertionError, match="sized for less"):
        Arena(64).take(65)


def test_unknown_sets_are_named() -> None:
    with pytest.raises(ValueError, match="this processor runs"):
        Native("mmx", 1)


@pytest.mark.skipif(not (shutil.which("c++") and shutil.which("cmake")), reason="no C++ compiler or no CMake here")
def test_the_library_is_there_where_it_can_be_built() -> None:
    """Without it every other test of this file is skipped: that must not happen unnoticed."""
    assert binding.instruction_sets()[-1] == "scalar"


# The header is the contract; what Python declares is compared with its text, so neither can drift.

CTYPES = {
    "int8_t": "c_byte", "int32_t": "c_int", "int64_t": "c_long", "float": "c_float", "void": None,
    "const char*": "c_char_p",
    "const qw_weight_type*": "LP_WeightTypeNumbers", "const qw_codes*": "LP_CodesArguments",
    "const qw_unpack_arguments*": "LP_UnpackArguments", "const qw_linear_arguments*": "LP_LinearArguments",
    "const qw_norm_arguments*": "LP_NormArguments", "const qw_delta_arguments*": "LP_DeltaArguments",
    "double": "c_double", "const qw_round_arguments*": "LP_RoundArguments",
    "const qw_stored_rows*": "LP_RowsArguments", "qw_load_state*": "LP_LoadState",
    "const qw_attention_arguments*": "LP_AttentionArguments", "const qw_experts_arguments*": "LP_ExpertsArguments",
    "const qw_frames_arguments*": "LP_FramesArguments", "const qw_layer_arguments*": "LP_LayerArguments",
}  # fmt: skip


def ctypes_name(declared: str) -> str | None:
    declared = re.sub(r"\s*\*", "*", declared.strip())
    if declared in CTYPES:
        return CTYPES[declared]
    assert declared.endswith("*"), declared
    return "c_void_p"


def without_comments() -> str:
    return re.sub(r"/\*.*?\*/", "", HEADER, flags=re.DOTALL)


def test_every_function_of_the_header_is_declared_as_it_stands_there() -> None:
    stated = {}
    for returned, name, taken in re.findall(r"QW_API ([\w* ]+?[ *])(\w+)\(([^)]*)\);", without_comments()):
        kinds = [each.strip().rsplit(" ", 1)[0] for each in taken.split(",")] if taken.strip() != "void" else []
        stated[name] = (ctypes_name(returned), [ctypes_name(kind) for kind in kinds])
    declared = {
        name: (returned and returned.__name__, [each.__name__ for each in taken])
        for name, (returned, taken) in binding.DECLARATIONS.items()
    }
    assert declared == stated


STRUCTURES = {
    each
    for module in (binding, choosing, instructions, loading)
    for each in vars(module).values()
    if isinstance(each, type) and issubclass(each, ctypes.Structure)
}


@pytest.mark.parametrize("structure", sorted(STRUCTURES, key=str))
def test_every_structure_has_the_fields_of_the_header(structure: type) -> None:
    assert structure.__doc__
    body = re.search(rf"typedef struct \{{([^}}]*)\}} {structure.__doc__};", without_comments())
    assert body
    stated = []
    for line in body.group(1).split(";"):
        if declaration := line.strip():
            match = re.fullmatch(r"(.+?[ *])([\w, ]+)(?:\[(\d+)\])?", declaration, flags=re.DOTALL)
            assert match
            kind, names, count = match.groups()
            each = "c_void_p" if kind.endswith("*") else ctypes_name(kind)
            if count is not None:
                each = f"{each}_Array_{count}"
            stated += [(name.strip(), each) for name in names.split(",")]
    fields = structure._fields_  # type: ignore[attr-defined]
    assert [(name, kind.__name__) for name, kind in fields] == stated


def test_operations_are_numbered_as_in_the_header() -> None:
    """And each has the structure that the comment beside its number names."""
    stated = dict(re.findall(r"#define QW_(\w+) (\d+)", HEADER))
    for operation, structure in instructions.STRUCTURES.items():
        assert re.search(rf"#define QW_{operation.name} +{operation.value} +/\* {structure.__doc__}\b", HEADER)
    assert instructions.STRUCTURES.keys() == set(instructions.Operation)
    for kind in instructions.Pointwise:
        assert int(stated[kind.name]) == kind.value
    for number in list(program.Number)[:5]:
        assert int(stated[number.name]) == number.value
    assert int(stated["OUT_OF_RANGE"]) == instructions.OUT_OF_RANGE
    assert int(stated["NO_MEMORY"]) == instructions.NO_MEMORY


def test_constants_are_those_of_the_header() -> None:
    constants = dict(re.findall(r"#define (QW_\w+) (\d+)", HEADER))
    assert int(constants["QW_INTERFACE"]) == loading.INTERFACE
    assert int(constants["QW_DELTA_WIDTH"]) == binding.DELTA_WIDTH
    assert int(constants["QW_ATTENTION_WIDTH"]) == binding.ATTENTION_WIDTH
    assert int(constants["QW_CACHE_TILE"]) == CACHE_TILE
    names = {"float32": "QW_F32", "bfloat16": "QW_BF16", "float16": "QW_F16"}
    for dtype, number in (*binding.TYPES.items(), *loading.ELEMENTS.items()):
        assert int(constants[names[str(dtype).removeprefix("torch.")]]) == number
    for name in ("VOCABULARY", "UPPER_BITS", "PANEL", "EXACT_PANELS"):
        assert int(constants[f"QW_{name}"]) == getattr(weight_types, name)
    found = (loading.CODES, loading.BITS, loading.GGUF, loading.LOAD_ROWS, loading.SHORT)
    assert found == tuple(int(constants[f"QW_{name}"]) for name in ("CODES", "BITS", "GGUF", "LOAD_ROWS", "SHORT"))
    assert int(constants["QW_SUPER_BLOCK"]) == SUPER_BLOCK
