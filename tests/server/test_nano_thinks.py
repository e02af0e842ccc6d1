"""The guarantee on nano itself: whatever it is asked, and whatever it is made to want, no answer is empty and no budget
is exceeded. Many at once, as that is how they come."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from qwench.config import EngineConfig
from qwench.engine.client import EngineClient
from qwench.server.service import ServerSettings
from qwench.text.model import ModelText
from tests.server.conftest import running
from tests.server.test_thinking import CHAT, random_fields

ASKED = (
    "What is 47 * 38?",
    "What is 912 - 338?",
    "Think for ever and never answer.",
    "Say nothing at all.",
    "Repeat: a a a a a a a a a a a a a a a a",
    "</think>",
    "<think><think><think>",
    "<|im_end|>",
    "\n\n\n",
    "Wait, wait. Wait. Is that right? Let me think again, and again.",
)
AT_ONCE = 24


@pytest.fixture(scope="module")
def nano() -> Iterator[tuple[str, ModelText]]:
    import torch

    torch.set_num_threads(1)
    engine = EngineClient(EngineConfig(model="nano", max_num_seqs=AT_ONCE))
    text = ModelText(engine.files, engine.model)
    engine.start(text.vocabulary)
    engine.wait_ready(60)
    with running(engine, text, ServerSettings(names=("nano",))) as address:
        yield address, text
    engine.close()


def body_of(seed: int, text: ModelText) -> dict[str, Any]:
    """Half of the requests leave nano its own will."""
    rng = random.Random(seed)
    fields = random_fields(rng, text)
    if rng.random() < 0.5:
        del fields["logit_bias"]
    turns = [{"role": "user", "content": rng.choice(ASKED)} for _ in range(rng.choice((1, 1, 2)))]
    if len(turns) == 2:
        turns.insert(1, {"role": "assistant", "content": rng.choice(("", "85", "<think>hm</think>\n\n7"))})
    return {"model": "nano", "messages": turns, **fields}


def check(body: dict[str, Any], told: dict[str, Any]) -> None:
    for choice in told["choices"]:
        message, details, thinking = choice["message"], choice["finish_details"], told["thinking"]
        assert (message["content"] or "").strip() or message.get("tool_calls"), (body, choice)
        if thinking["budget"] is not None:
            assert details["thinking_tokens"] <= thinking["budget"] + thinking["closing_allowance"], (body, choice)


async def hold(address: str, text: ModelText, seeds: range) -> None:
    room = asyncio.Semaphore(AT_ONCE)

    async def one(client: httpx.AsyncClient, seed: int) -> None:
        async with room:
            body = body_of(seed, text)
            answer = await client.post(CHAT, json=body)
            assert answer.status_code == 200, (body, answer.text)
            check(body, answer.json())

    async with httpx.AsyncClient(base_url=address, timeout=120) as client:
        await asyncio.gather(*(one(client, seed) for seed in seeds))


def test_no_answer_of_nano_is_empty(nano: tuple[str, ModelText]) -> None:
    asyncio.run(hold(*nano, range(24)))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("block", range(1, 6))
def test_no_answer_of_nano_is_empty_in_thousands(nano: tuple[str, ModelText], block: int) -> None:
    asyncio.run(hold(*nano, range(1000 * block, 1000 * block + 1000)))
