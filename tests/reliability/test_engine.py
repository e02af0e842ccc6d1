"""Goals 9, 10, 11, 14 and 15: faults inside, on a clock of our own where time matters."""

from __future__ import annotations

import errno
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from qwench.config import EngineConfig
from qwench.engine import client as client_module
from qwench.engine.client import EngineClient
from qwench.engine.scheduler import RowResult, Step
from qwench.fault import FAULTS, planned
from qwench.server.service import ServerSettings
from qwench.text.model import ModelText
from tests.engine.ledger import ledger_answer, ledger_engine
from tests.engine.test_apart import Poisoned
from tests.engine.test_laws import drain, random_prompt, submit
from tests.hostile.target import CHAT, COMPLETIONS
from tests.media.files import data_uri, encoded, noise
from tests.reliability.effort import effort
from tests.server.conftest import NAME, Client, running, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ASKED: list[dict[str, Any]] = [
    {"model": NAME, "prompt": prompt, "max_tokens": 60, "ignore_eos": True, "temperature": 1, "seed": seed}
    for seed, prompt in enumerate(("What is 2 + 3?", "Hello, who are you?", "The sky is", "One, two, three,"))
]


@contextmanager
def real(tmp_path: Path | None = None, **more: Any) -> Iterator[tuple[EngineClient, httpx.Client]]:
    """nano, and a client of its server."""
    client = EngineClient(EngineConfig(model="nano", max_model_len=1024, max_num_seqs=4, **more))
    text = ModelText(client.files, client.model)
    client.start(text.vocabulary)
    client.wait_ready(60)
    settings = ServerSettings(names=(NAME,))
    with running(client, text, settings) as address, Client(base_url=address, timeout=120) as http:
        yield client, http
    client.close()


def together(http: httpx.Client, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    found: dict[int, httpx.Response] = {}

    def ask(at: int) -> None:
        found[at] = http.post(COMPLETIONS, json=bodies[at])

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[at] for at in range(len(bodies))]


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def test_goal_09_one_requests_failure_stays_its_own() -> None:
    """In step k of one of four requests something raises: it ends with one error, the others as if they were alone."""
    with real() as (client, http):
        alone = [text_of(http.post(COMPLETIONS, json=body)) for body in ASKED]
        assert client._engine is not None
        runner = client._engine.runner
        for k in range(1, effort("steps that fail") + 1):
            victim = k % 4
            length = len(client_text(client).tokenizer.encode(ASKED[victim]["prompt"])) + k
            spoil = _Spoiled(runner, ASKED[victim]["seed"], length)
            client._engine.runner = spoil
            answers = together(http, ASKED)
            client._engine.runner = runner
            for at, answer in enumerate(answers):
                if at == victim:
                    assert answer.status_code == 500, (k, answer.text)
                    assert "no such kernel" not in answer.text
                else:
                    assert text_of(answer) == alone[at], (k, at)
            wait_until(lambda: client.stats().running == 0)
            assert client.stats().slots_used == client.stats().snapshots
        assert [text_of(http.post(COMPLETIONS, json=body)) for body in ASKED] == alone


def client_text(client: EngineClient) -> ModelText:
    return ModelText(client.files, client.model)


class _Spoiled:
    """A runner that fails whenever the request with ``seed`` has so many tokens."""

    def __init__(self, runner: Any, seed: int, length: int) -> None:
        self._runner, self._seed, self._length = runner, seed, length

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def run(self, step: Step) -> list[RowResult]:
        if any(row.request.seed == self._seed and row.start + row.count >= self._length for row in step.rows):
            raise RuntimeError("no such kernel")
        found: list[RowResult] = self._runner.run(step)
        return found


