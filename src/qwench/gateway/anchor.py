"""The small file beside a ledger: how far the chain had come at least, and which processes are writing.

Rows cut off at the end leave a chain that is whole in itself; only something outside the database knows that there were
more. Whoever can write both can forge both: keep what ``qwench ledger verify`` prints somewhere else, too.
"""

from __future__ import annotations

import fcntl
import os
import random
import struct
from pathlib import Path

from qwench.errors import LedgerUnavailable
from qwench.gateway.records import Receipt

FIRST_WRITER, LAST_WRITER = 1 << 20, 1 << 40  # bytes far behind the line, of which a living writer holds one locked
_LOCK = "hhqqi"  # struct flock of 64-bit Linux, and padding


def parse(text: str) -> Receipt | None:
    """``SEQ:HASH``, as it is written and printed; None for anything else."""
    seq, _, digest = text.strip().partition(":")
    return Receipt(int(seq), digest) if seq.isdecimal() and len(digest) == 64 else None


def read(path: Path) -> Receipt | None:
    """What the file says; None where there is none."""
    try:
        return parse(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


class Anchor:
    """The file, held open by one writer, whose ``writer`` number nobody else has while this process lives."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise LedgerUnavailable(f"the ledger's anchor {path} cannot be opened: {error.strerror}.") from None
        self.path, self._seq = path, -1
        self.writer = random.SystemRandom().randrange(FIRST_WRITER, LAST_WRITER)
        self._lock(fcntl.F_OFD_SETLK, self.writer)  # the kernel lets go when the process ends, however it ends

    def write(self, receipt: Receipt) -> None:
        """How far the chain has come. One write of one short line: a killed process leaves the old or the new."""
        if receipt.seq > self._seq:
            os.pwrite(self._file, f"{receipt}\n".ljust(96).encode("ascii"), 0)
            self._seq = receipt.seq

    def alive(self, writer: int) -> bool:
        """Whether the process that wrote as ``writer`` still has the file open."""
        if writer == self.writer:
            return True
        kind = struct.unpack(_LOCK, self._lock(fcntl.F_OFD_GETLK, writer))[0]
        return bool(kind != fcntl.F_UNLCK)

    def close(self) -> None:
        os.close(self._file)

    def _lock(self, command: int, writer: int) -> bytes:
        wanted = struct.pack(_LOCK, fcntl.F_WRLCK, os.SEEK_SET, writer, 1, 0)
        return fcntl.fcntl(self._file, command, wanted)
