"""Qwench and transformers on the 0.8B shape with random weights, BF16, on the CPU: same work, same run, in turns.

Each side is a process of its own, so that its peak memory is its own; both load once and then take turns, one sample
each, so that a noisy machine disturbs both alike. Prints a table, the ratio and the share of the machine's limits, and
writes every raw sample to bench/results/<date>-<commit>.json. Run by `make bench`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHAPE = "qwen3.5:0.8b"
DECODE_SECONDS = 90.0  # transformers' eager decode may be very slow; a sample ends here with the tokens it has
SIDES = ("qwench", "transformers")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", default=SHAPE, help=f"a published shape (default: {SHAPE})")
    parser.add_argument("--prefill", type=int, default=512, metavar="N")
    parser.add_argument("--decode", type=int, default=64, metavar="N")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="samples of each side (default: 3)")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # the child process of one side
    args = parser.parse_args()
    if args.side:
        serve(args)
        return 0
    document = compare(args)
    path = ROOT / result_file(document)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print("\n".join([*render(document), "", table(document)]))
    return 0


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Start both sides, take samples in turns, and measure the limits at the end."""
    from qwench.cli.bench import commit
    from qwench.device import probe

    sides = {name: Side(name, args) for name in SIDES}
    try:
        for side in sides.values():
            side.ready()
        for run in range(args.runs + 1):  # the first is a warm-up and not counted
            for name, side in sides.items():
                sample = side.sample()
                label = "warm-up" if run == 0 else f"{run}/{args.runs}"
                print(f"  {label:8} {name:13} {describe(sample)}", file=sys.stderr)
                if run:
                    side.samples.append(sample)
        facts = {name: side.close() for name, side in sides.items()}
    finally:
        for side in sides.values():
            side.process.kill()
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "command": sys.argv,
        "machine": vars(probe()),
        "work": {"shape": args.shape, "prefill": args.prefill, "decode": args.decode, "threads": args.threads},
        "sides": {name: {**facts[name], "samples": side.samples} for name, side in sides.items()},
        "limits": limits(args),
    }


class Side:
    """A child process that takes one sample for every line it is sent."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.samples: list[dict[str, Any]] = []
        flags = ("shape", "prefill", "decode", "threads")
        command = [sys.executable, __file__, "--side", name, *(f"--{flag}={getattr(args, flag)}" for flag in flags)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"one side ended early, exit code {self.process.wait()}; its message is above.")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ready(self) -> None:
        self._answer()

    def sample(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("sample\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> dict[str, Any]:
        """End the process; its versions and peak memory."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self._answer()


def serve(args: argparse.Namespace) -> None:
    """The child: load, say so, take a sample per line, tell the facts at the end."""
    import torch

    from qwench import __version__
    from qwench.cli.bench import peak_memory_bytes

    torch.set_num_threads(args.threads)
    samples = qwench_samples(args) if args.side == "qwench" else transformers_samples(args)
    next(samples)
    print(json.dumps({"ready": True}), flush=True)
    for _line in sys.stdin:
        print(json.dumps(next(samples)), flush=True)
    release = __version__ if args.side == "qwench" else version(args.side)
    facts = {"version": release, "torch": version("torch"), "peak_memory_bytes": peak_memory_bytes()}
    print(json.dumps(facts), flush=True)