def test_goal_10_nan_and_infinity_are_handled() -> None:
    with real() as (client, http):
        alone = [text_of(http.post(COMPLETIONS, json=body)) for body in ASKED]
        assert client._engine is not None
        runner: Any = client._engine.runner
        forward, victim = runner.model.forward, 2
        for value in (np.nan, np.inf, -np.inf):
            before = client.stats().failed
            steps: list[Step] = []
            run = runner.run

            def noted(step: Step, run: Any = run, steps: list[Step] = steps) -> Any:
                steps.append(step)
                return run(step)

            def poisoned(batch: Any, cache: Any, seen: Any, value: float = value, steps: list[Step] = steps) -> Any:
                logits = np.array(forward(batch, cache, seen))
                sampling = [row.request.seed for row in steps[-1].rows if row.samples]
                if ASKED[victim]["seed"] in sampling and len(logits) == len(sampling):
                    logits[sampling.index(ASKED[victim]["seed"])] = value
                return logits

            runner.run, runner.model.forward = noted, poisoned
            answers = together(http, ASKED)
            del runner.run
            runner.model.forward = forward
            for at, answer in enumerate(answers):
                if at == victim:
                    assert answer.status_code == 500
                    assert answer.json()["error"]["code"] == "nan_logits"
                else:
                    assert text_of(answer) == alone[at]
            assert client.stats().failed == before + 1
        told = http.post(COMPLETIONS, json={**ASKED[0], "logprobs": 5, "logit_bias": {"5": -100}}).text
        json.loads(told, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


SERVING = ("memory.step", "receive", "send", "write.cache", "read.cache", "start.decoder")


@pytest.mark.parametrize("name", SERVING)
def test_goal_11_the_nth_failure_of(name: str, tmp_path: Path) -> None:
    """The call fails at its first, second, .. time until a request passes: each answer is whole or a whole error."""
    assert name in FAULTS
    picture = {"type": "image_url", "image_url": {"url": data_uri(encoded(noise(64, 64)))}}
    shown: Any = [{"type": "text", "text": "Look."}, picture] if name == "start.decoder" else "What is 2 + 3?"
    body = {"model": NAME, "messages": [{"role": "user", "content": shown}], "max_tokens": 8, "temperature": 0}
    error: BaseException = MemoryError("no room") if name.startswith("memory") else OSError(errno.EIO, "a broken disk")
    error = ConnectionResetError(errno.ECONNRESET, "gone") if name in ("receive", "send") else error
    with planned() as plan, real(cache_dir=str(tmp_path)) as (client, http):
        right = http.post(CHAT, json=body).json()["choices"][0]["message"]["content"]
        for nth in range(200):
            plan.reached[name] = 0
            plan.fail(name, error, after=nth, times=1)
            try:
                answer: httpx.Response | None = http.post(CHAT, json=body)
            except httpx.HTTPError:
                answer = None  # a client that is gone is told nothing
                assert name in ("receive", "send")
            passed = plan.reached[name] <= nth
            plan.mend(name)
            if answer is not None and answer.status_code == 200:
                assert answer.json()["choices"][0]["message"]["content"] == right
            elif answer is not None and name not in ("receive", "send"):  # what is left of those, a client never reads
                assert answer.json()["error"]["message"]
            wait_until(lambda: client.stats().running == client.stats().waiting == 0)
            assert http.post(CHAT, json=body).json()["choices"][0]["message"]["content"] == right
            if passed:
                break
        else:
            raise AssertionError("it never passed")
        assert client.stats().slots_used == client.stats().snapshots


def test_goal_14_simulated_weeks() -> None:
    """Arrivals, cancels, failures, preemption, cache pressure by a seed; everybody gets what they would get alone."""
    for seed in range(effort("seeds")):
        _week(seed)


def _week(seed: int) -> None:
    rng = random.Random(seed)
    snapshots = rng.choice([0, 2, 6])
    engine = ledger_engine(
        num_pages=rng.choice([10, 14, 30]),
        num_slots=rng.choice([2, 4]),
        max_step_tokens=rng.choice([2, 5, 16, 64]),
        snapshots=snapshots,
        state_pages=rng.choice([0, 2]),
    )
    shared = random_prompt(rng, 10)
    asked = []
    fails = Poisoned(engine, rng.randrange(12), rng.randint(1, 20), times=rng.choice([0, 1, None]))
    aborted = set()
    for number in range(12):
        prompt = [*(shared if rng.random() < 0.5 else []), *random_prompt(rng, 12)]
        length = rng.randint(1, 12)
        asked.append((prompt, length, submit(engine, prompt, length, number)))
        for _ in range(rng.randrange(4)):
            engine.step()
            engine.scheduler.check()
        if rng.random() < 0.25:
            aborted.add(victim := rng.randrange(number + 1))
            engine.abort(victim)
            engine.scheduler.check()
    drain(engine)
    for number, (prompt, length, listener) in enumerate(asked):
        answer = ledger_answer(prompt, length, stateful=bool(engine.scheduler.cache.policy.state_pages))
        assert listener.token_ids == answer[: len(listener.token_ids)], seed
        may = (
            {"length"} | ({"abort"} if number in aborted else set()) | ({"error"} if fails.is_victim(number) else set())
        )
        assert listener.reason in may, (seed, number, listener.reason)
        assert listener.reason != "length" or listener.token_ids == answer, seed
    assert not engine.scheduler.running, seed


def test_goal_15_a_stuck_engine_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop stands still with work waiting: /health says so after ten seconds, and is well again when it goes on."""
    with real() as (client, http):
        assert client._engine is not None
        runner, go = client._engine.runner, threading.Event()
        run = runner.run

        def standing(step: Step) -> Any:
            go.wait(60)
            return run(step)

        http.post(COMPLETIONS, json=ASKED[0])  # a step's usual time is known
        runner.run = standing  # type: ignore[method-assign]
        asking = threading.Thread(target=http.post, args=(COMPLETIONS,), kwargs={"json": ASKED[0]})
        asking.start()
        began = time.monotonic()
        while (health := http.get("/health")).status_code == 200:
            assert time.monotonic() - began < client_module.STUCK_SECONDS + 2
            time.sleep(0.1)
        assert time.monotonic() - began >= client_module.STUCK_SECONDS - 1
        assert (health.json()["status"], health.status_code) == ("stuck", 503)
        assert "has not finished a step" in health.json()["reason"]
        go.set()
        asking.join()
        del runner.run
        assert http.get("/health").status_code == 200
