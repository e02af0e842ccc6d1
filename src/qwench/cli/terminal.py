"""Terminal: where an answer is shown. Content to standard output, reasoning and notes to standard error.

Knows nothing of models. What a model writes is never a command to the terminal: control characters are replaced.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO

DIM, PLAIN = "\x1b[2m", "\x1b[0m"
# Everything below a space but tab and line feed, DEL, and the C1 controls; a terminal may obey them.
CONTROLS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}


class Terminal:
    """``write`` pieces as they come, ``end`` once per answer, ``note`` anything else."""

    def __init__(self, out: TextIO | None = None, notes: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._notes = notes or sys.stderr
        self._colour = self._notes.isatty() and not os.environ.get("NO_COLOR")
        self._shown: str | None = None  # the kind written last
        self._open_line = False

    def write(self, kind: str, text: str) -> None:
        """A piece of "reasoning" or of "content"."""
        stream = self._notes if kind == "reasoning" else self._out
        if kind != self._shown:
            if self._shown is not None:
                self._close_reasoning()
            if kind == "reasoning":
                self._put(self._notes, f"{self._style(DIM)}[thinking] ")
            self._shown = kind
        self._put(stream, text.translate(CONTROLS) if stream.isatty() else text)
        self._open_line = not text.endswith("\n")

    def end(self) -> None:
        """Leave the cursor at the beginning of a line."""
        if self._shown == "reasoning":
            self._close_reasoning()
        elif self._open_line:
            self._put(self._out, "\n")
        self._shown, self._open_line = None, False

    def note(self, text: str) -> None:
        """A line about the conversation, not of it."""
        self._put(self._notes, f"{self._style(DIM)}{text}{self._style(PLAIN)}\n")

    def _close_reasoning(self) -> None:
        if self._shown == "reasoning":
            self._put(self._notes, f"{self._style(PLAIN)}\n[/thinking]\n")

    def _style(self, code: str) -> str:
        return code if self._colour else ""

    @staticmethod
    def _put(stream: TextIO, text: str) -> None:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        stream.write(text.encode(encoding, "replace").decode(encoding))
        stream.flush()
