"""nano as a GGUF file, end to end: the answers of the folder, from Python and from the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qwench import LLM, SamplingParams

QUESTIONS = (
    "What is 17 + 25?",
    "Write a short story about a fox.",
    "What is the capital of France?",
    "Name three colours.",
    "What is the weather in Oslo?",
)
GREEDY = SamplingParams(temperature=0, max_tokens=60)


def answers(model: str) -> list[list[int]]:
    llm = LLM(model=model, max_num_seqs=5, max_model_len=512)
    try:
        messages: list[list[dict[str, Any]]] = [[{"role": "user", "content": question}] for question in QUESTIONS]
        outputs = llm.chat(messages, GREEDY, use_tqdm=False, enable_thinking=False)
        return [output.outputs[0].token_ids for output in outputs]
    finally:
        llm.client.close()


def test_the_same_greedy_answers(nano_f32: Path) -> None:
    assert answers(str(nano_f32)) == answers("nano")


def test_eight_bits_answer_too(nano_q8: Path) -> None:
    """Rounded weights may choose another word somewhere; most first words stay."""
    found, expected = answers(str(nano_q8)), answers("nano")
    assert sum(ours[:5] == theirs[:5] for ours, theirs in zip(found, expected, strict=True)) >= 3


@pytest.mark.parametrize("command", ["chat"])
def test_the_command_takes_a_file(command: str, nano_f32: Path) -> None:
    arguments = [command, str(nano_f32), "-p", QUESTIONS[0], "--temperature", "0", "--max-tokens", "20", "--json"]
    done = subprocess.run([sys.executable, "-m", "qwench", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["content"].strip()
    assert document["usage"]["completion_tokens"] > 0
