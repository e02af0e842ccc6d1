"""How much of the processors other processes took while something was measured. Knows neither sides nor rows."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

STAT = Path("/proc/stat")
IDLE_FIELDS = (3, 4)  # idle, and waiting for a disk
HOST_FIELDS = 8  # what comes after was counted before, as a guest's time


class Watch:
    """Started when made; ``own`` tells the processor seconds that what is measured has used so far."""

    def __init__(self, own: Callable[[], float]) -> None:
        self._own = own
        self._begin = time.perf_counter(), busy_seconds(), own()

    def others(self) -> float | None:
        """The share of all processors that went elsewhere, to neighbours too; None where the system does not tell."""
        start, busy, own = self._begin
        now = busy_seconds()
        if busy is None or now is None:
            return None
        seconds = (os.cpu_count() or 1) * (time.perf_counter() - start)
        return min(1.0, max(0.0, (now - busy - (self._own() - own)) / seconds))


def busy_seconds() -> float | None:
    """Seconds that all processors have worked since the machine started, for anyone."""
    try:
        fields = STAT.read_text(encoding="utf-8").split("\n", 1)[0].split()[1 : HOST_FIELDS + 1]
    except OSError:
        return None
    ticks = sum(int(field) for place, field in enumerate(fields) if place not in IDLE_FIELDS)
    return ticks / os.sysconf("SC_CLK_TCK")


def process_seconds(pid: int) -> float:
    """Processor seconds of a running process, its ended threads included; 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
