"""Operations called one by one: every instruction set against the reference."""

from __future__ import annotations

import pytest
import torch

from qwench.ops.alone import NativeAlone, TorchAlone
from qwench.ops.native import Native
from tests.ops.test_native import bound, dtype, far, isa, normal, sets  # noqa: F401 - fixtures are found by name

if sets()[0].startswith("no native"):
    pytest.skip(sets()[0], allow_module_level=True)

REFERENCE = TorchAlone()


@pytest.mark.parametrize("width", [16, 64, 72])
def test_rotate_in_place_and_nothing_beside(isa: str, dtype: torch.dtype, width: int) -> None:  # noqa: F811
    rows = normal(37, 6, width, dtype=dtype)
    angles = normal(37, width // 2, seed=1)
    expected = rows.clone()
    REFERENCE.rotate(expected[:, :4], angles.cos(), angles.sin())
    NativeAlone(Native(isa, 2)).rotate(rows[:, :4], angles.cos(), angles.sin())
    assert far(rows, expected) < bound("norm", dtype)
    assert torch.equal(rows[:, 4:], expected[:, 4:])


@pytest.mark.parametrize("shape", [(1, 1), (7, 16), (33, 100)])
def test_gelu(isa: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:  # noqa: F811
    x = 4 * normal(*shape, dtype=dtype)
    expected = REFERENCE.gelu(x.double())
    assert far(NativeAlone(Native(isa, 2)).gelu(x), expected) < bound("norm", dtype)


def test_gelu_of_what_is_far_away(isa: str) -> None:  # noqa: F811
    x = torch.tensor([[-1e4, -30.0, 0.0, 30.0, 1e4]])
    assert NativeAlone(Native(isa, 1)).gelu(x).tolist() == [[0.0, 0.0, 0.0, 30.0, 1e4]]
