"""Runs one command on one text: bounded in time, memory and output, without a network. The inside is ``cell.py``.

A command that hangs, crashes or talks without end is a result like any other; only a machine that cannot keep it inside
is an error. Knows nothing of answers or models.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qwench.errors import UsageError

CELL = Path(__file__).with_name("cell.py")
TAIL_BYTES = 4096
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Bounds:
    """``seconds`` by the clock; ``memory`` in bytes, of each process. ``confined``: without a network, and with
    everything outside its folder read-only."""

    seconds: float = 10.0
    memory: int = 1 << 30
    confined: bool = True


@dataclass(frozen=True)
class Ended:
    """How a command ended: ``code`` as shells count (128 + signal), None if its time was up; ``tail`` of its output."""

    code: int | None
    tail: str
    seconds: float

    @property
    def passed(self) -> bool:
        return self.code == 0

    def sentence(self) -> str:
        """What to tell whoever wrote the text."""
        if self.passed:
            return "passed"
        if self.code is None:
            reason = f"it was stopped after {self.seconds:.0f} seconds"
        elif self.code > 128:
            number = self.code - 128
            known = number in {each.value for each in signal.Signals}
            reason = f"it crashed ({signal.Signals(number).name if known else f'signal {number}'})"
        else:
            reason = f"exit code {self.code}"
        return f"{self.tail.strip()}\n({reason})" if self.tail.strip() else f"({reason})"


def run(command: Sequence[str], text: str, bounds: Bounds) -> Ended:
    """Run ``command`` with ``text`` on its standard input. Raises UsageError if it cannot be started or kept inside."""
    started = time.monotonic()
    report, told = os.pipe()
    heard, said = os.pipe()
    with tempfile.TemporaryDirectory(prefix="qwench-check-") as folder, tempfile.TemporaryFile() as given:
        given.write(text.encode("utf-8", "surrogatepass"))
        given.seek(0)
        plan = {
            "command": list(command),
            "folder": folder,
            "cpu": math.ceil(bounds.seconds) + 1,
            "memory": bounds.memory,
            "confined": bounds.confined,
            "report": told,
        }
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(CELL), json.dumps(plan)],
                stdin=given,
                stdout=said,
                stderr=said,
                pass_fds=(told,),
                env={"PATH": os.environ.get("PATH", PATH), "HOME": folder, "TMPDIR": folder, "LC_ALL": "C.UTF-8"},
                start_new_session=True,
            )
            os.close(said)
            os.close(told)
            tail, code = _watch(process, heard, started + bounds.seconds)
            with os.fdopen(report, "rb", closefd=False) as trouble:
                failure = trouble.read(TAIL_BYTES).decode("utf-8", "replace") if code == 127 else ""
        finally:
            os.close(report)
            os.close(heard)
    if failure:
        raise UsageError(_refusal(command[0], failure))
    return Ended(code, tail.decode("utf-8", "replace"), time.monotonic() - started)


def _watch(process: subprocess.Popen[bytes], output: int, deadline: float) -> tuple[bytes, int | None]:
    """The end of what it says and how it ended; killed with all it began when its time is up, or when it is over."""
    tail = b""
    listening = True
    try:
        while process.poll() is None and time.monotonic() < deadline:
            wait = min(POLL_SECONDS, max(0.0, deadline - time.monotonic()))
            if not listening:
                time.sleep(wait)
            elif select.select([output], [], [], wait)[0]:
                read = os.read(output, 1 << 16)
                listening = bool(read)
                tail = (tail + read)[-TAIL_BYTES:]
        code = process.poll()
    finally:
        _kill(process)
    while listening and select.select([output], [], [], 0)[0] and (read := os.read(output, 1 << 16)):
        tail = (tail + read)[-TAIL_BYTES:]
    return tail, (128 - code if code is not None and code < 0 else code)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The whole group, also what it left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _refusal(command: str, failure: str) -> str:
    place, _, reason = failure.partition(": ")
    if place in {command, "it"}:
        return f"the checker {command} cannot be run ({reason}); give a command that is there."
    return (
        f"this machine does not let a checker be shut off from the network ({failure}); allow user namespaces, or say "
        "that checkers may run unconfined."
    )
