"""Sessions of agents and chat programs, request by request as they send them: nothing is refused, nothing read twice.

The files in sessions/ were written from the fields these clients are known to send. ``tells`` is what has to come of a
step; ``goes_on`` says that its prompt begins with the one before and what was answered to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwench.server.service import ServerSettings
from tests.media.files import NANO
from tests.server.conftest import NAME, running
from tests.server.scripted import Seeing

SESSIONS = sorted((Path(__file__).parent / "sessions").glob("*.json"))
WINDOW = 131_072


def told(answer: httpx.Response) -> list[str]:
    """What kinds of things an answer holds, and how it ends."""
    if not answer.content:  # to HEAD
        return []
    if "text/event-stream" not in answer.headers["content-type"]:
        return of_body(answer.json())
    assert '"error":{' not in answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    events = [json.loads(line) for line in lines if line != "[DONE]"]
    if "choices" in events[0]:
        assert lines[-1] == "[DONE]"
        choices = [event["choices"][0] for event in events if event["choices"]]
        kinds = ("reasoning", "content", "tool_calls")
        found = [kind for kind in kinds if any(choice["delta"].get(kind) for choice in choices)]
        assert events[-1]["usage"]["total_tokens"]
        return [*found, choices[-1]["finish_reason"]]
    if events[-1]["type"] == "message_stop":
        blocks = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
        return [*blocks, events[-2]["delta"]["stop_reason"]]
    return of_body(events[-1]["response"])


def of_body(body: dict[str, Any]) -> list[str]:
    if "choices" in body:
        (choice,) = body["choices"]
        kinds = ("reasoning", "content", "tool_calls")
        return [*(kind for kind in kinds if choice["message"].get(kind)), choice["finish_reason"]]
    if "content" in body:
        return [*(block["type"] for block in body["content"]), body["stop_reason"]]
    if "output" in body:
        return [*(item["type"] for item in body["output"]), body["status"]]
    return sorted(body)


class Reciting(Seeing):
    """Says what the step at hand has it say."""

    answer = ""

    def __init__(self) -> None:
        super().__init__(NANO, lambda _prompt, sampling: self.spell(self.answer, sampling), WINDOW)


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Reciting, httpx.Client]]:
    """One server for all of them: its decoders of pictures take a while to start."""
    engine = Reciting()
    with (
        running(engine, engine.text, ServerSettings(names=(NAME,))) as address,
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        yield engine, client


@pytest.mark.parametrize("path", SESSIONS, ids=lambda path: path.stem)
def test_a_session_is_served_to_its_end(served: tuple[Reciting, httpx.Client], path: Path) -> None:
    engine, http = served
    session = json.loads(path.read_text(encoding="utf-8"))
    for number, step in enumerate(session["steps"]):
        said, engine.answer = engine.answer, step.get("answer", "")
        body = step.get("body")
        if "more_tools" in step:
            body["tools"] += [{**body["tools"][-1], "name": f"mcp__tracker__{at}"} for at in range(step["more_tools"])]
        method, _, url = step["request"].partition(" ")
        got = http.request(method, url, json=body, headers=session["headers"])
        assert got.status_code == 200, f"step {number}: {got.text}"
        assert "cannot be held to" not in got.headers.get("x-qwench-warnings", ""), f"step {number}"
        assert told(got) == step["tells"], f"step {number}"
        if step.get("goes_on"):
            assert engine.prompts[-1].startswith(engine.prompts[-2] + said), f"step {number}"


def test_every_client_of_the_list_has_a_session() -> None:
    assert [path.stem for path in SESSIONS] == ["claude_code", "codex", "open_webui", "qwen_code"]
