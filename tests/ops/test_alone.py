"""Operations called one by one: every instruction set against the reference."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch

from qwench.ops.alone import TILED, Alone, Angles, NativeAlone, Norm, TorchAlone
from qwench.ops.native import Native
from qwench.ops.rotary import rotate
from tests.ops.test_native import bound, dtype, far, isa, normal, sets  # noqa: F401 - fixtures are found by name

if sets()[0].startswith("no native"):
    pytest.skip(sets()[0], allow_module_level=True)

REFERENCE = TorchAlone()


def attend(alone: Alone, shown: torch.Tensor, starts: Sequence[int], angles: Angles | None = None) -> torch.Tensor:
    """Without ``angles`` nothing is turned."""
    if angles is None:
        half = len(shown), shown.shape[3] // 2
        angles = Angles(torch.ones(half), torch.zeros(half))
    seen = torch.full_like(shown[:, 0], float("nan"))
    alone.attend(shown.clone(), starts, angles, seen)
    list(alone.perform(1))
    return seen


@pytest.mark.parametrize("width", [16, 20, 64, 72])
def test_heads_are_turned_first(isa: str, dtype: torch.dtype, width: int) -> None:  # noqa: F811
    shown, angles = normal(137, 3, 2, width, dtype=dtype), normal(137, width // 2, seed=1)
    turned = shown.clone()
    for part in turned[:, 0], turned[:, 1]:
        part.copy_(rotate(part, angles.cos(), angles.sin()))
    starts, native = [0, 30, 137], NativeAlone(Native(isa, 2))
    found = attend(native, shown, starts, Angles(angles.cos(), angles.sin()))
    assert far(found, attend(REFERENCE, turned.double(), starts)) < bound("attention", dtype)
    if dtype == torch.float32:  # to the bit what they are among those that were turned before
        assert far(found, attend(native, turned, starts)) < 1e-6


@pytest.mark.parametrize("shape", [(1, 2), (7, 16), (33, 100), (40, 768)])
def test_layer_norm(isa: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:  # noqa: F811
    x, weight, bias = (
        normal(*shape, dtype=dtype),
        normal(shape[1], seed=1, dtype=dtype),
        normal(shape[1], seed=2, dtype=dtype),
    )
    wide = torch.cat((x + 3, x), dim=1)[:, : shape[1]]  # rows lie apart, and far from 0
    expected, found = torch.empty(shape, dtype=torch.float64), torch.empty(shape, dtype=dtype)
    for alone, norm, rows, y in (
        (REFERENCE, Norm(weight.double(), bias.double(), 1e-6), wide.double(), expected),
        (NativeAlone(Native(isa, 2)), Norm(weight, bias, 1e-6), wide, found),
    ):
        alone.norm(rows, norm, y)
        list(alone.perform(1))
    assert far(found, expected) < bound("norm", dtype)


# Around the kernels' tiles of 64 positions, segments of 128, blocks of 24 and tasks of 96 queries.
FRAMES = [(1,), (2, 63), (64, 65), (24, 25, 96), (97, 128, 129), (300,), (5, 5, 5, 1)]


@pytest.mark.parametrize("lengths", FRAMES, ids=str)
@pytest.mark.parametrize("width", [16, 20, 64, 72])
def test_frames_see_themselves_whole(isa: str, dtype: torch.dtype, width: int, lengths: tuple[int, ...]) -> None:  # noqa: F811
    starts = [0, *itertools.accumulate(lengths)]
    shown = normal(starts[-1], 3, 2, width, dtype=dtype)
    expected = attend(REFERENCE, shown.double(), starts)
    found = attend(NativeAlone(Native(isa, 2)), shown, starts)
    assert far(found, expected) < bound("attention", dtype)


def test_a_frame_sees_the_same_in_any_company_and_on_any_number_of_threads(isa: str, dtype: torch.dtype) -> None:  # noqa: F811
    shown = normal(170, 3, 2, 16, dtype=dtype)
    whole = attend(NativeAlone(Native(isa, 3)), shown, [0, 30, 170])
    alone = attend(NativeAlone(Native(isa, 1)), shown[30:], [0, 140])
    if isa != TILED or dtype == torch.float32:  # torch promises nothing
        assert torch.equal(whole[30:], alone)


def test_some_heads_of_more(isa: str) -> None:  # noqa: F811
    shown = normal(70, 3, 4, 16)
    whole, seen = attend(NativeAlone(Native(isa, 2)), shown, [0, 70]), torch.zeros(70, 4, 16)
    for alone in (REFERENCE, NativeAlone(Native(isa, 2))):
        alone.attend(shown[:, :, 1:3], [0, 70], Angles(torch.ones(70, 8), torch.zeros(70, 8)), seen[:, 1:3])
        list(alone.perform(1))
        assert far(seen[:, 1:3], whole[:, 1:3]) < bound("attention", torch.float32)
        assert not seen[:, [0, 3]].any()


def test_large_scores_and_what_is_not_finite(isa: str) -> None:  # noqa: F811
    shown = normal(40, 3, 1, 16)
    shown[:, :2] *= 30
    expected = attend(REFERENCE, shown.double(), [0, 40])
    native = NativeAlone(Native(isa, 1))
    assert far(attend(native, shown, [0, 40]), expected) < 1e-3
    shown[3, 1] = float("nan")
    found = attend(native, shown, [0, 20, 40])
    assert bool(found[:20].isnan().all())
    assert bool(found[20:].isfinite().all())


def test_frames_that_do_not_fit_are_refused() -> None:
    native = NativeAlone(Native(sets()[0], 1))
    with pytest.raises(ValueError, match="rows is 9 in shown but 8 in starts but 9 in seen but 9 in cos"):
        attend(native, normal(9, 3, 1, 16), [0, 8])
