"""A progress bar on standard error: drawn in place on a terminal, now and then a line anywhere else.

Knows nothing of what it counts. Not for use from several threads at once.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

TERMINAL_SECONDS = 0.1  # between two drawings
LINE_SECONDS = 30.0  # between two lines in a log
BAR_WIDTH = 24


class Progress:
    """``with Progress("Loading", 100) as bar: bar.update(40)``. Nothing is shown before ``delay`` seconds."""

    def __init__(
        self,
        label: str,
        total: float,
        *,
        delay: float = 0.0,
        enabled: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label = label
        self._total = total
        self._enabled = enabled
        self._stream = stream or sys.stderr
        self._clock = clock
        self._start = clock()
        self._first = self._done = 0.0
        self._note = ""
        self._on_terminal = self._stream.isatty()
        self._due = self._start + max(delay, 0.0 if self._on_terminal else LINE_SECONDS)
        self._drawn = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return self._clock() - self._start

    def skip(self, done: float) -> None:
        """``done`` was there before the start: it counts as done, not for the time left."""
        self._first = self._done = done

    def update(self, done: float, note: str = "") -> None:
        """``done`` of the total; ``note`` (such as a speed) stands behind the bar."""
        self._done, self._note = done, note
        now = self._clock()
        if self._enabled and now >= self._due:
            self._due = now + (TERMINAL_SECONDS if self._on_terminal else LINE_SECONDS)
            self._draw()

    def close(self) -> None:
        """Leave the last state standing, if anything was shown."""
        if self._drawn:
            self._draw()
            if self._on_terminal:
                self._stream.write("\n")
            self._stream.flush()
            self._drawn = ""

    def line(self) -> str:
        """The bar as text."""
        share = min(max(self._done / self._total, 0.0), 1.0) if self._total > 0 else 1.0
        filled = round(share * BAR_WIDTH)
        bar = "#" * filled + "." * (BAR_WIDTH - filled)
        count = f"{self._done:g}/{self._total:g}" if float(self._total).is_integer() and self._total > 1 else ""
        parts = (f"{share:4.0%}", count, self._note, self._left(share))
        return f"{self._label} [{bar}] " + "  ".join(part for part in parts if part)

    def _left(self, share: float) -> str:
        fresh = self._done - self._first
        if share >= 1.0 or fresh <= 0:
            return f"{clock_time(self.seconds)}"
        return f"{clock_time(self.seconds / fresh * (self._total - self._done))} left"

    def _draw(self) -> None:
        line = self.line()
        if line == self._drawn:
            return
        if self._on_terminal:
            width = max(shutil.get_terminal_size().columns - 1, 20)
            self._stream.write("\r\x1b[2K" + line[:width])
        else:
            self._stream.write(line + "\n")
        self._stream.flush()
        self._drawn = line


def clock_time(seconds: float) -> str:
    """Seconds as 0:07, 12:30 or 3:05:00."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
