"""Qwen-Agent before a server of nano: it reads reasoning_content, and joins the pieces of a call by its id."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytestmark = pytest.mark.slow
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city now",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture
def model(address: str) -> Any:
    llm = pytest.importorskip("qwen_agent.llm", reason="qwen-agent is not installed: `make clients`")
    settings = {"use_raw_api": True, "temperature": 0, "extra_body": {"enable_thinking": True}}
    return llm.get_chat_model(
        {
            "model": "nano",
            "model_server": f"{address}/v1",
            "api_key": "none",
            "model_type": "oai",
            "generate_cfg": settings,
        }
    )


def last(pieces: Any) -> list[dict[str, Any]]:
    """What the last of growing answers says."""
    found: list[dict[str, Any]] = []
    for piece in pieces:
        found = [dict(message) for message in piece]
    return found


def test_thoughts_and_answer_come_apart(model: Any) -> None:
    told = last(model.chat(messages=[{"role": "user", "content": "What is 47 + 38?"}], stream=True))
    assert any(message.get("reasoning_content") for message in told)
    assert "85" in told[-1]["content"]


def test_a_function_is_called_and_its_result_told(model: Any) -> None:
    asked = [{"role": "user", "content": "What is the weather in Paris?"}]
    told = last(model.chat(messages=asked, functions=[WEATHER], stream=True))
    call = next(message["function_call"] for message in told if message.get("function_call"))
    assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "Paris"})
    extra = next(message.get("extra") or {} for message in told if message.get("function_call"))
    result = {
        "role": "function",
        "name": "get_weather",
        "content": '{"temperature": 21, "sky": "sunny"}',
        "extra": extra,
    }
    assert "21" in last(model.chat(messages=[*asked, *told, result], functions=[WEATHER], stream=True))[-1]["content"]
