"""``qwench bench``: prefill and decode speed of one model beside the limits of the machine, with every raw sample.

The engine runs on this thread, without client, text or server: what is timed is steps. Measured limits come from
device.py; how many bytes and operations a token needs is counted here from the declared parameters.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwench.cli.engine import add_model_argument
from qwench.errors import ModelNotFound, QwenchError, UsageError

if TYPE_CHECKING:
    from qwench.cache.storage import CacheSpec
    from qwench.config import ModelConfig
    from qwench.device import Measurement
    from qwench.engine.core import Engine
    from qwench.engine.resolve import Resolved

SUMMARY = "prefill and decode speed beside the machine's limits"
WARM_UP = (8, 2)  # prompt and answer tokens of a run that is not counted


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured."""

    name: str
    model: ModelConfig
    engine: Engine
    resolved: Resolved
    load_seconds: float


@dataclasses.dataclass(frozen=True)
class Load:
    """One sample's work: ``batch`` prompts of ``prefill`` tokens, each answered with 1 + ``decode``."""

    prefill: int
    decode: int
    batch: int


@dataclasses.dataclass(frozen=True)
class Sample:
    """Tokens per second of all sequences together."""

    prefill: float
    decode: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--shape", metavar="NAME", help="random weights of a published shape, such as qwen3.5:0.8b")
    parser.add_argument("--quantization", metavar="TYPE", help="round the weights: q8 q6 q5 q4 q3 q2 mxfp4")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default: auto)")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, float16 or auto (default: auto)")
    parser.add_argument("--prefill", type=int, default=512, metavar="N", help="tokens of each prompt (default: 512)")
    parser.add_argument("--decode", type=int, default=64, metavar="N", help="tokens of each answer (default: 64)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="sequences at the same time (default: 1)")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="samples (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON document; the text goes to standard error")


def run(args: argparse.Namespace) -> int:
    load = check(args)
    subject = build(args, load)
    measure(subject, Load(*WARM_UP, load.batch), seed=0)
    samples = [measure(subject, load, seed) for seed in range(1, args.runs + 1)]
    document = report(subject, load, samples)
    print("\n".join(render(document)), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(document))
    return 0


def check(args: argparse.Namespace) -> Load:
    """The load asked for. Raises UsageError naming the flag."""
    if args.shape is not None and args.model != "nano":
        raise UsageError(f"--shape {args.shape} and the model {args.model} exclude each other; give one of them.")
    for name in ("prefill", "decode", "batch", "runs"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} is {getattr(args, name)}; give a whole number of at least 1.")
    return Load(args.prefill, args.decode, args.batch)


def build(args: argparse.Namespace, load: Load) -> Subject:
    """Load the model, or draw random weights of a shape, with a cache just large enough for ``load``."""
    from qwench.config import EngineConfig
    from qwench.engine.client import EngineClient
    from qwench.engine.request import Vocabulary
    from qwench.engine.start import load_engine, random_engine
    from qwench.progress import Progress

    config = EngineConfig(
        model=args.shape or args.model,
        device=args.device,
        dtype=args.dtype,
        quantization=args.quantization,
        max_model_len=max(sum(WARM_UP), load.prefill + load.decode) + 1,
        max_num_seqs=load.batch,
    )
    start = time.perf_counter()
    if args.shape is None:
        client = EngineClient(config)
        model = client.model
        vocabulary = Vocabulary(model.vocab_size, frozenset())
        with Progress("Loading", 1, delay=2.0) as bar:

            def show(done: int, total: int) -> None:
                bar.update(done / max(total, 1))

            engine, resolved = load_engine(config, model, client.files, vocabulary, show)
    else:
        model = published_shape(args.shape)
        vocabulary = Vocabulary(model.vocab_size, frozenset())
        engine, resolved = random_engine(config, model, vocabulary)
    return Subject(config.model, model, engine, resolved, time.perf_counter() - start)


def published_shape(name: str) -> ModelConfig:
    """The configuration of a published model. Raises ModelNotFound with the nearest names."""
    from qwench.family import nearest_names
    from qwench.plan.shapes import lookup

    found = lookup(name)
    if found is None:
        near = [each for each in nearest_names(name) if lookup(each)]  # nano is a model, not a shape
        hint = f"did you mean {' or '.join(near)}?" if near else "`qwench models` lists the shapes."
        raise ModelNotFound(f"--shape {name} is no published shape; {hint}")
    return found.config


def measure(subject: Subject, load: Load, seed: int) -> Sample:
    """Run ``load`` once. Prefill ends when every sequence has its first token; what comes after is decoding."""
    from qwench.engine.request import Request, SamplingParams, TokenEvent

    draw = random.Random(seed)
    count = [0] * load.batch
    for index in range(load.batch):

        def deliver(event: TokenEvent, index: int = index) -> None:
            if event.error:
                raise QwenchError(f"the engine failed while it was measured: {event.error}")
            count[index] += len(event.token_ids)

        prompt = [draw.randrange(subject.model.vocab_size) for _ in range(load.prefill)]
        request = Request(
            id=seed * load.batch + index,
            prompt_len=load.prefill,
            token_ids=prompt,
            sampling=SamplingParams(temperature=0.0),
            stop_token_ids=frozenset(),
            seed=seed,
            max_total=load.prefill + 1 + load.decode,
        )
        subject.engine.add(request, deliver)
    start = time.perf_counter()
    while min(count) == 0:
        subject.engine.step()
    first, early = time.perf_counter(), sum(count)
    while subject.engine.step():
        pass
    seconds = time.perf_counter() - first
    return Sample(load.batch * load.prefill / (first - start), (sum(count) - early) / seconds)


def report(subject: Subject, load: Load, samples: list[Sample]) -> dict[str, Any]:
    """Everything as one document: samples, medians, limits and shares of them, and how to do it again."""
    from qwench import __version__
    from qwench.cache.storage import CacheSpec
    from qwench.device import measure_arithmetic, measure_bandwidth, probe

    peak_memory = peak_memory_bytes()  # before the limits are measured: that takes memory too
    bandwidth = measure_bandwidth(subject.resolved.device)
    arithmetic = measure_arithmetic(subject.resolved.device, str(subject.resolved.dtype).removeprefix("torch."))
    cache = CacheSpec.of(subject.model, subject.resolved.dtype)
    decode_bytes = bytes_per_step(subject.model, cache, load) / load.batch
    prefill_flop = flop_per_token(subject.model, load.prefill)
    return {
        "qwench": __version__,
        "commit": commit(),
        "command": ["qwench", *sys.argv[1:]],
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": dataclasses.asdict(probe()),
        "model": subject.name,
        "settings": [str(choice) for choice in subject.resolved.choices],
        "load": dataclasses.asdict(load),
        "load_seconds": subject.load_seconds,
        "prefill": _speed([sample.prefill for sample in samples], prefill_flop, "flop", arithmetic),
        "decode": _speed([sample.decode for sample in samples], decode_bytes, "bytes", bandwidth),
        "peak_memory_bytes": peak_memory,
    }


def _speed(samples: list[float], per_token: float, unit: str, limit: Measurement) -> dict[str, Any]:
    from statistics import median

    return {
        "tokens_per_second": median(samples),
        "samples": samples,
        f"{unit}_per_token": per_token,
        "limit_per_second": limit.best,
        "limit_samples": list(limit.samples),
        "limit_method": limit.method,
        "share_of_limit": median(samples) * per_token / limit.best,
    }


def bytes_per_step(model: ModelConfig, cache: CacheSpec, load: Load) -> float:
    """Bytes one decode step of ``load`` moves at least: weights once, then each sequence's keys, values and state.

    Of the experts, those that ``batch`` tokens with independent uniform choices are expected to touch. A recurrent
    state is read and written.
    """
    from qwench.model.parameters import declare

    touched = 1 - (1 - model.moe.experts_per_token / model.moe.num_experts) ** load.batch if model.moe else 1.0
    weights = 0.0
    for name, each in declare(model).items():
        if name == "embedding" and not model.tie_embeddings:
            continue  # one row is read; the head is a matrix of its own
        itemsize = 4 if each.kind == "float32" else cache.dtype.itemsize
        weights += math.prod(each.shape) * itemsize * (touched if each.kind == "experts" else 1.0)
    context = load.prefill + load.decode / 2
    return weights + load.batch * (context * cache.token_bytes + 2 * cache.sequence_bytes)


def flop_per_token(model: ModelConfig, prefill: int) -> float:
    """Operations one prompt token needs: two per active weight, and attention's products over half the prompt.

    The head is counted once per prompt. The delta rule's own products (a few per cent) are left out, so the
    share is a lower bound.
    """
    from qwench.plan.shapes import active_parameters

    head = model.vocab_size * model.hidden_size
    weights = active_parameters(model) - head + head / prefill
    attention = 4 * model.num_heads * model.head_dim * prefill / 2 * model.layer_types.count("full_attention")
    return 2 * weights + attention


def peak_memory_bytes() -> int:
    """The most memory this process has held so far, on the device if that is a GPU."""
    import resource

    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def commit() -> str | None:
    """The commit this file belongs to, marked if the tree has changed since; None outside a repository."""
    import subprocess

    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def render(document: dict[str, Any]) -> list[str]:
    """The document as a table for people."""
    load, prefill, decode = document["load"], document["prefill"], document["decode"]
    work = f"{load['batch']} x ({load['prefill']} prompt + {load['decode']} answer tokens)"
    return [
        f"{document['model']}: {', '.join(document['settings'])}",
        f"{work}, {len(decode['samples'])} samples",
        _line("prefill", prefill, f"of {prefill['limit_per_second'] / 1e12:.2f} Tflop/s"),
        _line("decode", decode, f"of {decode['limit_per_second'] / 1e9:.1f} GB/s"),
        f"  {'memory':8}{document['peak_memory_bytes'] / 2**30:9.2f} GiB at its peak",
        f"  {'load':8}{document['load_seconds']:9.2f} s",
    ]


def _line(name: str, speed: dict[str, Any], limit: str) -> str:
    samples = " ".join(f"{each:.4g}" for each in speed["samples"])
    return f"  {name:8}{speed['tokens_per_second']:9.1f} tokens/s = {speed['share_of_limit']:.1%} {limit}   ({samples})"
