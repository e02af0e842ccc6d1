"""llama.cpp's mtmd as the other side of looking at pictures: the program of bench/mtmd_time.cpp, one look a line."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Pixels = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Look:
    """Seconds of the clock and of processors."""

    clock: float
    processors: float


class Mtmd:
    """``program`` with one projector in memory. What it writes while it loads goes to ``log``."""

    def __init__(self, program: Path, projector: Path, threads: int, log: Path) -> None:
        with log.open("w") as stream:
            self._process = subprocess.Popen(
                [program, projector, str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
            )
        self._log = log

    def look(self, pixels: Path, shape: tuple[int, int, int], rows: Path | None = None) -> Look:
        """At ``shape`` (frames, height, width) of the numbers in ``pixels``; what it sees is written to ``rows``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        frames, height, width = shape
        self._process.stdin.write(f"{width} {height} {frames} {pixels} {rows or '-'}\n")
        self._process.stdin.flush()
        if not (line := self._process.stdout.readline()):
            self.close()
            last_words = self._log.read_text()[-2000:]
            raise RuntimeError(f"mtmd ended with {self._process.returncode}; its last words:\n{last_words}")
        clock, processors, *_ = line.split()
        return Look(float(clock), float(processors))

    def close(self) -> None:
        """Ends the program, which has then written all it was asked for."""
        with self._process:  # closes its pipes, and waits
            pass
