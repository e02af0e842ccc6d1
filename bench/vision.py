"""How long looking takes: published towers over random weights on this CPU, beside transformers and llama.cpp's mtmd.

    .venv/bin/python -m bench.vision [--tower qwen3.5:0.8b] [--threads N] [--rounds 3] [--cpu-time] [--sides ...]

All get the same pixels in the same run, in turns, and are timed from patches (mtmd: from normalised pixels) to rows;
`qwench` and `mtmd` read one file of a type (BF16, F16, Q8_0), transformers has BF16 weights of its own and computes in
BF16, as ours does over weights of any type. The table shows medians, and of each other side the median over the turns
of its time divided by ours of the same turn. Memory is what a process of its own grows by while it looks once.
`make bench-vision` runs it; the last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from bench.mtmd import Mtmd
from bench.projector import TYPES, write_projector
from qwench.bench.llama import cache_folder
from qwench.config import VisionConfig
from qwench.engine.eyes import build_tower, finish
from qwench.gguf.file import open_gguf
from qwench.media.patches import Media
from qwench.media.settings import VisionSettings
from qwench.model.vision import Grid, VisionTower
from qwench.ops.arrays import BFLOAT16
from qwench.ops.kernels import Kernels, TorchKernels, make_kernels, native_usable
from qwench.plan.shapes import lookup
from qwench.weights.vision import open_vision

ROOT = Path(__file__).resolve().parents[1]
MTMD = ROOT / "build" / "llama.cpp" / "bin" / "mtmd-time"
SHOWN = {"448 x 448": (1, 448, 448), "8 frames of 448 x 448": (8, 448, 448), "1344 x 1344": (1, 1344, 1344)}
SIDES = ("qwench:BF16", "qwench:Q8_0", "transformers:BF16", "mtmd:BF16", "mtmd:F16", "mtmd:Q8_0")
BARS = {"transformers": 2.0, "mtmd": 1.5}  # how many times as long the others are to take
MEMORY_BAR = 2**30  # bytes above the weights
See = Callable[[torch.Tensor, Grid], torch.Tensor]


class Side(Protocol):
    """One tower in memory."""

    def look(self, shown: Media) -> float:
        """Seconds."""

    def rows(self) -> torch.Tensor | None:
        """What was seen last, where it is the common weights' [n, out]."""


class OwnSide:
    """Another function of this process."""

    def __init__(self, see: See, clock: Callable[[], float], *, common: bool) -> None:
        self._see, self._clock, self._common = see, clock, common
        self._seen: torch.Tensor | None = None

    def look(self, shown: Media) -> float:
        patches = torch.from_numpy(shown.patches)
        start = self._clock()
        self._seen = self._see(patches, shown.grid)
        return self._clock() - start

    def rows(self) -> torch.Tensor | None:
        return self._seen if self._common else None


class MtmdSide:
    """A program of its own, which gets its pixels in a file."""

    def __init__(self, mtmd: Mtmd, folder: Path, *, cpu_time: bool) -> None:
        self._mtmd, self._cpu_time = mtmd, cpu_time
        self._pixels, self._rows = folder / "pixels", folder / "rows"

    def look(self, shown: Media) -> float:
        (shown.pixels / np.float32(127.5) - np.float32(1)).astype(np.float32).tofile(self._pixels)
        frames, height, width, _ = shown.pixels.shape
        took = self._mtmd.look(self._pixels, (frames, height, width), self._rows)
        return took.processors if self._cpu_time else took.clock

    def rows(self) -> torch.Tensor | None:
        self._mtmd.close()
        return torch.from_numpy(np.fromfile(self._rows, np.float32))


def kernels_here(threads: int) -> Kernels:
    usable, isa = native_usable("cpu", BFLOAT16)
    return make_kernels(isa, threads) if usable else TorchKernels()


def tower(config: VisionConfig, projector: Path, kernels: Kernels) -> VisionTower:
    """Ours, from a projector without a language model."""
    file = open_gguf(projector)
    weights = open_vision(dataclasses.replace(file, projector=file), config, BFLOAT16)
    assert weights is not None
    return build_tower(config, weights, kernels)


def ours(config: VisionConfig, projector: Path, threads: int) -> See:
    seeing = tower(config, projector, kernels_here(threads))
    return lambda patches, grid: finish(seeing.encode(patches, grid))


def theirs(config: VisionConfig) -> See:
    from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5VisionConfig
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5VisionModel

    fields = {name: value for name, value in vars(config).items() if name != "deepstack_visual_indexes"}
    model: Any = Qwen3_5VisionModel._from_config(  # noqa: SLF001 - the one way to choose a type before weights exist
        Qwen3_5VisionConfig(**fields), dtype=torch.bfloat16, attn_implementation="sdpa"
    ).eval()

    def see(patches: torch.Tensor, grid: Grid) -> torch.Tensor:
        found: torch.Tensor = model(patches.bfloat16(), torch.tensor([grid])).pooler_output
        return found

    return see


def shown_of(shape: tuple[int, int, int]) -> Media:
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    return Media("image" if shape[0] == 1 else "video", pixels, VisionSettings(), (shape[2], shape[1]))


def projector_of(name: str, config: VisionConfig, kind: str) -> Path:
    path = cache_folder() / f"{name.replace(':', '-').replace('/', '-')}-mmproj-{kind}.gguf"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_projector(path, config, kind)
    return path


