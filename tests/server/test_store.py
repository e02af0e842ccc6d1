"""What the server keeps: whole or not at all, one owner's apart from another's, through any kind of end."""

from __future__ import annotations

import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qwench.errors import Overloaded, UsageError
from qwench.fault import planned
from qwench.server import store as module
from qwench.server.store import PIECE, VERSION, Full, NotKept, Store

GIVEN = {"filename": "in.jsonl", "purpose": "batch", "status": "processed", "expires_at": None}
REQUESTS = [{"custom_id": f"id {number}", "url": "/v1/completions", "body": {}} for number in range(3)]
FULL = OSError(errno.ENOSPC, "No space left on device")


def keep(store: Store, content: bytes, owner: str = "a", **more: Any) -> str:
    pieces = [content[at : at + 7] for at in range(0, len(content), 7)]
    return str(store.add_file(owner, {**GIVEN, **more}, len(content), pieces)["id"])


def begin(store: Store, owner: str = "a") -> str:
    given: dict[str, Any] = {"status": "in_progress", "request_counts": {}, "output_expires_after": None}
    return str(store.add_batch(owner, given, map(json.dumps, REQUESTS))["id"])


def text(store: Store, file_id: str | None, owner: str = "a") -> bytes:
    assert file_id is not None
    return b"".join(store.content(owner, file_id))


def test_a_file_comes_back_as_it_was_also_in_pieces() -> None:
    store = Store()
    content = os.urandom(2 * PIECE + 5)
    file_id = str(store.add_file("a", GIVEN, len(content), [content])["id"])
    pieces = list(store.content("a", file_id))
    assert b"".join(pieces) == content
    assert max(map(len, pieces)) == PIECE
    store.close()


def test_nobody_is_told_of_anothers(tmp_path: Path) -> None:
    store = Store(tmp_path / "kept")
    file_id, batch_id = keep(store, b"secret"), begin(store)
    assert store.files("b") == store.batches("b") == []
    for ask in (store.file, store.delete_file, store.batch, store.cancel, lambda *which: list(store.content(*which))):
        theirs = file_id if "file" in ask.__name__ or "lambda" in ask.__name__ else batch_id
        with pytest.raises(NotKept) as failure:
            ask("b", theirs)
        with pytest.raises(NotKept) as unknown:
            ask("b", "no-such-id")
        assert failure.value.message.replace(theirs, "") == unknown.value.message.replace("no-such-id", "")
    assert text(store, file_id) == b"secret"
    store.close()


def test_a_batch_goes_from_its_requests_to_its_files() -> None:
    store = Store()
    batch_id = begin(store)
    assert store.running() == [(batch_id, "a", "in_progress")]
    claimed = [store.claim(batch_id) for _ in range(4)]
    assert claimed == [*enumerate(REQUESTS, 1), None]
    for number, status in ((1, 200), (3, 404)):
        store.answer(batch_id, number, status, f"result {number}".encode())
    store.finish(batch_id, "a", lambda _: b"")  # one of them is not answered yet
    assert store.batch("a", batch_id)["request_counts"] == {"total": 3, "completed": 1, "failed": 1}
    store.answer(batch_id, 2, 200, b"result 2")
    store.finish(batch_id, "a", lambda _: b"")
    over = store.batch("a", batch_id)
    assert (over["status"], over["request_counts"]) == ("completed", {"total": 3, "completed": 2, "failed": 1})
    assert text(store, over["output_file_id"]) == b"result 1\nresult 2\n"
    assert text(store, over["error_file_id"]) == b"result 3\n"
    assert store.running() == []
    store.close()


def test_a_cancelled_batch_keeps_what_was_answered() -> None:
    store = Store()
    batch_id = begin(store)
    store.claim(batch_id)
    store.answer(batch_id, 1, 200, b"result 1")
    assert store.cancel("a", batch_id)["status"] == "cancelling"
    assert store.claim(batch_id) is None
    store.finish(batch_id, "a", lambda request: request["custom_id"].encode())
    over = store.batch("a", batch_id)
    assert (over["status"], over["request_counts"]) == ("cancelled", {"total": 3, "completed": 1, "failed": 0})
    assert text(store, over["output_file_id"]) == b"result 1\n"
    assert text(store, over["error_file_id"]) == b"id 1\nid 2\n"
    assert store.cancel("a", batch_id) == over
    store.close()


