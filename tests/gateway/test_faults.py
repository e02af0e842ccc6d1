"""Upstreams that fail in every way, at random: each attempt is one row of the ledger, each request has an answer."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from qwench.fault import planned
from qwench.gateway import tables
from qwench.gateway.chain import verify
from qwench.server.naming import Names
from qwench.server.reply import warning_header
from tests.gateway.conftest import Start, tiers
from tests.gateway.standin import Act, Exchange, completion, event, openai_events, refused_url, standing_in, well

ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "What is one and one?"}]}


async def half(exchange: Exchange) -> None:
    if exchange.seen.body.get("stream"):
        await exchange.events(openai_events("m")[: random.randrange(1, 6)], end=False)
    else:
        await exchange.head(200, "application/json", 500)
        exchange.writer.write(json.dumps(completion("m")).encode()[:200])
    exchange.writer.close()


async def reset(exchange: Exchange) -> None:
    exchange.writer.transport.abort()


async def slow(exchange: Exchange) -> None:
    await asyncio.sleep(0.02)
    await well(exchange)


async def silent(exchange: Exchange) -> None:
    await asyncio.sleep(1.0)


async def busy(exchange: Exchange) -> None:
    await exchange.whole({"error": {"message": "busy"}}, 429, "retry-after: 0\r\n")


async def broken(exchange: Exchange) -> None:
    await exchange.whole({"error": {"message": "broken"}}, random.choice((500, 502, 503, 529)))


async def garbage(exchange: Exchange) -> None:
    if exchange.seen.body.get("stream"):
        await exchange.events([b"data: {not json\n\n"])
    else:
        await exchange.whole(b"<html>no</html>")


async def misshapen(exchange: Exchange) -> None:
    told: object = random.choice(({"choices": []}, {"choices": "none"}, {"choices": [{"index": 0}]}, [], {"hello": 1}))
    if exchange.seen.body.get("stream"):
        await exchange.events([event(told)])
    else:
        await exchange.whole(told)


async def told(exchange: Exchange) -> None:
    error = {"error": {"message": "the model fell over", "code": 500}}
    if exchange.seen.body.get("stream"):
        await exchange.events([*openai_events("m")[: random.randrange(4)], event(error)])
    else:
        await exchange.whole(error)


async def headers(exchange: Exchange) -> None:
    await exchange.head(200, "application/json", 2, f"x-long: {'x' * 2_000_000}\r\n")


FAULTS: tuple[Act, ...] = (half, reset, slow, silent, busy, broken, garbage, misshapen, told, headers)


def at_random(rng: random.Random) -> Act:
    """Half of the answers are well; the others are everything that can go wrong."""

    async def act(exchange: Exchange) -> None:
        await (rng.choice(FAULTS) if rng.random() < 0.5 else well)(exchange)

    return act


async def storm(url: str, requests: int, rng: random.Random) -> list[tuple[int, int, str]]:
    """For every request its status, how many attempts it was told, and its task; some clients leave early."""
    limits = httpx.Limits(max_connections=32)

    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60, trust_env=False) as client:
        gate = asyncio.Semaphore(32)

        async def one(number: int) -> tuple[int, int, str]:
            task = f"t{number}"
            body = {**ASKED, "stream": rng.random() < 0.5}
            path = rng.choice(("/v1/chat/completions", "/v1/messages"))
            body["max_tokens"] = 50
            async with gate, client.stream("POST", path, json=body, headers={"x-qwench-task": task}) as answer:
                if rng.random() < 0.1:
                    return 0, 0, task  # leaves
                text = (await answer.aread()).decode()
                if answer.status_code != 200:
                    assert "error" in json.loads(text)
                return answer.status_code, int(answer.headers["x-qwench-attempts"]), task

        return await asyncio.gather(*(one(number) for number in range(requests)))


def hold_the_storm(start: Start, requests: int, ledger: str = "") -> None:
    rng = random.Random(requests)
    random.seed(requests)
    with standing_in(at_random(rng)) as own, standing_in(at_random(rng)) as other:
        text = tiers(own.url, other.url, more=f'[tiers.gone]\nkind = "openai"\nurl = "{refused_url()}"\n')
        text += '[[models]]\ntier = "gone"\nmodel = "none"\n'
        text = text.replace("retries = 0", "retries = 1\nfirst = 0.3\nidle = 0.3\nfailures = 1000000")
        running = start(text.replace('"ledger.sqlite"', f'"{ledger}"') if ledger else text)
        found = asyncio.run(storm(running.url, requests, rng))
        rows, seen = running.rows(), len(own.seen) + len(other.seen)
        with running.ledger.store.reading() as connection:
            pending = connection.execute(sa.select(sa.func.count()).select_from(tables.PENDING)).scalar()
        whole = verify(running.ledger.store)
    assert len(found) == requests
    assert pending == 0
    assert whole.whole, whole.wrong
    assert len({row["id"] for row in rows}) == len(rows)
    per_task = Counter(row["task"] for row in rows)
    for status, attempts, task in found:
        if status == 200:
            # A stream's head is sent with its first piece: attempts are those until then, and none comes after.
            assert per_task[task] == attempts, task
        elif status:
            assert per_task[task] == attempts, (status, task)
        else:
            assert per_task[task] >= 1
    assert {status for status, _, _ in found} <= {0, 200, 429, 502, 504}
    assert sum(per_task.values()) >= seen, "every call that an upstream saw has a row"


def test_every_attempt_is_one_row_whatever_upstreams_do(start: Start) -> None:
    hold_the_storm(start, 80)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_attempt_of_ten_thousand_requests_is_one_row(start: Start) -> None:
    hold_the_storm(start, 10_000)


@pytest.mark.parametrize("act", FAULTS, ids=lambda act: act.__name__)
@pytest.mark.parametrize("stream", [False, True])
def test_every_fault_becomes_a_whole_answer(start: Start, act: Act, *, stream: bool) -> None:
    with standing_in(act) as own:
        running = start(tiers(own.url).replace("retries = 0", "retries = 0\nfirst = 0.3\nidle = 0.3"))
        answer = httpx.post(f"{running.url}/v1/chat/completions", json={**ASKED, "stream": stream})
        again = httpx.get(f"{running.url}/health")
    if act is slow:
        assert answer.status_code == 200
    elif answer.status_code == 200:
        assert stream
        assert '"error"' in answer.text
        assert "[DONE]" not in answer.text
    else:
        error = answer.json()["error"]
        assert error["message"].startswith("The tier own ")
        assert answer.status_code in (429, 502, 504)
    assert again.status_code == 200


def test_a_call_that_cannot_be_made_is_told(start: Start) -> None:
    with standing_in(well) as own, planned() as plan:
        running = start(tiers(own.url))
        plan.fail("connect.upstream", OSError("no"))
        answer = httpx.post(f"{running.url}/v1/chat/completions", json=ASKED)
        plan.mend("connect.upstream")
        assert httpx.post(f"{running.url}/v1/chat/completions", json=ASKED).status_code == 200
    assert answer.status_code == 502
    assert answer.json()["error"]["message"] == "The tier own broke the connection."


def test_a_deadline_ends_what_takes_longer(start: Start) -> None:
    async def endless(exchange: Exchange) -> None:
        events = openai_events("small")
        await exchange.events([events[0], *events[1:2] * 10_000], pause=0.02)

    with standing_in(endless) as own:
        running = start(tiers(own.url).replace("output = 50", "output = 50\nseconds = 0.1"))
        headers_ = {"x-qwench-deadline": "0.5"}
        answer = httpx.post(f"{running.url}/v1/chat/completions", json={**ASKED, "stream": True}, headers=headers_)
    assert '"error"' in answer.text
    assert 10 < answer.text.count("data: ") < 40


@pytest.mark.parametrize("stream", [False, True])
def test_what_another_model_answers_is_not_sold_as_the_one_that_is_priced(start: Start, *, stream: bool) -> None:
    """A tier that is meant for a paid API and leads to a Qwench, which answers in place of models hosted elsewhere."""
    warned = warning_header(["top_q: unknown field, ignored", *Names(("nano",)).meant("gpt-4o")])

    async def instead(exchange: Exchange) -> None:
        await exchange.whole(completion("nano"), extra="".join(f"{name}: {told}\r\n" for name, told in warned.items()))

    with standing_in(instead) as own:
        running = start(tiers(own.url))
        answer = httpx.post(f"{running.url}/v1/chat/completions", json={**ASKED, "stream": stream})
        rows = running.rows()
    assert answer.status_code == 502
    told = "The tier own leads to a Qwench, where 'nano' would answer in the model's place."
    assert answer.json()["error"]["message"] == told
    assert [(row["error"], row["amount"]) for row in rows] == [("another_model", None)]
    assert json.loads(rows[0]["unknown"])["amount"] == "not reported"
