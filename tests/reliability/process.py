"""`qwench serve nano` as a process of its own, and what can be seen of it from outside."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

import qwench

SOURCE = Path(qwench.__file__).parents[1]


@dataclass
class Served:
    """A running server; ``log`` is what it writes to standard error."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path

    def metric(self, name: str) -> float:
        found = re.search(rf"^qwench_{name} (\S+)$", httpx.get(f"{self.address}/metrics").text, re.MULTILINE)
        assert found, name
        return float(found[1])

    @property
    def resident(self) -> int:
        """Bytes of memory."""
        told = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", told)
        assert found
        return 1024 * int(found[1])

    @property
    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def listeners(self) -> list[str]:
        """The addresses that this process listens on, as the kernel writes them."""
        own = {str(path.readlink()) for path in Path(f"/proc/{self.process.pid}/fd").iterdir() if path.exists()}
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:] + Path("/proc/net/tcp6").read_text().splitlines()[1:]
        rows = [line.split() for line in lines]
        return [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own]

    def rest(self, seconds: float = 5.0) -> None:
        """Wait until nothing runs, at most so long."""
        until = time.monotonic() + seconds
        while self.metric("requests_running") or self.metric("requests_waiting"):
            assert time.monotonic() < until, f"{self.metric('requests_running')} requests are still running"
            time.sleep(0.05)


@contextmanager
def served(folder: Path, *flags: str, **environment: str) -> Iterator[Served]:
    """``qwench serve nano`` with ``flags``, ready; ended when the block is left. ``folder`` takes its log."""
    log = folder / "server.log"
    command = [sys.executable, "-m", "qwench", "serve", "nano", "--port", "0", *flags]
    known = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", **environment}
    with log.open("wb") as told, subprocess.Popen(command, stderr=told, stdout=told, env=known) as process:
        try:
            yield Served(process, _address(process, log), log)
        finally:
            process.kill()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        found = re.search(r"listens on (http://\S+)", log.read_text())
        if found and httpx.get(f"{found[1]}/health").status_code == 200:
            return found[1]
        time.sleep(0.05)
    raise AssertionError(log.read_text())
