"""One side of a comparison as a process of its own, so that its peak memory is its own: loads, then a sample per line.

It reads JSON lines from standard input (first what to load, then rows) and answers each with one on standard output;
at the end of its input it tells its facts. Run by bench/compare as ``python -m qwench.bench.side``.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from qwench.bench.cost import EVERY_EXPERT, cost_of
from qwench.bench.rows import WARM_STEPS, Row
from qwench.bench.subject import (
    Choice,
    Subject,
    build,
    first_token,
    measure,
    peak_memory_bytes,
    plain_config,
    published_shape,
)
from qwench.plan.work import weight_bytes

Measure = Callable[[Row, int], float | None]
TRANSFORMERS_DEPTH = 512  # its prompts are so slow that deeper rows would take many minutes


def main() -> int:
    order = json.loads(sys.stdin.readline())
    choice, rows = Choice(**order["choice"]), [Row(**row) for row in order["rows"]]
    if order["side"] == "limits":
        _answer(_limits(choice))
        return 0
    if order["side"] == "first token":
        _answer({"load_seconds": first_token(choice)})
        return 0
    take, facts = _qwench(choice, rows) if order["side"] == "qwench" else _transformers(choice)
    _answer({})
    for line in sys.stdin:
        task = json.loads(line)
        _answer({"tokens_per_second": take(Row(**task["row"]), task["seed"])})
    _answer({**facts, "torch": version("torch"), "peak_memory_bytes": peak_memory_bytes()})
    return 0


def _limits(choice: Choice) -> dict[str, Any]:
    """The machine's limits with every thread this process may use."""
    from qwench.device import usable_threads
    from qwench.engine.resolve import resolve_device
    from qwench.ops.limits import measure_limits

    return dataclasses.asdict(measure_limits(resolve_device(plain_config(choice)).value, usable_threads()))


def _answer(document: dict[str, Any]) -> None:
    print(json.dumps(document), flush=True)


def _qwench(choice: Choice, rows: Sequence[Row]) -> tuple[Measure, dict[str, Any]]:
    """The engine itself, as `qwench bench` drives it."""
    subject = build(choice, rows)
    return lambda row, seed: measure(subject, row, seed), facts_of(subject, rows)


def facts_of(subject: Subject, rows: Sequence[Row]) -> dict[str, Any]:
    """What a document says about our own side beside its speeds; ``costs`` row by row."""
    from qwench import __version__

    return {
        "version": __version__,
        "settings": [str(choice) for choice in subject.resolved.choices],
        "load_seconds": subject.load_seconds,
        "weight_bytes": weight_bytes(subject.model, subject.bits, EVERY_EXPERT),
        "arithmetic": subject.arithmetic,
        "costs": [
            dataclasses.asdict(cost_of(row, subject.model, subject.read(row), subject.storage.spec)) for row in rows
        ],
    }


def _transformers(choice: Choice) -> tuple[Measure, dict[str, Any]]:
    """transformers' eager classes with random weights of the same shape, greedy by hand."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    assert choice.shape is not None
    config = transformers.Qwen3_5TextConfig(**text_config(choice.shape, choice.layers))
    torch.set_default_dtype(torch.bfloat16)
    start = time.perf_counter()
    model = transformers.Qwen3_5ForCausalLM(config).eval()
    facts = {"version": version("transformers"), "load_seconds": time.perf_counter() - start}

    def take(row: Row, _seed: int) -> float | None:
        if row.depth > TRANSFORMERS_DEPTH:
            return None
        prompt = torch.randint(config.vocab_size, (row.batch, row.prefill or max(1, row.depth)))
        with torch.inference_mode():
            start = time.perf_counter()
            out = model(prompt, use_cache=True, logits_to_keep=1)
            if row.prefill:
                return row.prefill / (time.perf_counter() - start)
            for step in range(WARM_STEPS + row.decode):
                if step == WARM_STEPS:
                    start = time.perf_counter()
                token = out.logits[:, -1].argmax(-1, keepdim=True)
                out = model(token, past_key_values=out.past_key_values, use_cache=True)
            return row.batch * row.decode / (time.perf_counter() - start)

    take(Row(decode=1), 0)
    return take, facts


def text_config(shape: str, layers: int | None) -> dict[str, Any]:
    """The fields of transformers' text configuration for a published shape."""
    model = published_shape(shape, layers)
    assert model.delta is not None, f"{shape} is no Qwen3.5 shape"
    assert model.moe is None, f"{shape} has experts; this comparison is about dense models"
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "layer_types": list(model.layer_types),
        "linear_num_key_heads": model.delta.num_key_heads,
        "linear_num_value_heads": model.delta.num_value_heads,
        "linear_key_head_dim": model.delta.key_head_dim,
        "linear_value_head_dim": model.delta.value_head_dim,
        "linear_conv_kernel_dim": model.delta.conv_kernel,
        "tie_word_embeddings": model.tie_embeddings,
        "dtype": "bfloat16",
    }


def order(side: str, choice: Choice, rows: Sequence[Row], **more: object) -> str:
    """The first line for a process of this file."""
    told = {"side": side, "choice": dataclasses.asdict(choice), "rows": [vars(row) for row in rows]}
    return json.dumps(told | more)


def order_with_config(side: str, choice: Choice, rows: Sequence[Row]) -> str:
    """The first line for a process that does not know our shapes."""
    assert choice.shape is not None
    longest = max(row.longest for row in rows) + 8
    return order(side, choice, rows, text_config=text_config(choice.shape, choice.layers), longest=longest)


if __name__ == "__main__":
    sys.exit(main())
