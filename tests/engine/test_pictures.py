"""The whole engine on prompts with pictures and videos: transformers' logits and greedy ids, alone and in company."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qwench.config import EngineConfig
from qwench.engine.client import EngineClient
from qwench.engine.core import Engine
from qwench.engine.request import MediaSpan, SamplingParams, Vocabulary
from qwench.errors import RequestError
from tests.engine.midway import submit_and_save
from tests.engine.pictures import NEVER, TOKENS, Shown, picture, prompt, reference_greedy, reference_logits, video
from tests.oracle import KINDS, VOCABULARY, build_model, make_checkpoint
from tests.tolerances import tolerance

LENGTH = 6
SMALL, WIDE, TALL = picture(8, 6, 1), picture(2, 40, 2), picture(30, 2, 3)
ODD, EVEN = video(3, 4, 6, 4), video(2, 6, 4, 5)
ASKED: dict[str, list[Shown | int]] = {
    "one picture": [7, SMALL, 9],
    "at the very beginning": [SMALL, 3],
    "several sizes": [4, SMALL, 1, picture(4, 10, 6), 30, picture(12, 12, 7), 2],
    "extreme shapes": [5, WIDE, 6, TALL, 4],
    "the same twice": [3, SMALL, 5, SMALL, 6],
    "odd video": [6, ODD, 5],
    "even video": [2, EVEN, 40],
    "both kinds": [9, ODD, 3, SMALL, 4, EVEN, 8],
    "text alone": [60],
}


def start(folder: Path, **settings: Any) -> EngineClient:
    client = EngineClient(EngineConfig(model=str(folder), dtype="float32", **{"device": "cpu", **settings}))
    client.start(Vocabulary(VOCABULARY, frozenset()))
    client.wait_ready(60)
    return client


@pytest.fixture(scope="module", params=["wrapper_dense", pytest.param("wrapper_moe", marks=pytest.mark.slow)])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("checkpoint")
    config_class, model_class, fields = KINDS[request.param]
    model = build_model(config_class, model_class, {**fields, **TOKENS}, seed=5)
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def client(checkpoint: tuple[Any, Path]) -> Iterator[EngineClient]:
    client = start(checkpoint[1])
    yield client
    client.close()


def shown(parts: list[Shown | int]) -> list[Shown]:
    return [part for part in parts if not isinstance(part, int)]


def answer(client: EngineClient, ids: list[int], media: list[MediaSpan], **sampling: Any) -> list[Any]:
    params = SamplingParams(temperature=0, max_tokens=LENGTH, logprobs=3, logit_bias=NEVER, **sampling)
    return list(client.submit(ids, params, media=media))


def tokens(events: list[Any]) -> list[int]:
    return [token for event in events for token in event.token_ids]


@pytest.mark.parametrize("name", ASKED)
def test_logits_and_greedy_ids_equal_transformers(
    checkpoint: tuple[Any, Path], client: EngineClient, name: str
) -> None:
    parts = ASKED[name]
    ids, media = prompt(parts, seed=11)
    events = answer(client, ids, media, prompt_logprobs=3)
    assert tokens(events) == reference_greedy(checkpoint[0], ids, shown(parts), LENGTH)
    expected = torch.log_softmax(reference_logits(checkpoint[0], ids, shown(parts)), dim=-1)
    told = [entry for event in events for entry in event.prompt_logprobs]
    assert len(told) == len(ids) - 1
    for place, entry in enumerate(told):
        assert abs(entry.logprob - expected[place, entry.token_id]) < tolerance("model_logits")


def test_company_and_small_steps_change_nothing(checkpoint: tuple[Any, Path], client: EngineClient) -> None:
    asked = [prompt(parts, seed=12) for parts in ASKED.values()]
    expected = [tokens(answer(client, *each)) for each in asked]
    small = start(checkpoint[1], max_step_tokens=7, prefix_cache=False)  # cuts inside every picture
    params = SamplingParams(temperature=0, max_tokens=LENGTH, logit_bias=NEVER)
    together = [small.submit(ids, params, media=media) for ids, media in asked]
    found = [tokens(list(generation)) for generation in together]
    small.close()
    assert found == expected


def test_a_second_question_about_a_picture_reads_and_looks_no_more(
    checkpoint: tuple[Any, Path], client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = start(checkpoint[1], prefix_cache=False)
    big = picture(24, 24, 21)
    first, second, other = (prompt([9, each, number], seed=22) for each, number in ((big, 6), (big, 20), (WIDE, 20)))
    assert first[0][:160] == second[0][:160]
    answer(client, *first)
    engine = client._engine
    assert isinstance(engine, Engine)
    with monkeypatch.context() as patch:
        patch.setattr(engine.eyes, "_begin", lambda unseen: pytest.fail("it was looked at again"))
        events = answer(client, *second)
    assert sum(event.cached_tokens for event in events) >= 9 + 144 + 2
    assert [event.logprobs for event in events if event.token_ids] == [
        event.logprobs for event in answer(cold, *second) if event.token_ids
    ]
    assert sum(event.cached_tokens for event in answer(client, *other)) == 0
    cold.close()


def test_another_picture_in_the_same_place_is_another_prefix(client: EngineClient) -> None:
    one, two = (prompt([70, picture(16, 16, seed), 80], seed=23) for seed in (31, 32))
    assert one[0] == two[0]
    first = tokens(answer(client, *one))
    events = answer(client, *two)
    assert sum(event.cached_tokens for event in events) <= 71
    assert tokens(answer(client, *one)) == first


def test_a_picture_in_a_later_turn(checkpoint: tuple[Any, Path], client: EngineClient) -> None:
    """The second turn reuses the first, whose picture shifts every position behind it."""
    parts: list[Shown | int] = [80, picture(18, 10, 41), 60]
    ids, media = prompt(parts, seed=24)
    said = tokens(answer(client, ids, media))
    more, later = prompt([5, TALL, 7], seed=25)
    behind = len(ids) + len(said)
    spans = [*media, *(replace(span, first=span.first + behind) for span in later)]
    whole = [*ids, *said, *more]
    events = answer(client, whole, spans)
    assert sum(event.cached_tokens for event in events) > 120
    assert tokens(events) == reference_greedy(checkpoint[0], whole, [*shown(parts), TALL], LENGTH)


def test_saved_and_forked_sequences_go_on_with_what_they_saw(client: EngineClient) -> None:
    ids, media = prompt([70, picture(16, 12, 51), 12], seed=26)
    params = SamplingParams(temperature=0, max_tokens=12)
    whole = tokens(list(client.submit(ids, params, media=media)))
    generation, saved = submit_and_save(client, lambda: client.submit(ids, params, media=media))
    generation.abort()
    done = len(saved.token_ids) - len(ids)
    rest = replace(params, max_tokens=12 - done)
    assert tokens(list(client.restore(replace(saved, snapshot=None), rest))) == whole[done:]
    client.release(saved)


def test_preemption_looks_up_what_was_seen(checkpoint: tuple[Any, Path], client: EngineClient) -> None:
    asked = [prompt([10, picture(8, 8, 60 + number), 12], seed=27 + number) for number in range(4)]
    params = SamplingParams(temperature=0, max_tokens=40)
    expected = [tokens(list(client.submit(ids, params, media=media))) for ids, media in asked]
    from tests.engine.test_parity import _bytes_for

    memory = _bytes_for(client, pages=4, slots=4)
    small = start(checkpoint[1], max_step_tokens=8, max_num_seqs=4, max_model_len=80, memory=memory)
    together = [small.submit(ids, params, media=media) for ids, media in asked]
    found = [tokens(list(generation)) for generation in together]
    preemptions = small.stats().preemptions
    small.close()
    assert preemptions > 0
    assert found == expected


def test_a_state_on_disk_belongs_to_its_picture(checkpoint: tuple[Any, Path], tmp_path: Path) -> None:
    one, two = (prompt([70, picture(24, 24, seed), 9], seed=29) for seed in (71, 72))
    settings = {"cache_dir": str(tmp_path)}
    client = start(checkpoint[1], **settings)
    expected = [tokens(answer(client, *each)) for each in (one, two)]
    client.close()
    again = start(checkpoint[1], **settings)
    events = [answer(again, *each) for each in (two, one)]
    again.close()
    assert [tokens(each) for each in events] == expected[::-1]
    assert all(sum(event.cached_tokens for event in each) >= 70 + 144 for each in events)


def test_what_fails_to_be_looked_at_fails_alone(client: EngineClient) -> None:
    ids, media = prompt([4, picture(8, 8, 81), 5], seed=30)
    wrong = replace(picture(8, 8, 82), patches=picture(4, 4, 83).patches)
    bad = [replace(media[0], media=wrong)]
    params = SamplingParams(temperature=0, max_tokens=30)
    healthy, doomed = client.submit(ids, params, media=media), client.submit(ids, params, media=bad)
    assert list(doomed)[-1].finish_reason == "error"
    assert list(healthy)[-1].finish_reason == "length"
    assert client.status().state == "ready"


def test_rows_are_kept_within_their_bound(client: EngineClient, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = client._engine
    assert isinstance(engine, Engine)
    eyes: Any = engine.eyes
    monkeypatch.setattr(eyes, "_limit", 3 * 16 * 96 * 4)  # three pictures of 16 tokens
    for seed in range(90, 96):
        answer(client, *prompt([3, picture(8, 8, seed), 4], seed=31))
    assert len(eyes._rows) == 3
    assert not eyes._held


def test_a_model_without_eyes_says_so(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "dense", 0)
    blind = start(tmp_path)
    ids, media = prompt([3, SMALL, 4], seed=32)
    with pytest.raises(RequestError, match="cannot see"):
        blind.submit(ids, SamplingParams(max_tokens=2), media=media)
    assert tokens(list(blind.submit(ids, SamplingParams(max_tokens=2))))
    blind.close()


def test_the_tower_is_announced(client: EngineClient, checkpoint: tuple[Any, Path]) -> None:
    raw = json.loads((checkpoint[1] / "config.json").read_text())
    assert "vision_config" in raw
    assert any(line.startswith("vision ") for line in client.banner())
    assert client.sees
