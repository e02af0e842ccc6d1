"""The pool's books: nothing is owned twice, nothing is lost, whatever the order of events."""

from __future__ import annotations

import random

import pytest

from qwench.cache.pool import Pool


def test_random_traffic_keeps_the_books() -> None:
    rng = random.Random(7)
    pool = Pool(40)
    owners: list[list[int]] = []
    for _ in range(10_000):
        action = rng.random()
        if action < 0.45:
            taken = pool.allocate(rng.randint(0, 6))
            if taken is not None:
                owners.append(taken)
        elif action < 0.6 and owners:
            shared = list(rng.choice(owners))
            pool.share(shared)
            owners.append(shared)
        elif owners:
            pool.release(owners.pop(rng.randrange(len(owners))))
        pool.check(number for numbers in owners for number in numbers)
        assert pool.num_free + pool.num_used == pool.size
    for numbers in owners:
        pool.release(numbers)
    assert pool.num_free == pool.size


def test_too_large_a_wish_changes_nothing() -> None:
    pool = Pool(3)
    assert pool.allocate(4) is None
    assert pool.num_free == 3


def test_a_wrong_book_is_noticed() -> None:
    pool = Pool(3)
    taken = pool.allocate(2)
    assert taken is not None
    with pytest.raises(AssertionError, match="owners"):
        pool.check(taken[:1])
    pool.release(taken)
    with pytest.raises(AssertionError, match="more often"):
        pool.release(taken[:1])
    with pytest.raises(AssertionError, match="is free"):
        pool.share(taken[:1])
