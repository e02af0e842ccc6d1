"""Where messages to the operator go: standard error, one line each. Standard output belongs to data.

Knows nothing of the engine or the server; every module logs through ``logging.getLogger(__name__)``.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

from qwench.errors import UsageError

LEVEL_VARIABLE = "QWENCH_LOG"
LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
_request: ContextVar[str] = ContextVar("request", default="")


class _Line(logging.Formatter):
    """``qwench: text``; what is more than information names its level, what is less names its module."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno == logging.INFO:
            return f"qwench: {text}"
        return f"qwench: {record.levelname.lower() if record.levelno > logging.INFO else record.name}: {text}"


class _Json(logging.Formatter):
    """One JSON object a line: time, level, module, message, the request it belongs to, and facts where there are."""

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "module": record.name,
            "message": record.getMessage(),
            **({"request": _request.get()} if _request.get() else {}),
            **getattr(record, "facts", {}),
            **({"traceback": self.formatException(record.exc_info)} if record.exc_info else {}),
        }
        return json.dumps(told, ensure_ascii=False)


@contextmanager
def request(request_id: str) -> Iterator[None]:
    """What is logged inside belongs to this request."""
    token = _request.set(request_id)
    try:
        yield
    finally:
        _request.reset(token)


def configure(level: str | None = None, stream: TextIO | None = None, form: str = "text") -> None:
    """Send the package's messages to ``stream`` (standard error) from ``level`` on, as ``form`` says; QWENCH_LOG is the
    default level.

    Called once by each command; a program that imports qwench keeps its own logging. Raises UsageError.
    """
    chosen = (level or os.environ.get(LEVEL_VARIABLE) or "info").lower()
    if chosen not in LEVELS:
        raise UsageError(f"{LEVEL_VARIABLE} is {chosen!r}; give one of {', '.join(LEVELS)}.")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Line())
    logger = logging.getLogger("qwench")
    logger.handlers = [handler]
    logger.setLevel(chosen.upper())
    logger.propagate = False
