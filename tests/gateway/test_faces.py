"""The other faces: responses and raw prompts through a gateway, by the clients people have."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.gateway.conftest import Start, tiers
from tests.gateway.standin import WORDS, Exchange, event, standing_in, well

TEXT = "".join(WORDS)


async def raw(exchange: Exchange) -> None:
    """A server that goes on with prompts."""
    head: dict[str, Any] = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "small"}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    whole = {**head, "choices": [{"index": 0, "text": " upon a time", "finish_reason": "stop"}]}
    if exchange.seen.body.get("stream"):
        last = {**head, "choices": [], "usage": usage}
        await exchange.events([event(whole), event(last), b"data: [DONE]\n\n"])
    else:
        await exchange.whole({**whole, "usage": usage})


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_a_response_is_given_by_either_dialect(start: Start, kind: str) -> None:
    with standing_in(well) as upstream:
        running = start(tiers(upstream.url, upstream.url, kind=kind))
        client = OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        told = client.responses.create(model="premium", input="What is one and one?", max_output_tokens=50)
        with client.responses.stream(model="premium", input="And two?", max_output_tokens=50) as stream:
            kinds = [each.type for each in stream]
            streamed = stream.get_final_response()
        paths = {seen.path for seen in upstream.seen}
    assert paths == {"/v1/messages" if kind == "anthropic" else "/v1/chat/completions"}
    assert told.output_text == streamed.output_text == TEXT
    assert (told.status, streamed.status) == ("completed", "completed")
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    for each in (told, streamed):
        assert each.usage is not None
        assert each.usage.output_tokens == len(WORDS)
        assert (each.usage.model_extra or {})["qwench"]["option"] == "premium/large"
    assert [row["status"] for row in running.rows()] == ["completed"] * 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_raw_prompt_is_gone_on_with_where_that_can_be_done(start: Start, *, stream: bool) -> None:
    with standing_in(raw) as own:
        running = start(tiers(own.url, own.url, kind="anthropic"))
        client = OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        told: Any = client.completions.create(model="auto", prompt="Once", max_tokens=5, stream=stream)
        text = "".join(each.choices[0].text for each in told) if stream else told.choices[0].text
        refused = httpx.post(f"{running.url}/v1/completions", json={"model": "premium", "prompt": "Once"})
    assert text == " upon a time"
    (row,) = running.rows()
    assert (row["tier"], row["output"]) == ("own", 2)
    assert refused.status_code == 403
    assert "has no prompt" in refused.json()["error"]["message"]


def test_a_stream_of_a_response_that_breaks_says_so(start: Start) -> None:
    async def half(exchange: Exchange) -> None:
        said = {"choices": [{"index": 0, "delta": {"content": "One"}, "finish_reason": None}], "id": "x", "model": "m"}
        await exchange.events([event(said)], end=False)
        exchange.writer.close()

    with standing_in(half) as own:
        running = start(tiers(own.url))
        answer = httpx.post(f"{running.url}/v1/responses", json={"input": "Hi", "stream": True})
    assert "event: response.failed" in answer.text
    assert "event: response.completed" not in answer.text
    assert [row["status"] for row in running.rows()] == ["failed"]
