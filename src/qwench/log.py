"""Where messages to the operator go: standard error, one line each. Standard output belongs to data.

Knows nothing of the engine or the server; every module logs through ``logging.getLogger(__name__)``.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO

from qwench.errors import UsageError

LEVEL_VARIABLE = "QWENCH_LOG"
LEVELS = ("debug", "info", "warning", "error")


class _Line(logging.Formatter):
    """``qwench: text``; what is more than information names its level, what is less names its module."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno == logging.INFO:
            return f"qwench: {text}"
        return f"qwench: {record.levelname.lower() if record.levelno > logging.INFO else record.name}: {text}"


def configure(level: str | None = None, stream: TextIO | None = None) -> None:
    """Send the package's messages to ``stream`` (standard error) from ``level`` on; QWENCH_LOG is the default level.

    Called once by each command; a program that imports qwench keeps its own logging. Raises UsageError.
    """
    chosen = (level or os.environ.get(LEVEL_VARIABLE) or "info").lower()
    if chosen not in LEVELS:
        raise UsageError(f"{LEVEL_VARIABLE} is {chosen!r}; give one of {', '.join(LEVELS)}.")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Line())
    logger = logging.getLogger("qwench")
    logger.handlers = [handler]
    logger.setLevel(chosen.upper())
    logger.propagate = False
