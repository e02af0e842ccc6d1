"""What a guide forbids is never drawn, whoever shares the batch and however often the request is preempted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import pytest

from qwench.config import EngineConfig
from qwench.engine.client import EngineClient
from qwench.engine.request import Guide, SamplingParams
from tests.engine.midway import submit_and_save
from tests.server.tiny import write_checkpoint


class Counting:
    """Lets the answer count up from ``first``, one id after the other, and fails after ``most`` of them."""

    def __init__(self, first: int, size: int, most: int = 1000) -> None:
        self.next, self.size, self.most = first, size, most
        self.mask: bytes | None = self._only(first)

    def _only(self, token: int) -> bytes:
        bits = bytearray(-(-self.size // 8))
        bits[token // 8] |= 1 << token % 8
        return bytes(bits)

    def accept(self, token_ids: Sequence[int]) -> str | None:
        for token in token_ids:
            assert token == self.next, "what is not allowed was drawn"
            self.next, self.most = self.next + 1, self.most - 1
        self.mask = self._only(self.next)
        return None if self.most else "the guide knows no further"

    def __copy__(self) -> Self:
        other = type(self)(self.next, self.size, self.most)
        other.mask = self.mask
        return other


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> EngineClient:
    folder = write_checkpoint(tmp_path_factory.mktemp("guide") / "tiny")
    client = EngineClient(EngineConfig(model=str(folder), dtype="float32", device="cpu"))
    client.start()
    client.wait_ready(60)
    return client


PARAMS = SamplingParams(temperature=0.0, max_tokens=12)


def told(client: EngineClient, guide: Guide | None, params: SamplingParams = PARAMS) -> list[int]:
    return [token for event in client.submit([5, 6, 7], params, guide=guide) for token in event.token_ids]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"temperature": 1.0, "seed": 1},
        {"temperature": 1.0, "top_k": 3, "seed": 1},
        {"temperature": 1.0, "top_p": 0.5, "min_p": 0.1, "seed": 1},
        {"presence_penalty": 2.0, "repetition_penalty": 2.0, "logit_bias": {9: 100.0, 40: -100.0}},
        {"min_tokens": 3},
    ],
)
def test_only_what_is_allowed_is_drawn(client: EngineClient, more: Any) -> None:
    assert told(client, Counting(40, client.vocabulary.size), replace(PARAMS, **more)) == list(range(40, 52))


def test_neighbours_have_guides_of_their_own_and_the_original_stays(client: EngineClient) -> None:
    free = told(client, None)
    guide = Counting(60, client.vocabulary.size)
    generations = client.submit_choices([5, 6, 7], [PARAMS] * 3, guide=guide)
    alone = client.submit([5, 6, 7], PARAMS)
    found = [[token for event in each for token in event.token_ids] for each in (*generations, alone)]
    assert found == [list(range(60, 72))] * 3 + [free]
    assert guide.next == 60


def test_a_guide_that_fails_ends_its_request_alone(client: EngineClient) -> None:
    *_, last = client.submit([5, 6, 7], PARAMS, guide=Counting(40, client.vocabulary.size, most=4))
    assert (last.finish_reason, last.error) == ("error", "the guide knows no further")
    assert len(told(client, None)) == 12


def test_a_copy_goes_on_with_its_guide(client: EngineClient) -> None:
    guide = Counting(40, client.vocabulary.size)
    generation, saved = submit_and_save(client, lambda: client.submit([5, 6, 7], PARAMS, guide=guide))
    generation.abort()
    begun = list(saved.token_ids[3:])
    forks = client.fork(saved, [replace(PARAMS, max_tokens=5)] * 2)
    for fork in forks:
        after = [token for event in fork for token in event.token_ids]
        assert begun + after == list(range(40, 45 + len(begun)))
    client.release(saved)
