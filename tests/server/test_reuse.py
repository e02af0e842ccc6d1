"""What was reused is said everywhere: usage, timings, header, comment, log, metrics."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.server.conftest import NAME, Start
from tests.server.scripted import answering

GREEDY: dict[str, Any] = {"model": NAME, "temperature": 0, "max_tokens": 3}


def messages(topic: str, *more: str) -> list[dict[str, Any]]:
    """A conversation whose system prompt is long enough to be worth keeping."""
    roles = ("user", "assistant")
    system = {"role": "system", "content": f"{topic} I think, therefore I stop. " * 12}
    return [system, *({"role": roles[at % 2], "content": text} for at, text in enumerate(("Hello.", *more)))]


def test_a_second_turn_says_what_it_reused(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    first = http.post("/v1/chat/completions", json={**GREEDY, "messages": messages("First.")})
    assert first.json()["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    second = {**GREEDY, "messages": messages("First.", "Good day.", "What is the answer?")}
    with caplog.at_level(logging.INFO, "qwench"):
        answer = http.post("/v1/chat/completions", json=second)
    body = answer.json()
    total, cached = body["usage"]["prompt_tokens"], body["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert total - cached < total / 2
    assert (body["timings"]["cache_n"], body["timings"]["prompt_n"]) == (cached, total - cached)
    told = answer.headers["x-qwench-cache"]
    assert told == f"reused {cached} of {total} tokens"
    assert told in caplog.text
    other = messages("First.")
    other[0]["content"] += " Speak French."
    third = {**GREEDY, "messages": other, "stream": True}
    comment = next(line for line in http.post("/v1/chat/completions", json=third).text.splitlines() if "reused" in line)
    assert comment.startswith(": reused 0 of ")
    assert comment.endswith(" inside message 1 (system)")


def test_reuse_changes_no_answer(openai: OpenAI) -> None:
    asked: Any = messages("Second.", "Good day.", "What is the answer?")
    answers = [
        openai.chat.completions.create(messages=asked, logprobs=True, top_logprobs=2, **GREEDY).choices[0].logprobs
        for _ in range(3)
    ]
    assert answers[0] == answers[1] == answers[2]


def test_choices_share_the_prompt(http: httpx.Client) -> None:
    before = metrics(http)
    body = {**GREEDY, "messages": messages("Third."), "n": 4, "temperature": 1.0}
    usage = http.post("/v1/chat/completions", json=body).json()["usage"]
    computed = metrics(http)["qwench_prompt_tokens_computed_total"] - before["qwench_prompt_tokens_computed_total"]
    assert computed < usage["prompt_tokens"] + 4
    assert usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"] / 2  # the first read it


def test_marks_of_the_client_are_understood_and_kept(http: httpx.Client) -> None:
    asked = messages("Fourth.", "Good day.", "What is the answer?")
    asked[2]["cache_control"] = {"type": "ephemeral"}
    answer = http.post("/v1/chat/completions", json={**GREEDY, "messages": asked})
    assert answer.status_code == 200
    assert "cache mark" not in answer.headers.get("x-qwench-warnings", "")


def test_what_nobody_goes_on_from_is_told_to_the_engine(scripted: Start) -> None:
    engine, http = scripted(answering("Hello"))
    hello, errand = "What is the answer?", "### Task:\nSuggest a title for this chat."
    for content, tier, expected in (
        (hello, None, False),
        (hello, "flex", True),
        (hello, "auto", False),
        (errand, None, True),
    ):
        body = {"messages": [{"role": "user", "content": content}], "service_tier": tier}
        assert http.post("/v1/chat/completions", json=body).status_code == 200
        assert engine.background == expected
    http.post("/v1/completions", json={"prompt": hello, "service_tier": "flex"})
    assert engine.background


def metrics(http: httpx.Client) -> dict[str, float]:
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#") and "{" not in line)
    assert all(f"# HELP {name} " in answer.text and f"# TYPE {name} " in answer.text for name in values)
    return {name: float(value) for name, value in values.items()}


def test_metrics_count_reuse(http: httpx.Client) -> None:
    asked = {**GREEDY, "messages": messages("Fifth.")}
    http.post("/v1/chat/completions", json=asked)
    before = metrics(http)
    cached = http.post("/v1/chat/completions", json=asked).json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    after = metrics(http)
    assert after["qwench_prompt_tokens_reused_total"] - before["qwench_prompt_tokens_reused_total"] == cached > 0
    assert 0 < after["qwench_cache_snapshots_used"] <= after["qwench_cache_snapshots"]
