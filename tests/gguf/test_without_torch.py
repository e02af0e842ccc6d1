"""A model whose weights the native kernels load is started and asked in processes that never load torch."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from qwench.ops.arrays import FLOAT32
from qwench.ops.kernels import native_usable
from tests.meta.tree import ROOT

QUESTION = "What is 17 + 25?"
HEAVY = ("torch", "transformers")
TOLD = f"import sys; print([name for name in {HEAVY} if name in sys.modules])"
SETTINGS: dict[str, dict[str, str]] = {
    "GGUF": {},
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "q4": {"quantization": "q4"},
}
ANSWER = """
import sys
from qwench import LLM, SamplingParams
if {first!r}: __import__({first!r})
with LLM({model!r}, **{settings!r}) as model:
    greedy = SamplingParams(temperature=0, max_tokens=24, logprobs=2)
    drawn = SamplingParams(temperature=1, top_k=20, top_p=0.9, seed=3, presence_penalty=0.5, max_tokens=24)
    asked = [{{"role": "user", "content": {question!r}}}]
    outputs = [model.chat(asked, each, use_tqdm=False)[0].outputs[0] for each in (greedy, drawn)]
print([each.token_ids for each in outputs])
"""


@pytest.fixture(autouse=True, scope="module")
def _native() -> None:
    usable, reason = native_usable("cpu", FLOAT32)
    if not usable:
        pytest.skip(reason)


@pytest.fixture(params=SETTINGS)
def model(request: pytest.FixtureRequest) -> tuple[str, dict[str, str]]:
    name = str(request.getfixturevalue("nano_q8")) if request.param == "GGUF" else "nano"
    return name, SETTINGS[request.param]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}


def printed(code: str) -> list[str]:
    """Lines on standard output of a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_answers_are_the_same_with_torch_and_without(model: tuple[str, dict[str, str]]) -> None:
    name, settings = model

    def answer(first: str) -> list[str]:
        return printed(ANSWER.format(first=first, model=name, settings=settings, question=QUESTION) + TOLD)

    lean, heavy = answer(""), answer("torch")
    assert (lean[-1], heavy[-1]) == ("[]", "['torch']")
    assert lean[:-1] == heavy[:-1]
    greedy, drawn = ast.literal_eval(lean[-2])
    assert greedy
    assert drawn


def test_chat(model: tuple[str, dict[str, str]]) -> None:
    name, settings = model
    arguments = ["chat", name, "-p", QUESTION, "--json", *flags(settings)]
    *_, answer, loaded = printed(f"from qwench.cli import main; assert main({arguments!r}) == 0; {TOLD}")
    assert json.loads(answer)["content"]
    assert loaded == "[]"


def test_serve(nano_q8: Path) -> None:
    """What was loaded is told when the server has ended."""
    arguments = ["serve", str(nano_q8), "--port", "0"]
    code = f"from qwench.cli import main; main({arguments!r}); {TOLD}"
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], env=environment(), **piped) as process:  # type: ignore[call-overload]
        try:
            listening = (re.search(r"listens on (http://\S+)", line) for line in process.stderr)
            address = next(found[1] for found in listening if found)
            with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
                asked: Any = [{"role": "user", "content": QUESTION}]
                answer = client.chat.completions.create(model=str(nano_q8), messages=asked, max_tokens=8)
                assert answer.choices[0].message.content
            process.send_signal(signal.SIGTERM)
            told, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert told.splitlines()[-1] == "[]"


def flags(settings: Mapping[str, str]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", value)]
