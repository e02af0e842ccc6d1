"""The linear kernels alone, beside what the machine can do: each weight type's GB/s for one token, TOPS for many.

    .venv/bin/python bench/kernels.py [--threads 2] [--isa avx512-vnni] [--types q4,q8] [--tokens 512]

One token streams matrices that fit into no near cache, and its share is of the reads of a loop without arithmetic;
many tokens' share is of the multiplications of a loop without memory. Best of several runs each: on a machine with
other work, the rest measures that work.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import time
from collections.abc import Callable, Sequence

import torch

from qwench.ops.arrays import BFLOAT16, FLOAT32, torch_dtype
from qwench.ops.limits import Limits, measure_limits
from qwench.ops.loading import Arena
from qwench.ops.native import Element, LinearInput, Native, PackedMatrix, instruction_sets
from qwench.ops.quantised import Codes, scale_dtype
from qwench.ops.weight_types import GGUF_TYPES, OWN_TYPES, SUPER_BLOCK, WeightType

OUT, WIDTH = 7168, 1024  # the feed-forward of the 0.8B shape, gate and up together
STREAM_BYTES = 256 << 20
PLAIN = {"float32": FLOAT32, "bfloat16": BFLOAT16}
KINDS: dict[str, Element] = {**OWN_TYPES, **GGUF_TYPES, **PLAIN}


def random_matrix(native: Native, kind: Element, arena: Arena) -> PackedMatrix:
    """Any numbers: no kernel's speed depends on them."""
    if not isinstance(kind, WeightType):
        return native.pack(torch.randn(OUT, WIDTH).to(torch_dtype(kind)), arena)
    blocks, supers = (OUT, WIDTH // kind.block), (OUT, WIDTH // SUPER_BLOCK)
    codes = torch.randint(0, 2**kind.bits, (OUT, WIDTH), dtype=torch.uint8)
    if not kind.nested:
        scales = torch.rand(blocks).to(scale_dtype(kind))
        return native.pack_codes(Codes(kind, WIDTH, codes, scales, scales if kind.has_min else None), arena)
    scales, mins = torch.randint(1, 64, blocks, dtype=torch.int8), torch.randint(0, 64, blocks, dtype=torch.uint8)
    floats = torch.rand(supers).half()
    parts = (mins, floats, floats) if kind.has_min else (None, floats, None)
    return native.pack_codes(Codes(kind, WIDTH, codes, scales, *parts), arena)


def best_seconds(call: Callable[[], object], runs: int) -> float:
    seconds = []
    for _ in range(runs + 1):  # the first fetches pages and wakes threads
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def report(native: Native, name: str, tokens: int, runs: int, limits: Limits) -> str:
    kind = KINDS[name]
    size = native.packed_bytes(kind, OUT, WIDTH)
    count = max(1, STREAM_BYTES // size)
    arena = Arena(size * count)
    matrix = random_matrix(native, kind, arena)
    matrices = [matrix]
    one, many = torch.randn(1, WIDTH).bfloat16(), torch.randn(tokens, WIDTH).bfloat16()
    while len(matrices) < count:
        matrices.append(PackedMatrix(arena, _copy(arena, matrix.address, size), OUT, WIDTH, kind))
    layers = [LinearInput(one, each) for each in matrices]
    reads = size * count / best_seconds(lambda: native.linear_many(layers), runs)
    operations = 2 * tokens * OUT * WIDTH / best_seconds(lambda: native.linear(many, matrix), runs)
    peak = limits.peak("int8" if isinstance(kind, WeightType) else name.replace("float", "fp").replace("bfp", "bf"))
    share = f"{operations / peak[1].best:5.0%} of {peak[0]}" if peak else ""
    return (
        f"{name:9}{reads / 1e9:8.1f} GB/s {reads / limits.reads.best:5.0%} of reads"
        f"{operations / 1e12:10.3f} TOPS {share}"
    )


def _copy(arena: Arena, source: int, size: int) -> int:
    """Where a copy of a packed matrix lies: packing is slow beside it."""
    address = arena.take(size)
    ctypes.memmove(address, source, size)
    return address


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--isa", default=instruction_sets()[0], choices=instruction_sets())
    parser.add_argument("--types", default=",".join(KINDS), help="of " + ", ".join(KINDS))
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--runs", type=int, default=7)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    limits = measure_limits("cpu", given.threads)
    native = Native(given.isa, given.threads)
    print(f"{given.isa}, {given.threads} threads, [{OUT}, {WIDTH}]; reads {limits.reads.best / 1e9:.1f} GB/s")
    for name in given.types.split(","):
        print(report(native, name, given.tokens, given.runs, limits), flush=True)


if __name__ == "__main__":
    main()
