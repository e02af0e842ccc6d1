"""How long looking takes: the published towers over random weights on this CPU, beside transformers in the same run.

    .venv/bin/python bench/vision.py [--tower qwen3.5:0.8b] [--threads N] [--rounds 3] [--cpu-time]

Both sides compute in BF16 and get the same patches, in turns; the table shows medians and the median of the ratios of
each turn. Memory is the growth of a process of its own while it looks at the picture once. `make bench-vision` runs it.
"""

from __future__ import annotations

import argparse
import gc
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from qwench.config import VisionConfig
from qwench.engine.eyes import finish
from qwench.model.parameters import declare_vision
from qwench.model.vision import Grid, VisionTower
from qwench.ops.arrays import BFLOAT16
from qwench.ops.kernels import Kernels, TorchKernels, make_kernels, native_usable
from qwench.ops.store import Plan
from qwench.plan.shapes import lookup

SHOWN: dict[str, Grid] = {"448 x 448": (1, 28, 28), "8 frames of 448 x 448": (4, 28, 28), "1344 x 1344": (1, 84, 84)}


def kernels_here(threads: int) -> Kernels:
    usable, isa = native_usable("cpu", BFLOAT16)
    return make_kernels(isa, threads) if usable else TorchKernels()


def tower(config: VisionConfig, kernels: Kernels) -> VisionTower:
    """Over weights that keep activations of order 1."""
    specs = declare_vision(config)
    shapes = {name: spec.shape for name, spec in specs.items() if spec.kind == "matrix"}
    store = kernels.store(Plan(shapes, dict.fromkeys(shapes, BFLOAT16), BFLOAT16))
    generator, vectors = torch.Generator().manual_seed(0), {}
    for name, spec in specs.items():
        value = torch.randn(spec.shape, generator=generator) * spec.shape[-1] ** -0.5
        if name in shapes:
            store.put(name, None, value.bfloat16())
        else:
            vectors[name] = value if spec.kind == "float32" else value.bfloat16()
    return VisionTower(config, store.finish(), vectors, kernels)


def ours(config: VisionConfig, threads: int) -> Callable[[torch.Tensor, Grid], object]:
    seeing = tower(config, kernels_here(threads))
    return lambda patches, grid: finish(seeing.encode(patches, grid))


def theirs(config: VisionConfig) -> Callable[[torch.Tensor, Grid], object]:
    from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5VisionConfig
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5VisionModel

    fields = {name: value for name, value in vars(config).items() if name != "deepstack_visual_indexes"}
    model: Any = Qwen3_5VisionModel._from_config(  # noqa: SLF001 - the one way to choose a type before weights exist
        Qwen3_5VisionConfig(**fields), dtype=torch.bfloat16, attn_implementation="sdpa"
    ).eval()
    return lambda patches, grid: model(patches.bfloat16(), torch.tensor([grid]))


def patches_of(grid: Grid, config: VisionConfig) -> torch.Tensor:
    return torch.rand(grid[0] * grid[1] * grid[2], config.patch_width) * 2 - 1


def memory(config: VisionConfig, grid: Grid, threads: int) -> int:
    """Bytes that this process grew by while it looked once, above the weights and the patches."""
    look, patches = ours(config, threads), patches_of(grid, config)
    look(patches_of((1, 4, 4), config), (1, 4, 4))
    gc.collect()
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    look(patches, grid)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tower", default="qwen3.5:0.8b", help="the published model whose tower it is")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--cpu-time", action="store_true", help="seconds of processors, for a machine with others on it"
    )
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    shape = lookup(asked.tower)
    if shape is None or (config := shape.config.vision) is None:
        parser.error(f"--tower is {asked.tower}; give a published model that sees, such as qwen3.5:0.8b")
    if asked.memory:
        print(memory(config, SHOWN[asked.memory], asked.threads))
        return
    clock = time.process_time if asked.cpu_time else time.perf_counter
    sides = {"qwench": ours(config, asked.threads), "transformers": theirs(config)}
    print(f"the tower of {asked.tower}, {asked.threads} threads, {clock.__name__}, medians of {asked.rounds}")
    for name, grid in SHOWN.items():
        patches, took = patches_of(grid, config), {side: list[float]() for side in sides}
        for turn in range(asked.rounds + 1):
            for side, look in sides.items():
                start = clock()
                look(patches, grid)
                took[side] += [clock() - start] if turn else []
        ratio = statistics.median(b / a for a, b in zip(took["qwench"], took["transformers"], strict=True))
        command = [sys.executable, __file__, "--tower", asked.tower, "--threads", str(asked.threads), "--memory", name]
        grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        medians = ", ".join(f"{side} {statistics.median(took[side]):.2f} s" for side in sides)
        print(f"{name}: {medians}, ratio {ratio:.2f}; memory above the weights {grown / 2**20:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
