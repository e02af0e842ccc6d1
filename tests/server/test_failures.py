"""What happens when clients leave, the engine is full, silent, loading or broken. The server goes on serving."""

from __future__ import annotations

import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai as sdk
import pytest

from qwench.engine.client import EngineClient, EngineStatus, Generation
from qwench.engine.request import SamplingParams, TokenEvent
from qwench.errors import Overloaded
from tests.server.conftest import NAME, Start, wait_until
from tests.server.scripted import ScriptedEngine, answering

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": NAME, "messages": [{"role": "user", "content": "Hello"}]}
SECRET = "cannot open /root/weights"


def pausing(*parts: str) -> Callable[[Path], ScriptedEngine]:
    """An engine that says the parts, and waits for ``engine.go`` before each but the first."""

    def make(folder: Path) -> ScriptedEngine:
        def script(_prompt: str, sampling: SamplingParams) -> Iterator[TokenEvent | threading.Event]:
            for number, part in enumerate(parts):
                if number:
                    yield engine.go
                yield from engine.spell(part, sampling)[:-1]
            yield TokenEvent(finish_reason="stop")

        engine = ScriptedEngine(folder, script)
        return engine

    return make


def failing(reason: str, *, after: str = "") -> Callable[[Path], ScriptedEngine]:
    """An engine that gives a request up with ``reason`` (a finish reason)."""

    def make(folder: Path) -> ScriptedEngine:
        def script(_prompt: str, sampling: SamplingParams) -> list[TokenEvent]:
            spelled = engine.spell(after, sampling)[:-1]
            return [*spelled, TokenEvent(finish_reason=reason, error=SECRET)]  # type: ignore[arg-type]

        engine = ScriptedEngine(folder, script)
        return engine

    return make


@pytest.mark.parametrize("n", [1, 3])
def test_leaving_a_stream_frees_every_choice(scripted: Start, n: int) -> None:
    engine, http = scripted(pausing("Hello", "never"))
    with http.stream("POST", CHAT, json=BODY | {"stream": True, "n": n}) as answer:
        assert any("data" in line and len(engine.alive) == n for line in answer.iter_lines())
    wait_until(lambda: not engine.alive)


def test_leaving_before_the_first_token_frees_the_request(scripted: Start) -> None:
    engine, http = scripted(pausing("", "never"))
    with http.stream("POST", CHAT, json=BODY | {"stream": True}):
        assert len(engine.alive) == 1
    wait_until(lambda: not engine.alive)


def test_leaving_an_answer_that_does_not_stream_frees_it(scripted: Start) -> None:
    engine, http = scripted(pausing("Hello", "never"))
    with pytest.raises(httpx.ReadTimeout):
        http.post(CHAT, json=BODY | {"n": 2}, timeout=1.0)
    assert len(engine.submitted) == 2
    wait_until(lambda: not engine.alive)


def test_leaving_frees_pages_and_slots_of_the_real_engine(engine: EngineClient, http: httpx.Client) -> None:
    body = BODY | {"stream": True, "ignore_eos": True, "max_tokens": 400, "n": 4}
    with http.stream("POST", CHAT, json=body) as answer:
        assert any("data" in line and engine.stats().running for line in answer.iter_lines())
    wait_until(lambda: engine.stats().running == 0)
    stats = engine.stats()
    assert (stats.slots_used, stats.waiting) == (stats.snapshots, 0)  # only what is kept of them, and no request


def test_a_stop_string_frees_the_request(scripted: Start) -> None:
    engine, http = scripted(pausing("Hello stop", "never"))
    answer = http.post(CHAT, json=BODY | {"stop": "stop"}).json()
    assert answer["choices"][0]["message"]["content"] == "Hello "
    assert not engine.alive


