"""Looking in slices: what is begun, kept, held and given up, over a tower that only counts."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import pytest
import torch

from qwench.engine.eyes import Eyes
from qwench.engine.request import Request, SamplingParams
from qwench.engine.sight import Sight
from tests.engine.pictures import Shown, picture, prompt

PAUSES = 5


class Tower:
    """Makes rows of zeros after some pauses."""

    together = 40

    def __init__(self) -> None:
        self.begun: list[int] = []  # how many at a time

    def encode_all(
        self, shown: Sequence[tuple[torch.Tensor, tuple[int, int, int]]]
    ) -> Generator[None, None, list[torch.Tensor]]:
        self.begun.append(len(shown))
        for _ in range(PAUSES):
            yield
        if any(grid[1] == 2 for _, grid in shown):
            raise ValueError("this one cannot be looked at")
        return [torch.full((len(patches) // 4, 8), float(grid[1])) for patches, grid in shown]


def request(number: int, *parts: Shown | int) -> Request:
    ids, media = prompt(parts, seed=number)
    found = Request(number, len(ids), ids, SamplingParams(), frozenset(), 0, len(ids) + 1)
    found.sight, found.looked = Sight.of(ids, media, merge=2), False
    return found


def eyes(limit: int = 0) -> tuple[Eyes, Tower]:
    tower: Any = Tower()
    return Eyes(lambda: tower, limit), tower


def never() -> bool:
    return False


def test_a_slice_ends_at_the_first_pause_and_the_next_goes_on() -> None:
    seeing, tower = eyes()
    asks = request(1, 3, picture(4, 4, 1), 2)
    assert [seeing.look(asks, never) for _ in range(PAUSES)] == [False] * PAUSES
    assert seeing.look(asks, never)
    assert tower.begun == [1]


def test_one_look_serves_all_who_show_the_same() -> None:
    seeing, tower = eyes(limit=2**20)
    same = picture(4, 4, 1)
    for number in range(3):
        each = request(number, number, same, same, 1)
        assert seeing.look(each, lambda: True)
        seeing.release(each)
    assert tower.begun == [1]


def test_what_is_known_already_is_not_looked_at() -> None:
    seeing, tower = eyes()
    asks = request(1, 3, picture(4, 4, 1), 2, picture(4, 4, 2), 2)
    asks.expected = asks.sight.spans[0].stop
    assert seeing.look(asks, lambda: True)
    assert tower.begun == [1]


def test_rows_are_held_until_their_request_is_over() -> None:
    seeing, tower = eyes(limit=0)
    first, second = request(1, picture(4, 4, 1)), request(2, picture(4, 4, 2))
    for each in (first, second):
        seeing.look(each, lambda: True)
    seeing.see({**first.sight.media, **second.sight.media})
    assert tower.begun == [1, 1]
    seeing.release(first)
    seeing.see(second.sight.media)
    assert tower.begun == [1, 1]
    seeing.see(first.sight.media)
    assert tower.begun == [1, 1, 1]


def test_who_leaves_leaves_nothing_begun() -> None:
    seeing, tower = eyes()
    asks = request(1, picture(4, 4, 1))
    assert not seeing.look(asks, never)
    seeing.release(asks)
    assert not seeing.look(asks, never)
    assert tower.begun == [1, 1]


def test_a_failure_is_told_each_time_and_kept_nowhere() -> None:
    seeing, tower = eyes()
    asks = request(1, picture(2, 4, 1))
    for _ in range(2):
        with pytest.raises(ValueError, match="cannot be looked at"):
            seeing.look(asks, lambda: True)
    assert tower.begun == [1, 1]


def test_neighbouring_small_pictures_of_a_request_are_looked_at_together() -> None:
    seeing, tower = eyes(limit=2**20)
    sides = (4, 8, 10, 4, 4)
    asks = request(1, 3, *(picture(side, 4, seed) for seed, side in enumerate(sides)), 2)
    assert seeing.look(asks, lambda: True)
    assert tower.begun == [1, 1, 1, 2]
    rows = seeing.see(asks.sight.media)
    for digest, media in asks.sight.media.items():
        assert rows[digest].shape == (media.grid[1], 8)
        assert bool((rows[digest] == media.grid[1]).all())
