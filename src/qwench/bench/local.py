"""Our side of a benchmark inside this process, for a run without other engines."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from qwench.bench.compare import OURS
from qwench.bench.rows import Row
from qwench.bench.side import facts_of
from qwench.bench.subject import Choice, build, measure, peak_memory_bytes


class LocalSide:
    """Loaded when made."""

    name = OURS

    def __init__(self, choice: Choice, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._subject = build(choice, rows)

    def prepare(self) -> None:
        """It is loaded."""

    def processor_seconds(self) -> float:
        return time.process_time()

    def measure(self, row: Row, seed: int) -> float | None:
        return measure(self._subject, row, seed)

    def facts(self) -> dict[str, Any]:
        return {**facts_of(self._subject, self._rows), "peak_memory_bytes": peak_memory_bytes()}

    def rest(self) -> None:
        """There is no other side to make room for."""

    def close(self) -> None:
        """The process ends with the command."""