def test_headers_come_before_the_prompt_is_read_and_silence_is_filled(scripted: Start) -> None:
    engine, http = scripted(pausing("", "late"), keepalive=0.05)
    engine.computed = 3
    with http.stream("POST", CHAT, json=BODY | {"stream": True}) as answer:
        assert answer.status_code == 200  # while the engine has said nothing
        lines = answer.iter_lines()
        comments = [line for line in (next(lines) for _ in range(9)) if line]
        assert len(comments) == 5
        assert all(re.fullmatch(r": reading the prompt: 3 of \d\d tokens", line) for line in comments)
        engine.go.set()
        rest = "".join(lines)
    assert '"content":"l' in rest
    assert rest.endswith("data: [DONE]")


def test_a_full_queue_is_429_with_retry_after_and_nothing_left_running(scripted: Start) -> None:
    class Full(ScriptedEngine):
        def submit_choices(self, prompt_token_ids: Any, choices: Any, **more: Any) -> list[Generation]:
            if self.alive:
                raise Overloaded("the queue is full; try again later.", retry_after=11.2)
            return super().submit_choices(prompt_token_ids, choices, **more)

    engine, http = scripted(lambda folder: Full(folder, lambda _prompt, _sampling: [threading.Event()]))
    answer = http.post("/v1/completions", json={"model": NAME, "prompt": ["one", "two"]})
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "12"
    assert "x-should-retry" not in answer.headers
    assert answer.json()["error"]["type"] == "rate_limit_error"
    wait_until(lambda: not engine.alive)


def test_a_failure_inside_a_stream_is_an_error_event_and_the_end(scripted: Start) -> None:
    engine, http = scripted(failing("error", after="Hello"))
    text = http.post(CHAT, json=BODY | {"stream": True}).text
    events = [line for line in text.split("\n\n") if line.startswith("data")]
    assert '"content"' in events[-2]
    assert events[-1].startswith('data: {"error":{"message":"The engine failed on this request')
    assert SECRET not in text
    with sdk.OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0) as client:  # noqa: SIM117
        with pytest.raises(sdk.APIError, match="engine failed"):
            list(client.chat.completions.create(messages=BODY["messages"], model=NAME, stream=True))
    engine.script = lambda _prompt, sampling: engine.spell("fine", sampling)
    assert http.post(CHAT, json=BODY).json()["choices"][0]["message"]["content"] == "fine"


def test_a_failure_of_a_whole_answer_is_a_500_with_the_reason_in_the_log_only(
    scripted: Start, caplog: pytest.LogCaptureFixture
) -> None:
    engine, http = scripted(failing("error"))
    with caplog.at_level(logging.ERROR, "qwench"):
        answer = http.post(CHAT, json=BODY | {"n": 2})
    assert answer.status_code == 500
    assert SECRET not in answer.text
    assert SECRET in caplog.text
    assert not engine.alive


def test_an_engine_that_stops_is_a_503(scripted: Start) -> None:
    _, http = scripted(failing("abort", after="Hello"))
    assert http.post(CHAT, json=BODY).status_code == 503
    assert '"code":"engine_unavailable"' in http.post(CHAT, json=BODY | {"stream": True}).text


def test_a_bug_is_a_plain_500_with_its_request_id(scripted: Start, caplog: pytest.LogCaptureFixture) -> None:
    class Buggy(ScriptedEngine):
        def submit_choices(self, prompt_token_ids: Any, choices: Any, **more: Any) -> list[Generation]:
            raise ZeroDivisionError(SECRET)

    _, http = scripted(lambda folder: Buggy(folder, lambda _prompt, _sampling: []))
    with caplog.at_level(logging.ERROR, "qwench"):
        answer = http.post(CHAT, json=BODY, headers={"x-request-id": "abc-1"})
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "abc-1"
    assert "abc-1" in answer.json()["error"]["message"]
    assert SECRET not in answer.text
    assert "Traceback" not in answer.text
    assert "ZeroDivisionError" in caplog.text


