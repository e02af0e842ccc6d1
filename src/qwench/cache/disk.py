"""The disk tier: snapshots that survive a restart, as bytes in files of one folder per model.

An entry is the keys and values since its parent entry (``.kv``) and the state behind them (``.state``), so that a
conversation of twenty turns is stored once, not twenty times. A file is written beside its place, synced, and renamed
into it; its last bytes are a checksum of all others. What is damaged is dropped with one line in the log.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from qwench.cache.tree import ID_BYTES
from qwench.errors import UsageError
from qwench.fault import fault

FORMAT = 2
DIGEST = 20  # bytes of names and checksums
MAX_HEADER = 4096
MAX_QUEUED = 512 * 2**20  # bytes that wait to be written; what comes while more are waiting is not stored

logger = logging.getLogger(__name__)


@dataclass
class Entry:
    """``position`` tokens: keys and values from page ``first_page`` on, behind those of ``parent``, and a state, unless
    that made room (``state_bytes`` is 0). ``used`` is in seconds since 1970; ``children`` go on from here."""

    name: str
    position: int
    parent: str | None
    first_page: int
    kv_bytes: int
    state_bytes: int = 0
    used: float = 0.0
    written: bool = True
    children: int = 0


@dataclass(frozen=True)
class Coming:
    """``size`` bytes that somebody still copies."""

    size: int
    copied: Future[memoryview]

    def __len__(self) -> int:
        return self.size


@dataclass(frozen=True)
class Loaded:
    """The bytes of an entry: its pages in runs of (first page, bytes), later ones over earlier ones."""

    runs: list[tuple[int, memoryview]]
    state: memoryview


@dataclass
class DiskTier:
    """Entries of one model, told apart from others' by ``identity``, in at most ``limit`` bytes of ``folder``.

    Raises UsageError where nothing can be written there.
    """

    folder: Path
    identity: bytes
    limit: int
    page_size: int
    held: int = 0  # bytes
    _entries: dict[str, Entry] = field(default_factory=dict)
    _queued: int = 0
    _complained: bool = False

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._writes: SimpleQueue[tuple[Entry, memoryview | Coming, memoryview] | None] = SimpleQueue()
        self.path = self.folder / self.identity.hex()[:16]
        try:
            fault("write.cache")
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            probe = self.path / f"{os.getpid()}.part"
            probe.write_bytes(b"")
            self._scan()
        except OSError as error:
            raise UsageError(
                f"--cache-dir is {self.folder}, which cannot be written ({error.strerror}); give a folder that can.",
                param="cache_dir",
            ) from None
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._write_all,), name="qwench-cache", daemon=True
        )
        self._thread.start()

    def __len__(self) -> int:
        return sum(1 for entry in list(self._entries.values()) if entry.state_bytes)

    def find(self, key: bytes, limit: int) -> Entry | None:
        """The deepest entry with a state for at most ``limit`` of the ids in ``key``."""
        found = [entry for entry in self._path(key, limit) if entry.written and entry.state_bytes]
        return found[-1] if found else None

    def plan(self, key: bytes, near: int) -> Entry | None:
        """The entry that would be stored for the ids of ``key``; None if one is there or near, or writing lags."""
        position = len(key) // ID_BYTES
        with self._lock:
            if self._queued > MAX_QUEUED:
                return None
        path = list(self._path(key, position))
        if path and position - path[-1].position < near:
            return None
        parent = path[-1] if path else None
        first_page = parent.position // self.page_size if parent else 0
        return Entry(self._name(key), position, parent.name if parent else None, first_page, 0)

    def put(self, entry: Entry, pages: memoryview | Coming, state: memoryview) -> None:
        """Have a planned entry written: its ``pages`` from its first page on, and its ``state``."""
        entry.kv_bytes, entry.state_bytes, entry.written = len(pages) + DIGEST, len(state) + DIGEST, False
        with self._lock:
            if entry.parent is not None:
                if entry.parent not in self._entries:  # it made room in the meantime
                    return
                self._entries[entry.parent].children += 1
            self._entries[entry.name] = entry
            self._queued += len(pages) + len(state)
        self._writes.put((entry, pages, state))

    def load(self, entry: Entry) -> Loaded | None:
        """The bytes of ``entry``, or None where any of its files is damaged or gone; then it is dropped."""
        runs: list[tuple[int, memoryview]] = []
        each = entry
        try:
            state = self._read(entry, "state")
            while True:
                runs.insert(0, (each.first_page, self._read(each, "kv")))
                if each.parent is None:
                    break
                each = self._entries[each.parent]
            os.utime(self._file(entry, "state"))
        except (OSError, ValueError, KeyError) as error:
            self.lose(each, "what it goes on from is gone" if isinstance(error, KeyError) else str(error))
            return None
        entry.used = time.time()
        return Loaded(runs, state)

    def lose(self, entry: Entry, reason: str) -> None:
        """Drop a damaged entry, and with it everything that goes on from it."""
        logger.warning("%s: a cache entry of %d tokens was dropped: %s", self.path, entry.position, reason)
        with self._lock:
            lost = {entry.name}
            while more := {each.name for each in self._entries.values() if each.parent in lost} - lost:
                lost |= more
            for each in [self._entries.pop(name) for name in lost if name in self._entries]:
                self.held -= each.kv_bytes + each.state_bytes if each.written else 0
                for kind in ("state", "kv"):
                    self._file(each, kind).unlink(missing_ok=True)
            if entry.parent in self._entries:
                self._entries[entry.parent].children -= 1

    def close(self) -> None:
        """Write what is queued, and stop."""
        self._writes.put(None)
        self._thread.join()

    def _name(self, key: bytes) -> str:
        return hashlib.blake2b(key, key=self.identity, digest_size=DIGEST).hexdigest()

    def _path(self, key: bytes, limit: int) -> Iterator[Entry]:
        """The entries for beginnings of ``key``, the shortest first."""
        with self._lock:
            positions = sorted({entry.position for entry in self._entries.values() if entry.position <= limit})
        digest, done = hashlib.blake2b(key=self.identity, digest_size=DIGEST), 0
        for position in positions:
            if position * ID_BYTES > len(key):
                return
            digest.update(key[done * ID_BYTES : position * ID_BYTES])
            done = position
            entry = self._entries.get(digest.copy().hexdigest())
            if entry is not None:
                yield entry

    def _file(self, entry: Entry, kind: str) -> Path:
        return self.path / f"{entry.name}.{kind}"

    def _scan(self) -> None:
        """Learn what is there; files that were never finished, and states without pages, go."""
        for left in self.path.glob("*.part"):
            left.unlink(missing_ok=True)
        for file in sorted(self.path.glob("*.kv")):
            header = _header(file)
            if header is None or header.get("format") != FORMAT or header.get("identity") != self.identity.hex():
                logger.warning("%s is no cache entry of this model and was dropped", file)
                file.unlink(missing_ok=True)
                continue
            entry = Entry(file.stem, header["position"], header["parent"], header["first_page"], file.stat().st_size)
            self._entries[entry.name] = entry
        for file in self.path.glob("*.state"):
            known = self._entries.get(file.stem)
            if known is None:
                file.unlink(missing_ok=True)
                continue
            status = file.stat()
            known.state_bytes, known.used = status.st_size, status.st_mtime
        for entry in list(self._entries.values()):
            if entry.parent in self._entries:
                self._entries[entry.parent].children += 1
            elif entry.parent is not None and entry.name in self._entries:
                self.lose(entry, "what it goes on from is gone")
        self.held = sum(entry.kv_bytes + entry.state_bytes for entry in self._entries.values())
        self._shrink()

    def _write_all(self) -> None:
        while (item := self._writes.get()) is not None:
            entry, pages, state = item
            size = len(pages) + len(state)
            try:
                self._write(entry, "kv", pages.copied.result() if isinstance(pages, Coming) else pages)
                self._write(entry, "state", state)
                entry.used, entry.written = self._file(entry, "state").stat().st_mtime, True
                self.held += entry.kv_bytes + entry.state_bytes
                self._complained = False
                self._shrink()
            except (OSError, MemoryError) as error:
                if not self._complained:
                    reason = error.strerror if isinstance(error, OSError) else "out of memory"
                    logger.warning("%s cannot be written (%s); states are not kept there for now", self.path, reason)
                self._complained = True
                self._drop(entry)
            finally:
                with self._lock:
                    self._queued -= size

    def _write(self, entry: Entry, kind: str, data: memoryview) -> None:
        """One file, whole or not at all."""
        header = _encode(entry, kind, self.identity, len(data))
        part = self.path / f"{entry.name}.{kind}.{os.getpid()}.part"
        fault("write.cache")
        with part.open("wb") as target:  # the folder is its owner's alone
            target.writelines((header, data, _checksum((header, data))))
            target.flush()
            os.fsync(target.fileno())
        part.replace(self._file(entry, kind))
        folder = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _read(self, entry: Entry, kind: str) -> memoryview:
        """The data of a file. Raises OSError, or ValueError saying what is wrong with it."""
        path = self._file(entry, kind)
        fault("read.cache")
        content = memoryview(path.read_bytes())
        header = bytes(content[:MAX_HEADER]).partition(b"\n")[0] + b"\n"
        data = content[len(header) : -DIGEST]
        if header != _encode(entry, kind, self.identity, len(data)):
            raise ValueError(f"{path.name} is not what its name says")
        if bytes(content[-DIGEST:]) != _checksum((header, data)):
            raise ValueError(f"{path.name} is damaged")
        return data

    def _shrink(self) -> None:
        """Remove the states that were not used for longest, and pages that nothing needs any more."""
        with self._lock:
            oldest = sorted((e for e in self._entries.values() if e.written and e.state_bytes), key=lambda e: e.used)
        for entry in oldest:
            if self.held <= self.limit:
                return
            self._drop(entry)

    def _drop(self, entry: Entry) -> None:
        """Remove the state of ``entry``, and the pages of it and of those before it that no state needs."""
        self._file(entry, "state").unlink(missing_ok=True)
        with self._lock:
            self.held -= entry.state_bytes if entry.written else 0
            entry.state_bytes = 0
            bare: Entry | None = entry
            while bare is not None and bare.name in self._entries and not bare.children and not bare.state_bytes:
                self._file(bare, "kv").unlink(missing_ok=True)
                self.held -= bare.kv_bytes if bare.written else 0
                del self._entries[bare.name]
                bare = self._entries.get(bare.parent or "")
                if bare is not None:
                    bare.children -= 1


def _encode(entry: Entry, kind: str, identity: bytes, size: int) -> bytes:
    """The first line of a file; it names everything that the data depend on."""
    facts = {
        "format": FORMAT,
        "kind": kind,
        "identity": identity.hex(),
        "name": entry.name,
        "position": entry.position,
        "parent": entry.parent,
        "first_page": entry.first_page,
        "bytes": size,
    }
    return json.dumps(facts).encode() + b"\n"


def _checksum(pieces: Iterable[bytes | memoryview]) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST)
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def _header(path: Path) -> dict[str, Any] | None:
    """The first line of a file, if it is one of ours and as long as it says."""
    try:
        with path.open("rb") as source:
            line = source.readline(MAX_HEADER)
        header = json.loads(line)
        whole = isinstance(header, dict) and len(line) + header["bytes"] + DIGEST == path.stat().st_size
        numbers = all(isinstance(header[name], int) and header[name] >= 0 for name in ("position", "first_page"))
        return header if whole and numbers and header["name"] == path.stem else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