def memory(config: VisionConfig, projector: Path, shown: Media, threads: int) -> int:
    """Bytes that this process grew by while it looked once, above the weights and the patches."""
    look, small, patches = ours(config, projector, threads), shown_of((1, 64, 64)), torch.from_numpy(shown.patches)
    look(torch.from_numpy(small.patches), small.grid)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the most there was is forgotten
    before = resident("VmRSS")
    look(patches, shown.grid)
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Bytes, by the kernel's account."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def memory_elsewhere(asked: argparse.Namespace, name: str) -> int:
    command = [sys.executable, "-m", "bench.vision", "--tower", asked.tower, "--threads", str(asked.threads)]
    done = subprocess.run([*command, "--memory", name], capture_output=True, text=True, check=True, cwd=ROOT)
    return int(done.stdout)


def open_side(name: str, asked: argparse.Namespace, config: VisionConfig, folder: Path) -> Side | None:
    """None, and why, for one that is not there."""
    engine, _, kind = name.partition(":")
    clock = time.process_time if asked.cpu_time else time.perf_counter
    if engine == "transformers":
        return OwnSide(theirs(config), clock, common=False)
    if kind not in TYPES:
        raise SystemExit(f"{name!r} is no side; give some of {', '.join(SIDES)}")
    projector = projector_of(asked.tower, config, kind)
    if engine == "qwench":
        return OwnSide(ours(config, projector, asked.threads), clock, common=True)
    if not asked.mtmd.is_file():
        print(f"{name} is left out: {asked.mtmd} is not there; run `make llama.cpp` and `make bench-vision`")
        return None
    (own := folder / kind).mkdir()
    return MtmdSide(Mtmd(asked.mtmd, projector, asked.threads, own / "log"), own, cpu_time=asked.cpu_time)


def measure(sides: dict[str, Side], names: Sequence[str], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each turn, by what is shown and side; a first turn does not count."""
    took: dict[str, dict[str, list[float]]] = {}
    for name in names:
        shown, here = shown_of(SHOWN[name]), took.setdefault(name, {side: [] for side in sides})
        for turn in range(rounds + 1):
            for side, tower_ in sides.items():
                seconds = tower_.look(shown)
                here[side] += [seconds] if turn else []
        show(name, here)
    return took


def ratio(here: dict[str, list[float]], other: str, own: str) -> float:
    return statistics.median(b / a for a, b in zip(here[own], here[other], strict=True))


def show(name: str, here: dict[str, list[float]]) -> None:
    own = [side for side in here if side.startswith("qwench")]
    for side, seconds in here.items():
        beside = "" if side in own else ", ".join(f"{ratio(here, side, each):.2f} times {each}" for each in own)
        print(f"{name:22} {side:18} {statistics.median(seconds):8.3f} s  {beside}", flush=True)


def show_agreement(sides: dict[str, Side]) -> None:
    """How far apart what the sides saw last is: sides over the same file type see the same but for rounding."""
    rows = {name: seen.float().flatten() for name, side in sides.items() if (seen := side.rows()) is not None}
    for name, seen in list(rows.items())[1:]:
        first = next(iter(rows))
        apart = (seen - rows[first]).norm() / rows[first].norm()
        print(f"{name} sees what {first} does but for {apart:.4f} of its norm")


def told(asked: argparse.Namespace, took: dict[str, Any], grown: dict[str, int]) -> str:
    facts = {
        "tower": asked.tower,
        "threads": asked.threads,
        "cpu_time": asked.cpu_time,
        "isa": native_usable("cpu", BFLOAT16)[1],
    }
    return json.dumps({**facts, "seconds": took, "memory_bytes": grown, "bars": BARS, "memory_bar": MEMORY_BAR})


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tower", default="qwen3.5:0.8b", help="the published model whose tower it is")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", default=list(SIDES))
    parser.add_argument("--shown", nargs="+", choices=SHOWN, default=list(SHOWN))
    parser.add_argument("--mtmd", type=Path, default=MTMD, help="the program made of bench/mtmd_time.cpp")
    parser.add_argument(
        "--cpu-time", action="store_true", help="seconds of processors, for a machine with others on it"
    )
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    return parser.parse_args(given)


@torch.inference_mode()
def main() -> None:
    asked = arguments()
    torch.set_num_threads(asked.threads)
    shape = lookup(asked.tower)
    if shape is None or (config := shape.config.vision) is None:
        raise SystemExit(f"--tower is {asked.tower}; give a published model that sees, such as qwen3.5:0.8b")
    if asked.memory:
        projector = projector_of(asked.tower, config, "BF16")
        print(memory(config, projector, shown_of(SHOWN[asked.memory]), asked.threads))
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(asked.threads))
    with tempfile.TemporaryDirectory() as folder:
        opened = {name: open_side(name, asked, config, Path(folder)) for name in asked.sides}
        sides = {name: side for name, side in opened.items() if side is not None}
        clock = "processor seconds" if asked.cpu_time else "seconds"
        print(f"the tower of {asked.tower}, {asked.threads} threads, {clock}, medians of {asked.rounds}")
        took = measure(sides, asked.shown, asked.rounds)
        show_agreement(sides)
    grown = {name: memory_elsewhere(asked, name) for name in asked.shown}
    for name, count in grown.items():
        verdict = "within" if count < MEMORY_BAR else "ABOVE"
        print(f"{name}: {count / 2**20:.0f} MiB above the weights, {verdict} {MEMORY_BAR / 2**20:.0f}")
    print(told(asked, took, grown))


if __name__ == "__main__":
    main()
