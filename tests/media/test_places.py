"""Boxes and points of an answer on the original picture."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwench.media.places import Place, box_pixels, point_pixels, read_places


@pytest.mark.parametrize(
    ("answer", "places"),
    [
        ('[{"bbox_2d": [100, 250, 400, 500], "label": "total"}]', [Place((100, 250, 400, 500), "total")]),
        ('Here:\n```json\n[{"point_2d": [7, 9], "label": "x"}]\n```', [Place((7, 9, 7, 9), "x")]),
        ('{"bbox_2d": [1, 2, 3, 4]}', [Place((1, 2, 3, 4))]),
        ('[{"bbox_2d": [1, 2, 3]}, {"bbox_2d": ["a", 2, 3, 4]}, 5, {"point_2d": [1, 2]}]', [Place((1, 2, 1, 2))]),
        ("There is none.", []),
        ('[{"point_2d": [NaN, Infinity]}]', []),
        ("[1, 2", []),
        ("[" * 100_000 + "]" * 100_000, []),
    ],
)
def test_places_are_read_from_answers(answer: str, places: list[Place]) -> None:
    assert read_places(answer) == places
    assert [place.is_point for place in places] == [len(set(place.box)) == 2 for place in places]


def test_corners_of_the_scale_are_corners_of_the_picture() -> None:
    assert box_pixels((0, 0, 1000, 1000), (640, 480)) == (0, 0, 640, 480)
    assert box_pixels((100, 250, 400, 500), (640, 480)) == (64, 120, 256, 240)
    assert point_pixels((500, 500), (641, 481)) == (320, 240)


@given(st.lists(st.floats(-2000, 3000), min_size=4, max_size=4), st.integers(1, 5000), st.integers(1, 5000))
def test_whatever_a_model_says_lies_in_the_picture(box: list[float], width: int, height: int) -> None:
    left, top, right, bottom = box_pixels(box, (width, height))
    assert 0 <= left <= right <= width
    assert 0 <= top <= bottom <= height
