"""What the server keeps: files, batches and their lines, in one SQLite database.

A batch's lines lie there one by one with what came of each, so a server that was killed goes on where it stopped: a
line has its whole result or none. Without a path the database is SQLite's own temporary one, gone with the process.
Every row has an owner, and nobody is told of another's. Knows no HTTP and no engine; for any thread.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwench.errors import OutputError, Overloaded, RequestError, UsageError
from qwench.fault import fault

VERSION = 1  # of the tables below, in the file's user_version
PIECE = 1 << 20
RETRY = 60.0  # seconds; batches take long
MOST_BYTES, MOST_FILES = 4 << 30, 10_000  # of one owner's files
MOST_RUNNING = 20  # batches of one owner
MOST_OVER = 1000  # of those that are over; older ones are forgotten
TABLES = """
CREATE TABLE files (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, document TEXT NOT NULL, bytes INTEGER NOT NULL, expires INTEGER,
    content BLOB NOT NULL);
CREATE TABLE batches (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, document TEXT NOT NULL, running INTEGER NOT NULL);
CREATE TABLE lines (
    batch TEXT NOT NULL, number INTEGER NOT NULL, request TEXT NOT NULL, claimed INTEGER NOT NULL DEFAULT 0,
    status INTEGER, result BLOB, PRIMARY KEY (batch, number)) WITHOUT ROWID;
CREATE INDEX waiting ON lines (batch, number) WHERE NOT claimed;
"""
NEW = f"BEGIN; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;"

Document = dict[str, Any]


class NotKept(RequestError):
    """There is nothing of this id, or it is somebody else's."""

    status, code = 404, "not_found"


class Full(OutputError):
    """There is no room for what should be kept."""

    status, code = 507, "storage_full"


