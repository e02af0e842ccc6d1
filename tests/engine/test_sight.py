"""Where pictures and moments stand among the tokens of a prompt, and how they are told apart."""

from __future__ import annotations

from qwench.engine.request import MediaSpan
from qwench.engine.sight import Sight, Span
from tests.engine.pictures import CLOSE, OPEN, VIDEO, Shown, picture, prompt, video


def seen(parts: list[Shown | int]) -> Sight:
    ids, media = prompt(parts, seed=1)
    return Sight.of(ids, media, merge=2)


def test_a_picture_takes_one_token_for_each_block_of_patches() -> None:
    one, two = picture(4, 6, 1), picture(2, 2, 2)
    sight = seen([5, one, 1, two])
    assert sight.spans == (Span(6, 2, 3, one.digest), Span(15, 1, 1, two.digest))
    assert sight.seams == (13, 17)
    assert sight.media == {one.digest: one, two.digest: two}


def test_a_video_becomes_its_moments() -> None:
    clip = video(3, 2, 4, 3)
    ids, media = prompt([2, clip, 1], seed=1)
    assert ids[5:9] == [OPEN, VIDEO, VIDEO, CLOSE]
    sight = Sight.of(ids, media, merge=2)
    assert sight.spans == tuple(Span(6 + 7 * moment, 1, 2, clip.digest, 2 * moment) for moment in range(3))
    assert sight.seams == (23,)


def test_any_piece_of_a_prompt_finds_its_spans() -> None:
    sight = seen([3, picture(4, 4, 1), 2, video(2, 2, 4, 2), picture(2, 2, 3), 4])
    for start in range(45):
        for stop in range(start + 1, 45):
            expected = [
                (span, range(max(start, span.first), min(stop, span.stop)))
                for span in sight.spans
                if span.first < stop and span.stop > start
            ]
            assert list(sight.within(range(start, stop))) == expected


def test_the_same_picture_twice_is_told_apart_by_nothing() -> None:
    same = picture(2, 4, 1)
    first, second = seen([1, same, 5, same]).spans
    assert first.identities == second.identities
    assert len(set(first.identities)) == 2
    assert max(first.identities) < 0


def test_what_differs_in_anything_has_other_identities() -> None:
    spans = [Span(0, 2, 3, b"a"), Span(0, 3, 2, b"a"), Span(0, 2, 3, b"b"), Span(0, 2, 3, b"a", 6), Span(0, 2, 2, b"a")]
    found = [identity for span in spans for identity in span.identities]
    assert len(set(found)) == len(found)


def test_two_pictures_side_by_side_stay_two() -> None:
    one, two = picture(2, 4, 1), picture(4, 2, 2)
    ids = [7, 301, 301, 301, 301, 8]
    sight = Sight.of(ids, [MediaSpan(1, 2, one), MediaSpan(3, 2, two)], merge=2)
    assert [(span.first, span.height, span.width) for span in sight.spans] == [(1, 1, 2), (3, 2, 1)]
