"""llm-comply: somebody else's list of what these APIs promise, gone through without a complaint."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

COMPLY = Path(sys.executable).with_name("llm-comply")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not COMPLY.exists(), reason="llm-comply is not installed: `make clients`"),
]
ANTHROPIC = ("--auth-header", "x-api-key", "--no-bearer", "-H", "anthropic-version:2023-06-01")


@pytest.mark.parametrize(
    ("form", "path", "more"),
    [
        ("openai-chat", "/v1/chat/completions", ()),
        ("open-responses", "/v1/responses", ()),
        ("anthropic", "/v1/messages", ANTHROPIC),
    ],
)
def test_a_format_is_kept_without_failure_or_warning(address: str, form: str, path: str, more: Sequence[str]) -> None:
    if httpx.post(f"{address}{path}", json={}).status_code == 404:
        pytest.skip(f"this server has no {path}")
    command = [str(COMPLY), "--format", form, "-u", f"{address}/v1", "-k", "none", "-m", "nano", "--json", *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    results = {result["id"]: result for result in json.loads(done.stdout)["results"]}
    complaints = {
        name: (result.get("errors"), result.get("warnings"))
        for name, result in results.items()
        if result["status"] not in {"passed", "skipped"} or (result["status"] == "passed" and result.get("warnings"))
    }
    assert len(results) >= 9
    assert complaints == {}
