"""A cache folder survives the process, however it ends, and a restarted engine answers as if it had read everything."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwench import LLM, SamplingParams
from qwench.errors import UsageError

PROMPT = (
    "<|im_start|>system\n" + "Answer in one short sentence. " * 40 + "<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
)
GREEDY = SamplingParams(temperature=0, max_tokens=4, logprobs=1)
SERVING = f"""
import sys, time
from qwench import LLM, SamplingParams
llm = LLM("nano", device="cpu", offline=True, cache_dir=sys.argv[1])
llm.generate({PROMPT!r}, SamplingParams(temperature=0, max_tokens=4), use_tqdm=False)
print("answered", flush=True)
time.sleep(600)
"""


def test_a_killed_engines_states_serve_the_next(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", SERVING, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "answered\n"
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/*.state")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with LLM("nano", device="cpu", offline=True, cache_dir=tmp_path) as llm:
        assert "1 snapshots of this model" in next(line for line in llm.client.banner() if "cache folder" in line)
        again = llm.generate(PROMPT, GREEDY, use_tqdm=False)[0]
        assert llm.client.stats().disk_tokens == again.num_cached_tokens > 100
    with LLM("nano", device="cpu", offline=True, prefix_cache=False) as cold:
        expected = cold.generate(PROMPT, GREEDY, use_tqdm=False)[0]
    assert again.outputs[0].logprobs == expected.outputs[0].logprobs


def test_a_folder_without_a_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cache_dir is set but prefix_cache is off"):
        LLM("nano", offline=True, cache_dir=str(tmp_path), prefix_cache=False)
