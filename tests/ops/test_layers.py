"""Layers of a vision tower in one call: the bits of the operations they are made of, on every instruction set."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from qwench.ops.alone import NativeAlone, Norm
from qwench.ops.arrays import BFLOAT16, FLOAT32, dtype_of, torch_dtype
from qwench.ops.linear import Packed
from qwench.ops.loading import Arena
from qwench.ops.native import Element, LinearInput, Native, PackedMatrix
from qwench.ops.weight_types import CHECKPOINT_TYPES, GGUF_TYPES, OWN_TYPES, WeightType
from tests.ops.test_native import bound, dtype, far, isa, normal, sets  # noqa: F401 - fixtures are found by name
from tests.ops.test_quantised_linear import pack, random_codes

if sets()[0].startswith("no native"):
    pytest.skip(sets()[0], allow_module_level=True)

KINDS: tuple[Element, ...] = (
    *(OWN_TYPES["q8"], GGUF_TYPES["Q8_0"], CHECKPOINT_TYPES["int8"]),  # in one pass
    *(CHECKPOINT_TYPES["int8_zero"], OWN_TYPES["q4"], GGUF_TYPES["Q4_0"], FLOAT32, BFLOAT16),  # step by step
)
# Around panels of 16 outputs, tasks of four of them, blocks of 32 and chunks of 256 of depth.
SIZES = ((1, 1), (16, 256), (65, 100), (130, 800))
# Around fours, tiles of 12 and pieces of 20 tiles.
TOKENS = (1, 4, 5, 9, 12, 23, 241)


def layer(
    native: Native, x: torch.Tensor, matrix: PackedMatrix, bias: torch.Tensor, *, gelu: bool = False,
    norm: Norm | None = None, to: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    alone = NativeAlone(native)
    y = torch.empty(len(x), matrix.out, dtype=x.dtype) if to is None else to
    alone.layer(x, Packed(native, (matrix,), dtype_of(x)), bias, y, norm=norm, gelu=gelu, add=to is not None)
    list(alone.perform(1))
    return y


def matrix_of(native: Native, kind: Element, out: int, width: int) -> PackedMatrix:
    if isinstance(kind, WeightType):
        return pack(native, random_codes(kind, out, width))
    weight = normal(out, width, seed=3, dtype=torch_dtype(kind)) / width**0.5
    return native.pack(weight, Arena(native.packed_bytes(kind, out, width)))


@pytest.mark.parametrize(("out", "width"), SIZES)
def test_a_layer_is_the_bits_of_its_steps(isa: str, dtype: torch.dtype, out: int, width: int) -> None:  # noqa: F811
    bias = normal(out, seed=1, dtype=dtype)
    native, others = Native(isa, 1), Native(isa, 3)
    for kind, tokens in itertools.product(KINDS, TOKENS):
        matrix = matrix_of(native, kind, out, width)
        x = normal(tokens, width + 5, dtype=dtype)[:, 5:]
        (plain,) = native.linear_many([LinearInput(x, matrix, bias.expand(tokens, -1))])
        assert torch.equal(layer(native, x, matrix, bias), plain), (kind, tokens)
        activated = layer(native, x, matrix, bias, gelu=True)
        assert far(activated, F.gelu(plain.double(), approximate="tanh")) < bound("norm", dtype)
        for gelu, product in ((False, plain), (True, activated)):
            wide = normal(tokens + 2, out + 7, seed=2, dtype=dtype)
            expected = wide.clone()
            expected[1:-1, 3 : 3 + out] += product
            for each in (native, others):
                found = wide.clone()
                layer(each, x, matrix, bias, gelu=gelu, to=found[1:-1, 3 : 3 + out])
                assert torch.equal(found, expected), (kind, tokens, gelu)


def test_a_normed_layer_is_the_bits_of_both(isa: str, dtype: torch.dtype) -> None:  # noqa: F811
    native = Native(isa, 2)
    for (out, width), kind, tokens in itertools.product(SIZES, KINDS, (1, 9, 25)):
        matrix, bias = matrix_of(native, kind, out, width), normal(out, seed=1, dtype=dtype)
        norm = Norm(normal(width, seed=2, dtype=dtype), normal(width, seed=3, dtype=dtype), 1e-6)
        x, alone = normal(tokens, width + 5, dtype=dtype)[:, 5:] + 1, NativeAlone(native)
        normed = torch.empty_like(x)
        alone.norm(x, norm, normed)
        list(alone.perform(1))
        expected = layer(native, normed, matrix, bias, gelu=True)
        assert torch.equal(layer(native, x, matrix, bias, norm=norm, gelu=True), expected), (kind, tokens, width)


def test_every_instruction_set_gives_the_same_bits_from_8_bits(dtype: torch.dtype) -> None:  # noqa: F811
    x, bias = normal(40, 300, dtype=dtype), normal(70, seed=1, dtype=dtype)
    found = [
        layer(native, x, matrix_of(native, GGUF_TYPES["Q8_0"], 70, 300), bias)
        for native in (Native(each, 2) for each in sets())
    ]
    assert all(torch.equal(each, found[0]) for each in found)


def test_rows_are_the_same_in_any_company(isa: str, dtype: torch.dtype) -> None:  # noqa: F811
    native = Native(isa, 2)
    x, bias = normal(600, 96, dtype=dtype), normal(37, seed=1, dtype=dtype)
    matrix = matrix_of(native, OWN_TYPES["q8"], 37, 96)
    whole = layer(native, x, matrix, bias, gelu=True)
    for first, last in ((0, 1), (7, 300), (599, 600), (200, 200)):
        assert torch.equal(layer(native, x[first:last], matrix, bias, gelu=True), whole[first:last])


def test_what_is_not_a_number_stays_in_its_row_and_poison_is_overwritten(isa: str, dtype: torch.dtype) -> None:  # noqa: F811
    native = Native(isa, 2)
    x, bias = normal(20, 64, dtype=dtype), normal(33, seed=1, dtype=dtype)
    for kind in (OWN_TYPES["q8"], OWN_TYPES["q4"], BFLOAT16):
        matrix = matrix_of(native, kind, 33, 64)
        expected = layer(native, x, matrix, bias, gelu=True)
        spoiled = x.clone()
        spoiled[7, 3] = torch.nan
        found = layer(native, spoiled, matrix, bias, gelu=True)
        assert bool(found[7].isnan().all())
        assert torch.equal(torch.cat((found[:7], found[8:])), torch.cat((expected[:7], expected[8:])))


def test_gelu_of_what_is_far_away(isa: str) -> None:  # noqa: F811
    native = Native(isa, 1)
    matrix = native.pack(torch.zeros(5, 1), Arena(native.packed_bytes(FLOAT32, 5, 1)))
    found = layer(native, torch.zeros(1, 1), matrix, torch.tensor([-1e4, -30.0, 0.0, 30.0, 1e4]), gelu=True)
    assert found.tolist() == [[0.0, 0.0, 0.0, 30.0, 1e4]]


def test_layers_that_do_not_fit_are_refused() -> None:
    native = Native(sets()[0], 1)
    matrix = matrix_of(native, FLOAT32, 6, 5)
    with pytest.raises(ValueError, match="layer: in is 4 in x but 5 in weight"):
        layer(native, normal(2, 4), matrix, normal(6))
    with pytest.raises(ValueError, match="layer: out is 6 in y but 5 in bias but 6 in weight"):
        layer(native, normal(2, 5), matrix, normal(5))
    with pytest.raises(ValueError, match="layer: tokens is 2 in x but 3 in y"):
        layer(native, normal(2, 5), matrix, normal(6), to=normal(3, 6))
    with pytest.raises(ValueError, match="layer: types are"):
        layer(native, normal(2, 5), matrix, normal(6).bfloat16())
