"""litellm before a server of nano. It wants an older openai than our other clients, so `make clients` gives it an
environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

PYTHON = Path(__file__).parents[2] / ".venv/litellm/bin/python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"there is no {PYTHON}: `make clients`"),
]
SCRIPT = """
import json, sys
import litellm

address, tool = sys.argv[1], json.loads(sys.argv[2])
hello = [{"role": "user", "content": "What is 47 + 38?"}]
weather = [{"role": "user", "content": "What is the weather in Paris?"}]


def ask(provider, messages, **more):
    base = address if provider == "anthropic" else f"{address}/v1"
    given = {"temperature": 0, "max_tokens": 256, "api_key": "none", "api_base": base, **more}
    return litellm.completion(f"{provider}/nano", messages, **given)


told = {}
for provider in ("openai", "hosted_vllm", "anthropic"):
    whole = ask(provider, hello).choices[0]
    pieces = [piece.choices[0].delta.content or "" for piece in ask(provider, hello, stream=True)]
    calls = ask(provider, weather, tools=[tool]).choices[0].message.tool_calls
    told[provider] = {
        "whole": whole.message.content,
        "pieces": "".join(pieces),
        "calls": [[call.function.name, json.loads(call.function.arguments)] for call in calls or ()],
    }
thinking = ask("hosted_vllm", hello, max_tokens=512, extra_body={"enable_thinking": True}).choices[0].message
told["thinking"] = thinking.reasoning_content
print(json.dumps(told))
"""
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city now",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def test_every_provider_that_can_lead_here_does(address: str) -> None:
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONPATH": ""}
    command = [str(PYTHON), "-c", SCRIPT, address, json.dumps(WEATHER)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert told.pop("thinking")
    for provider, found in told.items():
        assert "85" in found["whole"], provider
        assert found["pieces"] == found["whole"], provider
        assert found["calls"] == [["get_weather", {"city": "Paris"}]], provider
