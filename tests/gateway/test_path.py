"""From a client through the gateway to an upstream and back: both faces, both dialects, streamed and whole."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.gateway.conftest import Running, Start, tiers
from tests.gateway.standin import WORDS, Exchange, failing, openai_events, saying, standing_in, well

TEXT = "".join(WORDS)
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "What is one and one?"}]}


def client_of(running: Running) -> OpenAI:
    return OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


def test_an_answer_says_who_gave_it_why_and_what_it_cost(start: Start) -> None:
    with standing_in(well) as own:
        running = start(tiers(own.url))
        answer = httpx.post(f"{running.url}/v1/chat/completions", json=ASKED)
    assert answer.status_code == 200
    told = answer.json()
    assert told["choices"][0]["message"]["content"] == TEXT
    receipt = told["usage"]["qwench"]
    assert receipt["tier"] == "own"
    assert receipt["option"] == "own/small"
    assert receipt["cost"] == pytest.approx((20 * 0.1 + len(WORDS) * 0.2) / 1e6)
    assert answer.headers["x-qwench-tier"] == "own"
    assert answer.headers["x-qwench-cost"].endswith(" USD")
    assert answer.headers["x-qwench-because"] == "nothing else is open"
    (row,) = running.rows()
    assert (row["task"], row["tier"], row["status"]) == (receipt["task"], "own", "completed")


def test_a_stream_is_the_upstreams_and_its_receipt_is_a_comment_or_usage(start: Start) -> None:
    with standing_in(well) as own:
        running = start(tiers(own.url))
        with httpx.stream("POST", f"{running.url}/v1/chat/completions", json={**ASKED, "stream": True}) as answer:
            assert answer.headers["x-qwench-tier"] == "own"
            text = answer.read().decode()
        assert text.endswith("data: [DONE]\n\n")
        assert json.loads(text.partition(": qwench ")[2].partition("\n")[0])["option"] == "own/small"
        assert '"usage"' not in text
        chunks = list(
            client_of(running).chat.completions.create(
                model="auto", messages=ASKED["messages"], stream=True, stream_options={"include_usage": True}
            )
        )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == len(WORDS)
    assert usage.model_extra is not None
    assert usage.model_extra["qwench"]["cost"] > 0
    assert [row["status"] for row in running.rows()] == ["completed"] * 2


def test_pieces_come_as_the_upstream_sends_them(start: Start) -> None:
    async def slowly(exchange: Exchange) -> None:
        await exchange.events(openai_events("small"), pause=0.05)

    with standing_in(slowly) as own:
        running = start(tiers(own.url))
        with httpx.stream("POST", f"{running.url}/v1/chat/completions", json={**ASKED, "stream": True}) as answer:
            times = [time.monotonic() for _ in answer.iter_lines()]
    assert times[-1] - times[0] > 0.05 * len(WORDS) * 0.8, "the stream came in one piece"


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_anthropic_client_is_answered_by_either_dialect(start: Start, kind: str, *, stream: bool) -> None:
    body = {"model": "premium", "max_tokens": 100, "system": "Be brief.", **ASKED, "stream": stream}
    with standing_in(well) as upstream:
        running = start(tiers(upstream.url, upstream.url, kind=kind))
        answer = httpx.post(f"{running.url}/v1/messages", json=body)
        sent = upstream.seen[-1]
    assert answer.status_code == 200, answer.text
    assert sent.path == ("/v1/messages" if kind == "anthropic" else "/v1/chat/completions")
    assert sent.body["model"] == "large"
    if not stream:
        told = answer.json()
        assert [block["text"] for block in told["content"]] == [TEXT]
        assert told["stop_reason"] == "end_turn"
        usage = told["usage"]
    else:
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
        assert [each["type"] for each in (events[0], *events[-2:])] == [
            "message_start",
            "message_delta",
            "message_stop",
        ]
        said = [each["delta"]["text"] for each in events if each["type"] == "content_block_delta"]
        assert "".join(said) == TEXT
        usage = events[-2]["usage"]
    assert usage["output_tokens"] == len(WORDS)
    assert usage["qwench"]["cost"] == pytest.approx((20 * 10 + len(WORDS) * 30) / 1e6)


@pytest.mark.parametrize("stream", [False, True])
def test_an_openai_client_is_answered_by_anthropic(start: Start, *, stream: bool) -> None:
    with standing_in(well) as upstream:
        running = start(tiers(upstream.url, upstream.url, kind="anthropic"))
        create = client_of(running).chat.completions.create
        if stream:
            chunks = list(create(model="premium/large", messages=ASKED["messages"], stream=True, max_tokens=9))
            said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            assert chunks[-1].choices[0].finish_reason == "stop"
        else:
            answer = create(model="premium/large", messages=ASKED["messages"], max_tokens=9)
            said = answer.choices[0].message.content or ""
        assert upstream.seen[-1].headers["anthropic-version"]
    assert said == TEXT
    assert [(row["tier"], row["output"]) for row in running.rows()] == [("premium", len(WORDS))]


def test_another_tier_stands_in_before_the_first_word(start: Start) -> None:
    with standing_in(failing(500)) as broken, standing_in(well) as well_:
        running = start(tiers(broken.url, well_.url))
        for stream in (False, True):
            body = {"messages": [{"role": "user", "content": f"Stream: {stream}"}], "stream": stream}
            answer = httpx.post(f"{running.url}/v1/chat/completions", json=body)
            assert answer.status_code == 200
            assert answer.headers["x-qwench-tier"] == "premium"
            assert answer.headers["x-qwench-attempts"] == "2"
    assert [(row["tier"], row["error"] or "") for row in running.rows()] == [("own", "http_500"), ("premium", "")] * 2


def test_an_upstream_is_asked_again_after_a_fault_that_may_pass(start: Start) -> None:
    with standing_in(failing(503, times=1)) as own:
        running = start(tiers(own.url).replace("retries = 0", "retries = 2"))
        answer = httpx.post(f"{running.url}/v1/chat/completions", json=ASKED)
    assert answer.status_code == 200
    assert [row["status"] for row in running.rows()] == ["failed", "completed"]
    assert running.rows()[1]["parent"] == running.rows()[0]["id"]


def test_an_upstream_that_fails_often_is_left_alone_for_a_while(start: Start) -> None:
    with standing_in(failing(500)) as broken, standing_in(well) as well_:
        text = tiers(broken.url, well_.url).replace("retries = 0", "retries = 0\nfailures = 2\npause = 100", 1)
        running = start(text)
        for number in range(5):
            body = {"messages": [{"role": "user", "content": f"What is one and {number}?"}]}
            assert httpx.post(f"{running.url}/v1/chat/completions", json=body).status_code == 200
        state = httpx.get(f"{running.url}/admin/state").json()
    assert len(broken.seen) == 2
    assert state["tiers"] == {"own": "resting", "premium": "ok"}


def test_a_client_that_leaves_is_told_to_the_upstream_and_written_down(start: Start) -> None:
    async def endless(exchange: Exchange) -> None:
        events = openai_events("small")
        await exchange.events([events[0], *events[1:2] * 10_000], pause=0.02)

    with standing_in(endless) as own:
        running = start(tiers(own.url))
        with httpx.stream("POST", f"{running.url}/v1/chat/completions", json={**ASKED, "stream": True}) as answer:
            next(answer.iter_lines())
        until = time.monotonic() + 5
        while not (own.left and running.rows()) and time.monotonic() < until:
            time.sleep(0.02)
    assert own.left == 1
    (row,) = running.rows()
    assert (row["status"], row["error"]) == ("cancelled", "cancelled")
    assert row["amount"] is None, "nobody said what it cost"


def test_a_stream_that_breaks_after_its_first_word_ends_with_an_error(start: Start) -> None:
    async def half(exchange: Exchange) -> None:
        await exchange.events(openai_events("small")[:3], end=False)
        exchange.writer.close()

    with standing_in(half) as own, standing_in(well) as other:
        running = start(tiers(own.url, other.url))
        text = httpx.post(f"{running.url}/v1/chat/completions", json={**ASKED, "stream": True}).text
    last = json.loads(text.strip().splitlines()[-1].removeprefix("data: "))
    assert last["error"]["code"] == "upstream_failed"
    assert "[DONE]" not in text
    assert not other.seen
    assert [row["error"] for row in running.rows()] == ["half_an_answer"]


def test_an_upstreams_key_is_sent_and_never_told(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    secret = "sk-very-secret-indeed"

    async def echo(exchange: Exchange) -> None:
        told = exchange.seen.headers.get("authorization", "")
        await exchange.whole({"error": {"message": f"bad key {told}"}}, 400)

    with standing_in(echo) as own:
        text = tiers(own.url).replace("retries = 0", 'retries = 0\nkey_env = "OWN_KEY"')
        running = start(text, env={"OWN_KEY": secret})
        answer = httpx.post(f"{running.url}/v1/chat/completions", json=ASKED)
        assert own.seen[0].headers["authorization"] == f"Bearer {secret}"
    assert answer.status_code == 400
    assert "bad key" in answer.text
    places = [answer.text, str(dict(answer.headers)), *capfd.readouterr(), repr(running.house.settings)]
    assert not [place for place in places if secret in place]
    assert secret.encode() not in running.where.read_bytes()


@pytest.mark.parametrize(
    ("status", "shown", "code"),
    [
        (400, 400, "upstream_refused"),
        (401, 502, "upstream_failed"),
        (429, 429, "upstream_busy"),
        (500, 502, "upstream_failed"),
    ],
)
def test_a_status_of_the_upstream_becomes_one_for_the_client(start: Start, status: int, shown: int, code: str) -> None:
    with standing_in(failing(status, extra="retry-after: 30\r\n")) as own:
        running = start(tiers(own.url))
        answer = httpx.post(f"{running.url}/v1/chat/completions", json=ASKED)
        stream = httpx.post(f"{running.url}/v1/chat/completions", json={**ASKED, "stream": True})
        spoken = httpx.post(f"{running.url}/v1/messages", json={**ASKED, "max_tokens": 5})
    for each in (answer, stream):
        assert each.status_code == shown
        assert each.json()["error"]["code"] == code
    if status == 429:
        assert answer.headers["retry-after"] == "30"
    assert spoken.status_code == shown
    assert spoken.json()["type"] == "error"


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        "many",
        {"prompt_tokens": -1, "completion_tokens": 4},
        {"prompt_tokens": "20", "completion_tokens": 4},
        {"prompt_tokens": 20, "completion_tokens": 0},
    ],
)
def test_usage_that_cannot_be_believed_is_unknown_and_not_zero(start: Start, usage: object) -> None:
    async def lies(exchange: Exchange) -> None:
        message = {"role": "assistant", "content": "A long answer. " * 40}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        await exchange.whole({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage})

    with standing_in(lies) as own:
        running = start(tiers(own.url))
        answer = httpx.post(f"{running.url}/v1/chat/completions", json=ASKED)
    assert answer.status_code == 200
    assert answer.headers["x-qwench-cost"] == "unknown"
    assert answer.json()["usage"]["qwench"]["cost"] is None
    assert running.rows()[0]["amount"] is None


def test_models_lists_what_may_be_asked_for(start: Start) -> None:
    with standing_in(well) as own:
        running = start(tiers(own.url, own.url))
        client = client_of(running)
        names = [model.id for model in client.models.list()]
        assert names == ["auto", "own/small", "premium/large"]
        answer = client.chat.completions.create(model="premium", messages=ASKED["messages"])
        assert answer.model == "large"
        wrong = httpx.post(f"{running.url}/v1/chat/completions", json={**ASKED, "model": "own/smal"})
    assert wrong.status_code == 404
    assert wrong.json()["error"]["message"].endswith("did you mean own/small?")


def test_an_outcome_is_recorded_and_learnt(start: Start) -> None:
    with standing_in(saying("2")) as own:
        running = start(tiers(own.url, gateway="enough = 1", more="[classes.sums]\nvalue = 1.0\nwords = ['sum']\n"))
        answer = httpx.post(
            f"{running.url}/v1/chat/completions", json=ASKED, headers={"x-qwench-task": "t1", "x-qwench-class": "sums"}
        )
        assert answer.headers["x-qwench-task"] == "t1"
        told = httpx.post(f"{running.url}/v1/outcomes", json={"task": "t1", "verdict": "accepted"})
        assert told.status_code == 200
        assert told.json()["receipt"]
        option = running.house.settings.options["own/small"]
        assert running.house.books.outcomes.posterior("sums", option).seen == 1
        missing = httpx.post(f"{running.url}/v1/outcomes", json={"task": "none", "verdict": "accepted"})
        wrong = httpx.post(f"{running.url}/v1/outcomes", json={"task": "t1", "verdict": "fine"})
    assert missing.status_code == 400
    assert "none" in missing.json()["error"]["message"]
    assert wrong.json()["error"]["message"] == "verdict must be one of accepted, rejected, abandoned."


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({**ASKED, "model": 3}, "model"),
        ({**ASKED, "max_tokens": 0}, "max_tokens"),
        ({**ASKED, "thinking_budget": "many"}, "thinking_budget"),
    ],
)
def test_a_body_that_cannot_be_used_names_the_field(start: Start, body: dict[str, Any], param: str) -> None:
    with standing_in(well) as own:
        running = start(tiers(own.url))
        answer = httpx.post(f"{running.url}/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert not own.seen


def test_the_ledger_is_whole_after_all_that(start: Start) -> None:
    from qwench.gateway.chain import verify
    from qwench.gateway.store import connect

    with standing_in(well) as own:
        running = start(tiers(own.url))
        for _ in range(3):
            httpx.post(f"{running.url}/v1/chat/completions", json=ASKED)
    store = connect(str(running.where), make=False)
    assert verify(store, None).whole
    store.close()