def test_what_expires_is_gone_from_then_on() -> None:
    now = 100.0
    store = Store(clock=lambda: now)
    short, long = keep(store, b"x", expires_at=150), keep(store, b"y")
    assert [each["id"] for each in store.files("a")] == [short, long]
    now = 200.0
    assert [each["id"] for each in store.files("a")] == [long]
    with pytest.raises(NotKept):
        list(store.content("a", short))
    keep(store, b"z")
    assert store._database.execute("SELECT count(*) FROM files").fetchone() == (2,)
    store.close()


def test_one_owner_cannot_fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 10)
    store = Store()
    keep(store, b"12345678")
    with pytest.raises(Full, match=r"has 1 files of 8 bytes, and may have 10000 of 10; delete some"):
        keep(store, b"123")
    keep(store, b"123", owner="b")
    store.delete_file("a", store.files("a")[0]["id"])
    keep(store, b"123")
    store.close()


def test_batches_of_one_owner_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_RUNNING", 2)
    monkeypatch.setattr(module, "MOST_OVER", 3)
    store = Store()
    first, _ = begin(store), begin(store)
    with pytest.raises(Overloaded, match="has 2 batches under way"):
        begin(store)
    begin(store, owner="b")
    for _ in range(5):
        store.cancel("a", first)
        store.finish(first, "a", lambda _: b"")
        first = begin(store)
    assert [each["status"] for each in store.batches("a")].count("cancelled") <= 4
    store.close()


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    with planned() as plan:
        store = Store(tmp_path / "kept")
        plan.fail("write.store", FULL, times=1)
        with pytest.raises(Full, match="No space left on device"):
            keep(store, b"x")
        assert store.files("a") == []
        keep(store, b"x")
        store.close()


def failing(pieces: list[bytes]) -> Any:
    yield from pieces
    raise EOFError


def test_an_upload_that_breaks_off_leaves_nothing() -> None:
    store = Store()
    with pytest.raises(EOFError):
        store.add_file("a", GIVEN, 10, failing([b"half"]))
    assert store.files("a") == []
    keep(store, b"whole")
    store.close()


def test_everything_is_there_after_a_restart_and_nothing_stays_claimed(tmp_path: Path) -> None:
    store = Store(tmp_path / "kept")
    file_id, batch_id = keep(store, b"content"), begin(store)
    store.claim(batch_id)
    store.claim(batch_id)
    store.answer(batch_id, 1, 200, b"result 1")
    store.close()
    again = Store(tmp_path / "kept")
    assert text(again, file_id) == b"content"
    assert [again.claim(batch_id) for _ in range(3)] == [(2, REQUESTS[1]), (3, REQUESTS[2]), None]
    again.close()


WRITER = """
import sys
from pathlib import Path
from qwench.server.store import Store
store = Store(Path(sys.argv[1]))
batch_id = store.add_batch("a", {"status": "in_progress"}, ("{}" for _ in range(100_000)))["id"]
print(batch_id, flush=True)
while (claimed := store.claim(batch_id)) is not None:
    store.answer(batch_id, claimed[0], 200, b"x" * 1000)
    print(claimed[0], flush=True)
"""


def test_a_killed_writer_loses_at_most_what_it_had_not_told(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        batch_id = writer.stdout.readline().strip()
        told = 0
        while told < 50:
            told = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        told = max([told, *(int(line) for line in writer.stdout.read().split())])
    store = Store(path)
    assert store._database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    claimed = store.claim(batch_id)
    assert claimed is not None
    assert told < claimed[0] <= told + 2  # one may have been kept and not told
    store.close()


def test_two_servers_cannot_have_the_same_file(tmp_path: Path) -> None:
    store = Store(tmp_path / "kept")
    with pytest.raises(UsageError, match=r"--store .*kept cannot be used \(database is locked\); is another server"):
        Store(tmp_path / "kept")
    store.close()
    Store(tmp_path / "kept").close()


def test_what_is_no_database_of_ours_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("my notes\n" * 1000, encoding="utf-8")
    with pytest.raises(UsageError, match="file is not a database"):
        Store(other)
    assert other.read_text(encoding="utf-8") == "my notes\n" * 1000
    with pytest.raises(UsageError, match="unable to open database file"):
        Store(tmp_path / "no" / "such" / "folder")
    newer = tmp_path / "newer"
    with sqlite3.connect(newer) as database:
        database.execute(f"PRAGMA user_version = {VERSION + 1}")
    database.close()
    with pytest.raises(UsageError, match=f"it is of version {VERSION + 1}, this Qwench knows {VERSION}"):
        Store(newer)
