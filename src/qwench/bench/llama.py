"""llama.cpp (and engines that kept its tools) as the other side: its own benchmark programs, run once for each sample.

Finds llama-bench and llama-batched-bench, and the GGUF file they need: the one that was asked for, or random weights of
the same shape in one of llama.cpp's own mixes. Knows nothing of our side.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwench.bench.random_gguf import MIXES, write_random_gguf
from qwench.bench.rows import Row
from qwench.bench.subject import Choice, published_shape
from qwench.device import probe
from qwench.errors import QwenchError, UsageError

ENGINES = ("llama.cpp", "ik_llama.cpp")
MIX_FOR = {None: "BF16", "q8": "Q8_0", "q6": "Q8_0", "q5": "Q4_K_M"}  # of equal or smaller size; Q4_0 for the others
WINDOW = 256  # a sequence's window is a multiple of this
BUILD_HINT = "run `make llama.cpp`, or give the folder of its programs as --peer-path"


class EngineFailed(QwenchError):
    """Another engine's program crashed or refused its arguments."""


class LlamaSide:
    """One engine with one file. ``name`` is what was asked for, such as "llama.cpp:Q4_0"."""

    def __init__(self, name: str, choice: Choice, threads: int, paths: Mapping[str, Path]) -> None:
        engine, _, mix = name.partition(":")
        self.name = name
        self.threads = threads
        self.bench = find_program("llama-bench", engine, paths)
        self.file, self.mix = _file_for(choice, mix)
        # It maps a file and keeps what it repacks beside the map; what has no room twice it must read past the map.
        direct = engine == "llama.cpp" and 2 * self.file.stat().st_size > probe().memory_total
        self.loading = ["--load-mode", "dio"] if direct else []
        self.peak_memory_bytes = 0
        self._facts: dict[str, Any] = {}
        self._seconds = 0.0

    def prepare(self) -> None:
        """Its programs load the file themselves, and do not count that."""

    def processor_seconds(self) -> float:
        return self._seconds

    def measure(self, row: Row, _seed: int) -> float | None:
        """Tokens per second. Its own warm-up runs come before and do not count."""
        if row.batch > 1:
            return self._batched(row)
        counts = ["-p", str(row.prefill), "-n", str(row.decode)]
        counts += ["-d", str(row.depth)] if row.depth else []  # ik_llama.cpp's knows no such flag
        told = json.loads(self._run(self.bench, [*counts, *self.loading, "-r", "1", "-o", "json"])[0])[-1]
        kept = ("build_commit", "model_type", "model_size", "n_threads", "flash_attn", "n_batch", "n_ubatch")
        self._facts |= {name: told[name] for name in kept if name in told}
        return float(told["avg_ts"])

    def first_token(self, prompt: int) -> float:
        """Seconds from starting the program to its end, a short prompt read and no warm-up before it."""
        arguments = ["-p", str(prompt), "-n", "0", *self.loading, "-r", "1", "-o", "json", "--no-warmup"]
        return self._run(self.bench, arguments)[1]

    def facts(self) -> dict[str, Any]:
        return {
            **self._facts,
            "version": str(self._facts.get("build_commit", "")),
            "program": self.bench.name,
            "file": self.file.name,
            "file_bytes": self.file.stat().st_size,
            "mix": self.mix,
            "peak_memory_bytes": self.peak_memory_bytes,
        }

    def rest(self) -> None:
        """Nothing runs between samples."""

    def close(self) -> None:
        """Nothing runs between samples."""

    def _batched(self, row: Row) -> float:
        program = self.bench.with_name("llama-batched-bench")
        if not program.is_file():
            raise UsageError(f"{program} is not there, and batches need it; {BUILD_HINT}.")
        counts = ["-npp", str(row.depth), "-ntg", str(row.decode), "-npl", str(row.batch)]
        each = -(-(row.depth + row.decode) // WINDOW) * WINDOW
        window = ["-c", str(row.batch * each), "--output-format", "jsonl"]
        lines = self._run(program, [*counts, *window])[0].splitlines()
        told = [json.loads(line) for line in lines if line.startswith("{")]
        if not told:
            raise EngineFailed(f"{program.name} printed no result as JSON")
        return float(told[-1]["speed_tg"])

    def _run(self, program: Path, arguments: list[str]) -> tuple[str, float]:
        """What the program prints, and the seconds it took; its peak memory is kept."""
        command = [str(program.resolve()), "-m", str(self.file.resolve()), "-t", str(self.threads), *arguments]
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            process = subprocess.Popen(command, stdout=out, stderr=err, cwd=folder)  # ik_llama.cpp's leave a log there
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0)
            err.seek(0)
            printed = out.read().decode(errors="replace")
            if process.returncode:
                last = (err.read().decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
                raise EngineFailed(f"{program.name} ended with exit code {process.returncode}: {last}")
        self._seconds += usage.ru_utime + usage.ru_stime
        self.peak_memory_bytes = max(
            self.peak_memory_bytes, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        )
        return printed, seconds


def find_program(name: str, engine: str, paths: Mapping[str, Path]) -> Path:
    """The program in the folder given for this engine, or (llama.cpp's) on PATH. Raises UsageError with the fix."""
    if engine in paths:
        folder = paths[engine]
        found = folder if folder.is_file() else folder / name
        if found.is_file():
            return found
        raise UsageError(f"--peer-path {folder} holds no {name}; give the folder where it lies.")
    on_path = shutil.which(name) if engine == "llama.cpp" else None
    built = Path("build") / engine / "bin" / name
    if on_path is None and not built.is_file():
        raise UsageError(f"{name} of {engine} is not there; {BUILD_HINT}.")
    return Path(on_path) if on_path else built


def _file_for(choice: Choice, mix: str) -> tuple[Path, str]:
    """The GGUF file to run and its mix. Raises UsageError where there is none and none can be made."""
    if choice.shape is None:
        if not choice.model.endswith(".gguf"):
            raise UsageError(f"{choice.model} is no GGUF file, which llama.cpp needs; name one, or use --shape.")
        return Path(choice.model), mix
    mix = mix or MIX_FOR.get(choice.quantization, "Q4_0")
    if mix not in MIXES:
        raise UsageError(f"{mix!r} is no mix of types; give one of {', '.join(MIXES)}.")
    layers = f"-{choice.layers}-layers" if choice.layers else ""
    path = cache_folder() / f"{choice.shape.replace(':', '-').replace('/', '-')}{layers}-{mix}.gguf"
    if not path.is_file():
        print(f"writing random weights for {mix} to {path}", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_random_gguf(path, published_shape(choice.shape, choice.layers), mix)
    return path, mix


def cache_folder() -> Path:
    """Where files made for comparisons are kept; all of it may be deleted."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwench" / "bench"
