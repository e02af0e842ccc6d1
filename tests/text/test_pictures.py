"""Placeholders of a prompt become as many as there are tokens to see."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from qwench.engine.sight import Media, Span
from qwench.errors import RequestError
from qwench.text.pictures import Placeholders, place

IMAGE, VIDEO, OPEN, CLOSE = 90, 91, 80, 81
KNOWN = Placeholders(IMAGE, VIDEO, merge=2)


@dataclass(frozen=True)
class Shown:
    grid: tuple[int, int, int]
    digest: bytes
    kind: str = "image"
    seconds: tuple[float, ...] = ()
    patches: None = None


def placed(token_ids: list[int], *shown: Media) -> tuple[list[int], tuple[Span, ...]]:
    found, sight = place(token_ids, shown, KNOWN, lambda text: [len(text)])
    assert set(sight.media) == {media.digest for media in shown}
    return found, sight.spans


def test_a_picture_takes_one_token_for_each_block_of_patches() -> None:
    found, spans = placed([5, OPEN, IMAGE, CLOSE, 6, IMAGE], Shown((1, 4, 6), b"a"), Shown((1, 2, 2), b"b"))
    assert found == [5, OPEN, *[IMAGE] * 6, CLOSE, 6, IMAGE]
    assert spans == (Span(2, 2, 3, b"a"), Span(10, 1, 1, b"b"))


def test_a_video_becomes_its_moments_in_place_of_the_whole() -> None:
    clip = Shown((3, 2, 4), b"v", "video", (0.25, 1.25, 12.0))
    found, spans = placed([5, OPEN, VIDEO, CLOSE, 6], clip)
    moment = [OPEN, VIDEO, VIDEO, CLOSE]
    assert found == [5, 13, *moment, 13, *moment, 14, *moment, 6]
    assert spans == (Span(3, 1, 2, b"v"), Span(8, 1, 2, b"v", 2), Span(13, 1, 2, b"v", 4))


def test_the_same_picture_twice_is_looked_at_once_and_told_apart_by_nothing() -> None:
    _, (first, second) = placed([IMAGE, 5, IMAGE], Shown((1, 2, 4), b"a"), Shown((1, 2, 4), b"a"))
    assert first.identities == second.identities
    assert len(set(first.identities)) == 2
    assert max(first.identities) < 0


def test_what_differs_in_anything_has_other_identities() -> None:
    spans = [Span(0, 2, 3, b"a"), Span(0, 3, 2, b"a"), Span(0, 2, 3, b"b"), Span(0, 2, 3, b"a", 6), Span(0, 2, 2, b"a")]
    seen = [identity for span in spans for identity in span.identities]
    assert len(set(seen)) == len(seen)


def test_a_placeholder_in_a_text_without_pictures_is_a_word() -> None:
    assert placed([5, IMAGE, VIDEO]) == ([5, IMAGE, VIDEO], ())


@pytest.mark.parametrize(
    ("token_ids", "shown", "told"),
    [
        ([5, 6], [Shown((1, 2, 2), b"a")], "placeholders for 0 pictures and 0 videos, but 1 picture and 0 videos came"),
        ([IMAGE, IMAGE], [Shown((1, 2, 2), b"a")], "placeholders for 2 pictures and 0 videos, but 1 picture and 0"),
        ([IMAGE], [Shown((1, 2, 2), b"a", "video", (0.0,))], "for 1 picture and 0 videos, but 0 pictures and 1 video"),
        ([VIDEO], [Shown((1, 2, 2), b"a", "video", (0.0,))], "stands between no two tokens"),
    ],
)
def test_what_does_not_fit_is_refused(token_ids: list[int], shown: list[Media], told: str) -> None:
    with pytest.raises(RequestError, match=told):
        placed(token_ids, *shown)
