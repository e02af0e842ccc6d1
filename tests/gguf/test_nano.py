"""nano as a GGUF file, end to end: the answers of the folder, from Python and from the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qwench import LLM, SamplingParams
from qwench.errors import CheckpointError

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


def test_the_command_takes_a_file(nano_f32: Path) -> None:
    arguments = ["chat", str(nano_f32), "-p", QUESTIONS[0], "--temperature", "0", "--max-tokens", "20", "--json"]
    done = subprocess.run([sys.executable, "-m", "qwench", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["content"].strip()
    assert document["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize(
    ("damage", "status", "sentence"),
    [
        (b"GGUF", 4, "nano.gguf is truncated: the version would end at byte 8, but the file has 4"),
        (b"PK\x03\x04" + bytes(100), 4, "nano.gguf is not a GGUF file: it begins with b'PK"),
        (None, 5, "nano.gguf: there is no such file; check the path"),
    ],
)
def test_a_damaged_file_is_one_line_and_its_exit_code(
    damage: bytes | None, status: int, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "nano.gguf"
    if damage is not None:
        path.write_bytes(damage)
    command = [sys.executable, "-m", "qwench", "chat", str(path), "-p", "Hello"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert len(done.stderr.strip().splitlines()) == 1
    assert sentence in done.stderr
    assert not done.stdout


def test_quantising_what_is_quantised_is_refused(nano_q8: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nano-Q8_0\.gguf is quantised already \(Q8_0\); leave quantization out"):
        LLM(model=str(nano_q8), quantization="q4", max_model_len=64, max_num_seqs=1)
