"""Positions of text, pictures and videos against transformers, wherever a step begins and ends."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwench.model.positions import Layout

PICTURE, TEXT = 7, 1


@dataclass(frozen=True)
class Area:
    first: int
    height: int
    width: int


def laid_out(parts: list[int | tuple[int, int]]) -> tuple[list[Area], int]:
    """Areas among so many tokens of text, and how many tokens that makes."""
    areas: list[Area] = []
    length = 0
    for part in parts:
        if isinstance(part, int):
            length += part
        else:
            areas.append(Area(length, *part))
            length += part[0] * part[1]
    return areas, length


def reference(areas: list[Area], length: int) -> tuple[list[list[int]], int]:
    from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5Config
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5Model

    class Model(Qwen3_5Model):  # type: ignore[misc]
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.config = Qwen3_5Config()

    kinds = torch.zeros(1, length, dtype=torch.int64)
    for area in areas:
        kinds[0, area.first : area.first + area.height * area.width] = 1
    grids = torch.tensor([(1, 2 * area.height, 2 * area.width) for area in areas]).view(-1, 3)
    positions, delta = Model().get_rope_index(torch.zeros_like(kinds), kinds, grids)
    return positions[:, 0].tolist(), int(delta)


PARTS = st.lists(
    st.tuples(st.integers(1, 9), st.tuples(st.integers(1, 7), st.integers(1, 7))).map(list), min_size=1, max_size=4
).map(lambda pairs: [part for pair in pairs for part in pair])


@settings(deadline=None)
@given(PARTS, st.integers(0, 5), st.data())
def test_positions_equal_transformers_for_any_cut(
    parts: list[int | tuple[int, int]], rest: int, data: st.DataObject
) -> None:
    areas, length = laid_out([*parts, rest])
    expected, delta = reference(areas, length)
    layout = Layout(areas)
    assert list(map(list, layout.positions(range(length)))) == expected
    begin = data.draw(st.integers(0, length))
    end = data.draw(st.integers(begin, length))
    assert list(map(list, layout.positions(range(begin, end)))) == [axis[begin:end] for axis in expected]
    answer = layout.positions(range(length, length + 3))
    assert list(map(list, answer)) == [[length + delta + step for step in range(3)]] * 3


@pytest.mark.parametrize("places", [range(0), range(5, 9), range(1000, 1001)])
def test_text_stands_where_it_is(places: range) -> None:
    assert Layout().positions(places) == ([*places], [*places], [*places])
