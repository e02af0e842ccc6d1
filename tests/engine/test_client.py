"""The client's promises: threads, event loops, limits told before anything runs, an end to every request."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwench.config import EngineConfig
from qwench.engine.client import EngineClient
from qwench.engine.core import MAX_FAILURES_IN_A_ROW
from qwench.engine.request import SamplingParams, Vocabulary
from qwench.errors import ContextLengthExceeded, EngineUnavailable, Overloaded, RequestError
from tests.engine.ledger import VOCABULARY, ledger_answer, ledger_engine

GREEDY = SamplingParams(temperature=0, max_tokens=12)
END = 250


class LedgerClient(EngineClient):
    """The real client over the ledger engine: only loading is replaced."""

    def _load(self) -> None:
        self._engine = ledger_engine(num_pages=64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = {
        "model_type": "qwen3", "vocab_size": VOCABULARY, "hidden_size": 8, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8,
        "max_position_embeddings": 200, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True,
        "eos_token_id": END,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.fixture
def client(folder: Path) -> Iterator[LedgerClient]:
    client = LedgerClient(EngineConfig(model=str(folder)))
    client.start(Vocabulary(VOCABULARY, frozenset()))
    client.wait_ready(30)
    yield client
    client.close()


def answer(client: EngineClient, prompt: list[int], sampling: SamplingParams = GREEDY) -> list[int]:
    return [token for event in client.submit(prompt, sampling) for token in event.token_ids]


def test_blocking_iteration_gives_the_answer(client: LedgerClient) -> None:
    assert answer(client, [1, 2, 3]) == ledger_answer([1, 2, 3], 12)


def test_many_threads_get_their_own_answers(client: LedgerClient) -> None:
    found: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        found[number] = answer(client, [number, number + 1])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == {number: ledger_answer([number, number + 1], 12) for number in range(20)}


def test_many_tasks_of_one_event_loop_get_their_own_answers(client: LedgerClient) -> None:
    async def ask(number: int) -> list[int]:
        return [token async for event in client.submit([number], GREEDY) for token in event.token_ids]

    async def everyone() -> list[list[int]]:
        return await asyncio.gather(*(ask(number) for number in range(20)))

    assert asyncio.run(everyone()) == [ledger_answer([number], 12) for number in range(20)]


def test_abort_frees_everything_and_the_stream_says_so(client: LedgerClient) -> None:
    generation = client.submit([4], SamplingParams(temperature=0, max_tokens=150))
    events = iter(generation)
    next(events)
    generation.abort()
    reasons = [event.finish_reason for event in events]
    assert reasons[-1] == "abort"
    generation.abort()
    wait_until_free(client)


def test_leaving_a_stream_early_aborts_it(client: LedgerClient) -> None:
    for _ in client.submit([4], SamplingParams(temperature=0, max_tokens=150)):
        break
    wait_until_free(client)

    async def leave() -> None:
        stream = aiter(client.submit([5], SamplingParams(temperature=0, max_tokens=150)))
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]

    asyncio.run(leave())
    wait_until_free(client)


def wait_until_free(client: EngineClient) -> None:
    answer(client, [9], SamplingParams(temperature=0, max_tokens=1))  # commands are obeyed in order
    stats = client.stats()
    assert (stats.pages_used, stats.slots_used, stats.running, stats.waiting) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("prompt", "sampling", "sentence"),
    [
        ([], GREEDY, "prompt is empty"),
        ([VOCABULARY], GREEDY, f"prompt holds token id {VOCABULARY}"),
        ([-1], GREEDY, "prompt holds token id -1"),
        ([1], SamplingParams(stop_token_ids=[999]), "stop_token_ids holds token id 999"),
        ([1], SamplingParams(logit_bias={999: 1.0}), "logit_bias holds token id 999"),
    ],
)
def test_wrong_ids_are_refused_by_name(
    client: LedgerClient, prompt: list[int], sampling: SamplingParams, sentence: str
) -> None:
    with pytest.raises(RequestError, match=sentence):
        client.submit(prompt, sampling)


def test_a_prompt_longer_than_the_window_is_refused_with_both_numbers(client: LedgerClient) -> None:
    with pytest.raises(ContextLengthExceeded, match="200 tokens, but the window is 200"):
        client.submit([1] * 200, SamplingParams(temperature=0))
    with pytest.raises(ContextLengthExceeded, match=r"190 tokens and max_tokens is 12.*window of 200"):
        client.submit([1] * 190, GREEDY)
    assert len(answer(client, [1] * 190, SamplingParams(temperature=0))) == 10


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", float("nan")), ("temperature", -0.1), ("temperature", "hot"), ("top_p", 0.0), ("top_p", 1.5),
        ("min_p", float("inf")), ("max_tokens", 0), ("max_tokens", -5), ("max_tokens", 1.5), ("n", 0), ("top_k", -2),
        ("logprobs", -1), ("presence_penalty", 3.0), ("repetition_penalty", 0.0), ("min_tokens", -1), ("seed", "x"),
        ("logit_bias", {1: float("nan")}), ("logit_bias", {1: "x"}), ("logit_bias", {"a": 1.0}), ("logit_bias", [1]),
        ("stop", 5), ("stop", [5]), ("stop_token_ids", 5), ("stop_token_ids", ["a"]), ("ignore_eos", "no"),
        ("repetition_penalty", 1e-300),
    ],
)  # fmt: skip
def test_senseless_parameters_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(RequestError, match=field) as failure:
        SamplingParams(**{field: value})  # type: ignore[arg-type]
    assert failure.value.param == field


def test_end_ids_end_the_answer_unless_ignored(folder: Path) -> None:
    expected = ledger_answer([7], 12)
    client = LedgerClient(EngineConfig(model=str(folder)))
    client.start(Vocabulary(VOCABULARY, frozenset({expected[3]})))
    client.wait_ready(30)
    assert answer(client, [7]) == expected[: expected.index(expected[3])]
    assert answer(client, [7], SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)) == expected
    client.close()


def test_nothing_is_accepted_while_loading_or_after_closing(folder: Path) -> None:
    gate = threading.Event()

    class Slow(LedgerClient):
        def _load(self) -> None:
            gate.wait(30)
            super()._load()

    client = Slow(EngineConfig(model=str(folder)))
    client.start()
    assert client.status().state == "loading"
    with pytest.raises(EngineUnavailable, match="loading"):
        client.submit([1], GREEDY)
    with pytest.raises(EngineUnavailable, match="not loaded within"):
        client.wait_ready(0.01)
    gate.set()
    client.wait_ready(30)
    unfinished = client.submit([1], SamplingParams(temperature=0, max_tokens=199))
    client.close()
    assert [event.finish_reason for event in unfinished][-1] in ("error", "length")
    with pytest.raises(EngineUnavailable, match="stopped"):
        client.submit([1], GREEDY)


def test_a_load_failure_is_told_to_whoever_waits(folder: Path) -> None:
    class Broken(LedgerClient):
        def _load(self) -> None:
            raise RequestError("the shard is missing")

    client = Broken(EngineConfig(model=str(folder)))
    client.start()
    with pytest.raises(RequestError, match="shard is missing"):
        client.wait_ready(30)
    assert client.status().state == "failed"
    with pytest.raises(EngineUnavailable, match="shard is missing"):
        client.submit([1], GREEDY)


def test_repeated_failures_stop_the_engine_and_say_so(client: LedgerClient) -> None:
    assert client._engine is not None

    class Failing:
        def run(self, step: object) -> list[object]:
            raise RuntimeError("no such kernel")

    client._engine.runner = Failing()  # type: ignore[assignment]
    for _ in range(MAX_FAILURES_IN_A_ROW):
        (event,) = client.submit([1], GREEDY)
        assert event.finish_reason == "error"
        assert "no such kernel" in (event.error or "")
    assert client._thread is not None
    client._thread.join(30)
    assert client.status().state == "failed"
    with pytest.raises(EngineUnavailable, match="several steps in a row"):
        client.submit([1], GREEDY)


def test_a_failing_loop_still_answers_everyone_and_says_so(
    client: LedgerClient, caplog: pytest.LogCaptureFixture
) -> None:
    assert client._engine is not None
    assert client._thread is not None

    def broken() -> None:
        raise AssertionError("the books are wrong")

    client._engine.scheduler.schedule = broken  # type: ignore[method-assign, assignment]
    (event,) = client.submit([1], GREEDY)
    assert event.finish_reason == "error"
    assert "the books are wrong" in (event.error or "")
    client._thread.join(30)
    assert client.status().state == "failed"
    with pytest.raises(EngineUnavailable, match="books are wrong"):
        client.submit([1], GREEDY)
    assert "loop failed" in caplog.text


def test_the_books_are_checked_whenever_the_engine_comes_to_rest(client: LedgerClient) -> None:
    assert client._engine is not None
    scheduler = client._engine.scheduler
    checked = threading.Semaphore(0)
    check = scheduler.check

    def counting() -> None:
        check()
        checked.release()

    scheduler.check = counting  # type: ignore[method-assign]
    for number in range(3):
        answer(client, [number])
        assert checked.acquire(timeout=30), "the engine rests unchecked"


def test_closing_does_not_wait_for_the_load(folder: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow(LedgerClient):
        def _load(self) -> None:
            begun.set()
            go_on.wait(30)
            self._told(1, 10)
            raise AssertionError("the load went on")

    client = Slow(EngineConfig(model=str(folder)))
    client.start()
    assert begun.wait(30)
    closing = threading.Thread(target=client.close)
    closing.start()
    assert client._closing.wait(30)
    go_on.set()
    closing.join(30)
    assert "closed while it was loading" in client.status().message


def test_a_full_queue_says_when_to_come_back_and_leaves_room_for_other_keys(folder: Path) -> None:
    client = LedgerClient(EngineConfig(model=str(folder), max_queue=8))
    client.start(Vocabulary(VOCABULARY, frozenset()))
    client.wait_ready(30)
    assert len(answer(client, [1, 2, 3])) == 12
    long = SamplingParams(temperature=0, max_tokens=150)
    mine = [client.submit([1, 2], long, owner="a") for _ in range(6)]
    with pytest.raises(Overloaded, match="this key has 6 unfinished requests"):
        client.submit([1, 2], long, owner="a")
    others = [client.submit([1, 2], GREEDY, owner=owner) for owner in "bc"]
    with pytest.raises(Overloaded, match="8 requests are unfinished, and the server takes 8") as refused:
        client.submit([1, 2], GREEDY)
    assert 0 < refused.value.retry_after < 60
    for generation in [*mine, *others]:
        generation.abort()
        assert list(generation)[-1].finish_reason is not None
    assert len(answer(client, [1, 2, 3])) == 12
    client.close()


def test_progress_is_known_to_every_thread(client: LedgerClient) -> None:
    generation = client.submit([7] * 100, GREEDY)
    seen = [generation.prompt_done for _ in generation]
    assert seen == sorted(seen)
    assert seen[-1] == generation.prompt_done == 100