def qwench_samples(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """First {} when loaded, then a sample per step: the engine itself, as `qwench bench` drives it."""
    from qwench.cli import bench

    flags = argparse.Namespace(shape=args.shape, model="nano", device="cpu", dtype="bfloat16")
    load = bench.Load(args.prefill, args.decode, batch=1)
    subject = bench.build(flags, load)
    yield {}
    seed = 0
    while True:
        seed += 1
        sample = bench.measure(subject, load, seed)
        yield {"prefill": sample.prefill, "decode": sample.decode, "decoded": args.decode}


def transformers_samples(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """First {} when loaded, then a sample per step: transformers' eager classes with a cache, greedy by hand."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    config = transformers.Qwen3_5TextConfig(**text_config(args.shape))
    torch.set_default_dtype(torch.bfloat16)
    model = transformers.Qwen3_5ForCausalLM(config).eval()
    yield {}
    while True:
        prompt = torch.randint(config.vocab_size, (1, args.prefill))
        with torch.inference_mode():
            start = time.perf_counter()
            out = model(prompt, use_cache=True, logits_to_keep=1)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            first, decoded = time.perf_counter(), 0
            while decoded < args.decode and time.perf_counter() - first < DECODE_SECONDS:
                out = model(token, past_key_values=out.past_key_values, use_cache=True)
                token = out.logits[:, -1].argmax(-1, keepdim=True)
                decoded += 1
            seconds = time.perf_counter() - first
        yield {"prefill": args.prefill / (first - start), "decode": decoded / seconds, "decoded": decoded}


def text_config(shape: str) -> dict[str, Any]:
    """The fields of transformers' text configuration for a published shape."""
    from qwench.cli.bench import published_shape

    model = published_shape(shape)
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


def limits(args: argparse.Namespace) -> dict[str, Any]:
    """What the machine reaches at most, and what a token needs at least."""
    import torch

    from qwench.cache.storage import CacheSpec
    from qwench.cli import bench
    from qwench.device import measure_arithmetic, measure_bandwidth

    torch.set_num_threads(args.threads)
    model = bench.published_shape(args.shape)
    load = bench.Load(args.prefill, args.decode, batch=1)
    bandwidth, arithmetic = measure_bandwidth(), measure_arithmetic(dtype="bfloat16")
    return {
        "bytes_per_second": bandwidth.best,
        "bytes_method": bandwidth.method,
        "bytes_samples": bandwidth.samples,
        "flop_per_second": arithmetic.best,
        "flop_method": arithmetic.method,
        "flop_samples": arithmetic.samples,
        "bytes_per_decoded_token": bench.bytes_per_step(model, CacheSpec.of(model, torch.bfloat16), load),
        "flop_per_prompt_token": bench.flop_per_token(model, args.prefill),
    }


def describe(sample: dict[str, Any]) -> str:
    return f"prefill {sample['prefill']:8.1f} tokens/s   decode {sample['decode']:8.2f} tokens/s ({sample['decoded']})"


def result_file(document: dict[str, Any]) -> str:
    """Where a comparison is kept, from the root of the repository."""
    return f"bench/results/{document['date'][:10]}-{(document['commit'] or 'no-commit')[:12]}.json"


def speed(document: dict[str, Any], side: str, phase: str) -> tuple[float, float]:
    """(median tokens/s, share of the machine's limit) of one side in one phase."""
    bounds = document["limits"]
    need, limit = {
        "prefill": ("flop_per_prompt_token", "flop_per_second"),
        "decode": ("bytes_per_decoded_token", "bytes_per_second"),
    }[phase]
    rate = median(sample[phase] for sample in document["sides"][side]["samples"])
    return rate, rate * bounds[need] / bounds[limit]


def table(document: dict[str, Any]) -> str:
    """The comparison in Markdown, as the README shows one."""
    work, sides = document["work"], document["sides"]
    names = " | ".join(f"{name} {sides[name]['version']}" for name in SIDES)
    lines = [f"| {work['shape']}, random weights, BF16 | {names} | ratio |", "|---|--:|--:|--:|"]
    for phase in ("prefill", "decode"):
        rates = {name: speed(document, name, phase) for name in SIDES}
        cells = " | ".join(f"{rate:.1f} tokens/s ({share:.0%} of the limit)" for rate, share in rates.values())
        lines.append(f"| {phase} {work[phase]} | {cells} | {rates['qwench'][0] / rates['transformers'][0]:.2f} |")
    peaks = [sides[name]["peak_memory_bytes"] / 2**30 for name in SIDES]
    lines.append(f"| peak memory | {peaks[0]:.2f} GiB | {peaks[1]:.2f} GiB | {peaks[0] / peaks[1]:.2f} |")
    bounds = document["limits"]
    where = f"{document['machine']['cpu']}, {work['threads']} threads, {document['date'][:10]}"
    how = f"medians of {len(sides['qwench']['samples'])} samples a side, taken in turns"
    limits = f"{bounds['flop_per_second'] / 1e12:.2f} Tflop/s in BF16 and {bounds['bytes_per_second'] / 1e9:.1f} GB/s"
    told = f"{where}; {how}. The limits, measured in the same run: {limits}. Raw samples: `{result_file(document)}`."
    return "\n".join([*lines, "", told])


def render(document: dict[str, Any]) -> list[str]:
    """The comparison for a terminal, with every raw sample."""
    work, bounds, sides = document["work"], document["limits"], document["sides"]
    lines = [f"{work['shape']}, random weights, BF16, CPU, {work['threads']} threads; median of raw samples"]
    for phase in ("prefill", "decode"):
        head = f"  {phase:8}{work[phase]:5}  "
        for name, side in sides.items():
            rate, share = speed(document, name, phase)
            raw = " ".join(f"{sample[phase]:.4g}" for sample in side["samples"])
            lines.append(f"{head}{name:13}{rate:9.2f} tokens/s  {share:6.1%} of the limit   ({raw})")
        ratio = speed(document, "qwench", phase)[0] / speed(document, "transformers", phase)[0]
        lines.append(f"{head}{'ratio':13}{ratio:9.2f}")
    lines += [f"  peak memory    {name:13}{side['peak_memory_bytes'] / 2**30:9.2f} GiB" for name, side in sides.items()]
    return [
        *lines,
        f"  limits: {bounds['bytes_per_second'] / 1e9:.1f} GB/s ({bounds['bytes_method']}),",
        f"          {bounds['flop_per_second'] / 1e12:.2f} Tflop/s ({bounds['flop_method']})",
    ]


if __name__ == "__main__":
    sys.exit(main())