class Store:
    """Raises UsageError where the file cannot be used, Full where it cannot take more."""

    def __init__(self, path: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self.lasts = path is not None
        self._clock = clock
        self._lock = threading.Lock()
        try:
            fault("open.store")
            # "": SQLite makes a file that nobody else can open and that goes with the process.
            self._database = sqlite3.connect(path or "", timeout=1.0, check_same_thread=False, isolation_level=None)
            self._open()
        except (sqlite3.Error, OSError) as error:
            reason = f"--store {path} cannot be used ({error}); is another server running with it?"
            raise UsageError(f"{reason} Give another file.", param="store") from None

    def _open(self) -> None:
        database = self._database
        database.execute("PRAGMA locking_mode = EXCLUSIVE")  # two servers would do the same work twice
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("BEGIN EXCLUSIVE")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        database.execute("COMMIT")
        if version not in (0, VERSION):
            raise sqlite3.DatabaseError(f"it is of version {version}, this Qwench knows {VERSION}")
        if version == 0:
            database.executescript(NEW)
        database.execute("UPDATE lines SET claimed = 0 WHERE claimed AND status IS NULL")  # whoever had them was killed

    def close(self) -> None:
        with self._lock:
            self._database.close()

    @contextmanager
    def _turn(self) -> Iterator[sqlite3.Connection]:
        """The database to oneself; all that is written in it, or nothing."""
        with self._lock:
            try:
                self._database.execute("BEGIN")
                fault("write.store")
                yield self._database
                self._database.execute("COMMIT")
            except (sqlite3.Error, OSError) as error:
                self._undo()
                raise Full(f"The server cannot keep this ({error}); its operator has to make room.") from None
            except BaseException:
                self._undo()
                raise

    def _undo(self) -> None:
        if self._database.in_transaction:
            self._database.execute("ROLLBACK")

    # Files

    def add_file(self, owner: str, document: Mapping[str, Any], size: int, pieces: Iterable[bytes]) -> Document:
        """Keep ``size`` bytes. What is gone by its date goes now."""
        with self._turn() as database:
            database.execute("DELETE FROM files WHERE expires < ?", (self._clock(),))
            return self._write(database, owner, document, size, pieces)

    def _write(
        self, database: sqlite3.Connection, owner: str, given: Mapping[str, Any], size: int, pieces: Iterable[bytes]
    ) -> Document:
        query = "SELECT count(*), coalesce(sum(bytes), 0) FROM files WHERE owner = ?"
        count, held = database.execute(query, (owner,)).fetchone()
        if held + size > MOST_BYTES or count >= MOST_FILES:
            told = f"This key has {count} files of {held} bytes, and may have {MOST_FILES} of {MOST_BYTES}"
            raise Full(f"{told}; delete some.", param="file")
        document = {**_named("file"), "object": "file", "bytes": size, "created_at": int(self._clock()), **given}
        row = (document["id"], owner, json.dumps(document), size, document.get("expires_at"), size)
        database.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?, zeroblob(?))", row)
        (place,) = database.execute("SELECT rowid FROM files WHERE id = ?", (document["id"],)).fetchone()
        with database.blobopen("files", "content", place) as blob:
            for piece in pieces:
                blob.write(piece)
        return document

    def files(self, owner: str) -> list[Document]:
        """From the oldest to the newest."""
        with self._turn() as database:
            rows = database.execute(
                "SELECT document FROM files WHERE owner = ? AND coalesce(expires > ?, 1) ORDER BY rowid",
                (owner, self._clock()),
            )
            return [json.loads(document) for (document,) in rows]

    def file(self, owner: str, file_id: str) -> Document:
        found = next((each for each in self.files(owner) if each["id"] == file_id), None)
        if found is None:
            raise NotKept(f"There is no file {file_id!r:.80} of this key.", param="file_id")
        return found

    def content(self, owner: str, file_id: str) -> Iterator[bytes]:
        """The bytes of a file in pieces, as long as it is there."""
        size, at = self.file(owner, file_id)["bytes"], 0
        while at < size:
            with self._turn() as database:
                place = database.execute("SELECT rowid FROM files WHERE id = ?", (file_id,)).fetchone()
                if place is None:
                    return
                with database.blobopen("files", "content", place[0], readonly=True) as blob:
                    blob.seek(at)
                    piece = blob.read(PIECE)
            at += len(piece)
            yield piece

    def delete_file(self, owner: str, file_id: str) -> None:
        self.file(owner, file_id)
        with self._turn() as database:
            database.execute("DELETE FROM files WHERE id = ?", (file_id,))

    # Batches

    def add_batch(self, owner: str, given: Mapping[str, Any], requests: Iterable[str]) -> Document:
        """Keep a batch and its requests, JSON each, in their order."""
        with self._turn() as database:
            running = "SELECT count(*) FROM batches WHERE owner = ? AND running"
            if database.execute(running, (owner,)).fetchone()[0] >= MOST_RUNNING:
                told = f"This key has {MOST_RUNNING} batches under way; wait for one to end, or cancel one."
                raise Overloaded(told, retry_after=RETRY, code="batch_limit")
            newest = "SELECT rowid FROM batches WHERE owner = ? AND NOT running ORDER BY rowid DESC LIMIT ?"
            forget = f"DELETE FROM batches WHERE owner = ? AND NOT running AND rowid NOT IN ({newest})"  # noqa: S608
            database.execute(forget, (owner, owner, MOST_OVER))
            document = {**_named("batch"), "object": "batch", "created_at": int(self._clock()), **given}
            row = (document["id"], owner, json.dumps(document), document["status"] == "in_progress")
            database.execute("INSERT INTO batches VALUES (?, ?, ?, ?)", row)
            lines = ((document["id"], number, line) for number, line in enumerate(requests, start=1))
            database.executemany("INSERT INTO lines (batch, number, request) VALUES (?, ?, ?)", lines)
            return document

    def batches(self, owner: str) -> list[Document]:
        """From the oldest to the newest."""
        with self._turn() as database:
            rows = database.execute("SELECT id FROM batches WHERE owner = ? ORDER BY rowid", (owner,)).fetchall()
            return [self._document(database, batch_id) for (batch_id,) in rows]

    def batch(self, owner: str, batch_id: str) -> Document:
        with self._turn() as database:
            if not database.execute("SELECT 1 FROM batches WHERE owner = ? AND id = ?", (owner, batch_id)).fetchone():
                raise NotKept(f"There is no batch {batch_id!r:.80} of this key.", param="batch_id")
            return self._document(database, batch_id)

    def cancel(self, owner: str, batch_id: str) -> Document:
        """Let nothing more of a batch begin."""
        document = self.batch(owner, batch_id)
        if document["status"] == "in_progress":
            with self._turn() as database:
                self._change(database, batch_id, status="cancelling", cancelling_at=int(self._clock()))
                database.execute("UPDATE lines SET claimed = 1 WHERE batch = ?", (batch_id,))
        return self.batch(owner, batch_id)

    def running(self) -> list[tuple[str, str, str]]:
        """Id, owner and status of the batches that are not over, the oldest first."""
        with self._turn() as database:
            rows = database.execute("SELECT id, owner, document FROM batches WHERE running ORDER BY rowid")
            return [(batch_id, owner, json.loads(document)["status"]) for batch_id, owner, document in rows]

    def claim(self, batch_id: str) -> tuple[int, Document] | None:
        """The next request of a batch, with its number; None if all are answered or claimed."""
        with self._turn() as database:
            query = "SELECT number, request FROM lines WHERE batch = ? AND NOT claimed ORDER BY number LIMIT 1"
            found = database.execute(query, (batch_id,)).fetchone()
            if found is None:
                return None
            database.execute("UPDATE lines SET claimed = 1 WHERE batch = ? AND number = ?", (batch_id, found[0]))
            return found[0], json.loads(found[1])

    def answer(self, batch_id: str, number: int, status: int, result: bytes) -> None:
        """What came of a request."""
        with self._turn() as database:
            row = (status, result, batch_id, number)
            database.execute("UPDATE lines SET status = ?, result = ? WHERE batch = ? AND number = ?", row)

    def finish(self, batch_id: str, owner: str, untold: Callable[[Document], bytes]) -> None:
        """If the batch is over its results become a file, and its failures another. ``untold`` is the result of a
        request that was cancelled."""
        with self._turn() as database:
            before, now = self._document(database, batch_id), int(self._clock())
            over = "cancelled" if before["status"] == "cancelling" else "completed"
            left = "SELECT number, request FROM lines WHERE batch = ? AND status IS NULL"
            unanswered = database.execute(left, (batch_id,)).fetchall()
            if unanswered and over == "completed":
                return
            for number, request in unanswered:
                row = (untold(json.loads(request)), batch_id, number)
                database.execute("UPDATE lines SET status = 0, result = ? WHERE batch = ? AND number = ?", row)
            written = {
                "output_file_id": self._gather(database, before, owner, "output"),
                "error_file_id": self._gather(database, before, owner, "error"),
            }
            counts = before["request_counts"]
            self._change(database, batch_id, status=over, request_counts=counts, **{f"{over}_at": now}, **written)
            database.execute("UPDATE batches SET running = 0 WHERE id = ?", (batch_id,))
            database.execute("DELETE FROM lines WHERE batch = ?", (batch_id,))

    def _gather(self, database: sqlite3.Connection, batch: Document, owner: str, kind: str) -> str | None:
        """A file of the results of one kind, "output" or "error", a line each; None if there are none."""
        wanted = (batch["id"], kind == "output")
        sizes = "SELECT sum(length(result) + 1) FROM lines WHERE batch = ? AND (status = 200) = ?"
        (size,) = database.execute(sizes, wanted).fetchone()
        if not size:
            return None
        results = "SELECT result FROM lines WHERE batch = ? AND (status = 200) = ? ORDER BY number"
        found = database.execute(results, wanted)
        expiry = batch["output_expires_after"]
        expires = int(self._clock()) + expiry["seconds"] if expiry else None
        given: Document = {"filename": f"{batch['id']}_{kind}.jsonl", "purpose": "batch_output"}
        given |= {"status": "processed", "expires_at": expires}
        return str(self._write(database, owner, given, size, (result + b"\n" for (result,) in found))["id"])

    def _document(self, database: sqlite3.Connection, batch_id: str) -> Document:
        """The batch as it is told, with what is counted while it runs."""
        query = "SELECT document, running FROM batches WHERE id = ?"
        told, running = database.execute(query, (batch_id,)).fetchone()
        document: Document = json.loads(told)
        if running:
            sums = """SELECT count(*), coalesce(sum(status = 200), 0), coalesce(sum(status <> 200), 0)
                FROM lines WHERE batch = ?"""
            counts = database.execute(sums, (batch_id,)).fetchone()
            document["request_counts"] = dict(zip(("total", "completed", "failed"), counts, strict=True))
        return document

    def _change(self, database: sqlite3.Connection, batch_id: str, **changes: object) -> None:
        (told,) = database.execute("SELECT document FROM batches WHERE id = ?", (batch_id,)).fetchone()
        row = (json.dumps({**json.loads(told), **changes}), batch_id)
        database.execute("UPDATE batches SET document = ? WHERE id = ?", row)


def _named(kind: str) -> dict[str, str]:
    """A new id, which nobody can guess."""
    return {"id": f"{'file-' if kind == 'file' else 'batch_'}{uuid.uuid4().hex}"}