def test_a_bug_inside_a_stream_is_an_error_event(scripted: Start, caplog: pytest.LogCaptureFixture) -> None:
    engine, http = scripted(answering("Hello"))
    engine.script = lambda _prompt, _sampling: [TokenEvent((1,), ("not a logprob",))]  # type: ignore[arg-type]
    with caplog.at_level(logging.ERROR, "qwench"):
        text = http.post(CHAT, json=BODY | {"stream": True, "logprobs": True}).text
    assert '"code":"internal_error"' in text.strip().splitlines()[-1]
    assert "AttributeError" in caplog.text
    assert "AttributeError" not in text


def test_while_loading_health_shows_progress_and_requests_are_told_to_wait(scripted: Start) -> None:
    engine, http = scripted(answering("Hello"))
    engine.become(EngineStatus("loading", 0.25))
    health = http.get("/health")
    assert (health.status_code, health.json()["status"], health.json()["progress"]) == (503, "loading", 0.25)
    answer = http.post(CHAT, json=BODY)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] == "engine_unavailable"
    assert http.get("/v1/models").status_code == 200
    engine.become(EngineStatus("ready", 1.0))
    health = http.get("/health")
    assert (health.status_code, health.json()["status"]) == (200, "ready")
    assert health.json()["config"]["model"] == NAME
    assert str(engine.files) not in health.text
    assert http.post(CHAT, json=BODY).status_code == 200


def test_leaving_in_the_middle_of_a_body_is_no_failure(scripted: Start, caplog: pytest.LogCaptureFixture) -> None:
    engine, http = scripted(answering("Hello"))
    with caplog.at_level(logging.DEBUG, "qwench"):
        with socket.create_connection((http.base_url.host, http.base_url.port or 0)) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        assert http.post(CHAT, json=BODY).status_code == 200
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    assert len(engine.submitted) == 1


def test_stopping_the_server_ends_running_streams_with_an_error_event(text_folder: Path) -> None:
    from qwench.server.service import ServerSettings
    from tests.server.conftest import running

    class Closing(ScriptedEngine):
        def close(self) -> None:
            super().close()
            self.go.set()

    def script(_prompt: str, sampling: SamplingParams) -> Iterator[TokenEvent | threading.Event]:
        yield from engine.spell("Hello", sampling)[:-1]
        yield engine.go
        yield TokenEvent(finish_reason="error", error="the engine was closed")

    engine = Closing(text_folder, script)
    lines: list[str] = []
    with running(engine, engine.text, ServerSettings(names=(NAME,))) as address:
        begun = threading.Event()

        def read() -> None:
            with httpx.stream("POST", f"{address}{CHAT}", json=BODY | {"stream": True}, timeout=20) as answer:
                for line in answer.iter_lines():
                    lines.append(line)
                    if "Hello"[:1] in line:
                        begun.set()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        assert begun.wait(20)
    reader.join(20)
    assert '"code":"engine_unavailable"' in [line for line in lines if line][-1]


def test_an_engine_that_stands_still_is_not_healthy(
    engine: EngineClient, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine._engine is not None
    runner, go = engine._engine.runner, threading.Event()
    run = runner.run

    def standing(step: Any) -> Any:
        assert go.wait(20)
        return run(step)

    monkeypatch.setattr("qwench.engine.client.STUCK_SECONDS", 0.2)
    monkeypatch.setattr(engine._engine, "lasted", 0.0)
    monkeypatch.setattr(runner, "run", standing)
    asking = threading.Thread(target=http.post, args=(CHAT,), kwargs={"json": BODY | {"max_tokens": 1}})
    asking.start()
    wait_until(lambda: http.get("/health").status_code == 503)
    told = http.get("/health").json()
    assert (told["status"], told["model"]) == ("stuck", NAME)
    assert "has not finished a step for" in told["reason"]
    go.set()
    asking.join(20)
    assert http.get("/health").status_code == 200
    assert engine.stuck_for == 0.0
