"""Exactly one row for each attempt, whatever fails around it."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import wait
from contextlib import closing
from pathlib import Path

import pytest

from qwench.errors import LedgerError, LedgerUnavailable, UsageError
from qwench.fault import planned
from qwench.gateway.ledger import Ledger
from qwench.gateway.records import Attempt, Ending, Event, Judge, Kind, Outcome, Status, Task, Verdict
from qwench.gateway.usage import Unknown
from tests.gateway.books import NOVEMBER, Clock, attempt, change, checked, ending, fill, rows_of

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def statuses(path: Path) -> list[tuple[str, str]]:
    return rows_of(path, "SELECT status, error FROM attempt ORDER BY seq")


def trouble_of(ledger: Ledger, *, there: bool = True) -> str:
    """The ledger's trouble, once there is one or none any more."""
    for _ in range(3000):
        if (ledger.trouble is not None) == there:
            return ledger.trouble or ""
        time.sleep(0.01)
    raise TimeoutError


def test_an_attempt_is_one_row_with_its_prices_frozen(path: Path) -> None:
    fill(path, tasks=1)
    (row,) = rows_of(
        path,
        "SELECT price_input, price_output, price_source, price_date, amount, unknown FROM attempt WHERE seq = 3",
    )
    assert row == (2.0, 10.0, "its list", "2026-10", 0.02, "{}")
    (row,) = rows_of(path, "SELECT amount, unknown FROM attempt WHERE id = 'first-0'")
    assert row[0] is None
    assert json.loads(row[1]) == {"amount": "not reported", "marginal": "not reported"}
    assert rows_of(path, "SELECT count(*) FROM pending") == [(0,)]
    assert checked(path).whole


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("upstream"), "failed"), (asyncio.CancelledError(), "cancelled"), (KeyboardInterrupt(), "cancelled")],
)
def test_leaving_without_an_end_is_an_ending(path: Path, error: BaseException, status: str) -> None:
    with Ledger.open(str(path)) as ledger:
        with pytest.raises(type(error)), ledger.attempt(Task(), attempt()):
            raise error
        with ledger.attempt(Task(), attempt()):
            pass
    assert statuses(path) == [(status, "unfinished"), ("failed", "unfinished")]
    (unknown,) = set(rows_of(path, "SELECT unknown FROM attempt"))
    assert json.loads(unknown[0])["output"] == "not reported"


def test_the_first_end_counts(path: Path) -> None:
    with Ledger.open(str(path)) as ledger, ledger.attempt(Task(), attempt()) as running:
        first = running.end(ending(0.5))
        assert running.end(Ending(Status.CANCELLED)) is first
    assert statuses(path) == [("completed", "")]


def test_a_task_of_many_attempts_is_recorded_once_and_its_first_record_stays(path: Path) -> None:
    for name in ("code", "chat"):
        with Ledger.open(str(path)) as ledger:
            for _ in range(3):
                ledger.record(Task("t", name=name), attempt(), ending())
    assert rows_of(path, "SELECT id, name FROM task") == [("t", "code")]
    assert len(statuses(path)) == 6


def test_an_outcome_needs_its_task(path: Path) -> None:
    with Ledger.open(str(path)) as ledger:
        ledger.record(Task("t"), attempt(id="a"), ending())
        with pytest.raises(UsageError, match="no task 'other'"):
            ledger.outcome(Outcome("other", Verdict.ACCEPTED, Judge.USER)).result()
        with pytest.raises(UsageError, match="no attempt 'b'"):
            ledger.outcome(Outcome("t", Verdict.ACCEPTED, Judge.USER, attempt="b")).result()
        ledger.outcome(Outcome("t", Verdict.ACCEPTED, Judge.USER, attempt="a")).result()
    assert checked(path).whole


def test_what_no_database_can_keep_is_made_storable(path: Path) -> None:
    with Ledger.open(str(path)) as ledger:
        odd = attempt(model="a\0b\ud800", decision={"\ud800": float("inf")})
        ledger.record(Task("t" * 900), odd, ending(contents={"request": "\0\udfff"})).result()
    assert rows_of(path, "SELECT model FROM attempt") == [("a\ufffdb?",)]
    assert checked(path).whole


def test_spending_is_told_by_key_and_time_and_unknown_is_no_zero(path: Path) -> None:
    clock = Clock()
    with Ledger.open(str(path), clock=clock) as ledger:
        ledger.record(Task("a", key="ann"), attempt(), ending(0.25)).result()
        later = clock.now + 0.5
        ledger.record(Task("b", key="bob"), attempt(), ending(0.5)).result()
        ledger.record(Task("c", key="ann"), attempt(), ending(Unknown.NOT_PRICED)).result()
        everything, ann, late = ledger.spent(), ledger.spent(key="ann"), ledger.spent(since=later)
    assert (everything.amounts, everything.attempts, everything.unknown) == ({"USD": 0.75}, 3, 1)
    assert (ann.amounts, ann.attempts, ann.unknown) == ({"USD": 0.25}, 2, 1)
    assert (late.amounts, late.attempts) == ({"USD": 0.5}, 2)


def test_tallies_count_a_task_under_the_option_that_answered_it(path: Path) -> None:
    fill(path, tasks=4)
    with Ledger.open(str(path)) as ledger:
        found = {(each.name, each.tier): each for each in ledger.tallies()}
    assert (found["code", "premium"].accepted, found["code", "premium"].rejected) == (2, 0)
    assert (found["chat", "premium"].accepted, found["chat", "premium"].rejected) == (0, 2)
    assert (found["code", "own"].accepted, found["code", "own"].attempts, found["code", "own"].cost) == (0, 2, None)
    assert found["code", "premium"].cost == pytest.approx(0.02)


def test_the_most_trusted_verdict_counts_and_of_equals_the_last(path: Path) -> None:
    with Ledger.open(str(path)) as ledger:
        ledger.record(Task("t"), attempt(), ending())
        for judge, verdict in (
            (Judge.TEST, Verdict.REJECTED),
            (Judge.USER, Verdict.REJECTED),
            (Judge.USER, Verdict.ACCEPTED),
            (Judge.JUDGE, Verdict.REJECTED),
        ):
            ledger.outcome(Outcome("t", verdict, judge)).result()
        (found,) = ledger.tallies()
    assert (found.accepted, found.rejected) == (1, 0)


def test_many_threads_and_processes_write_one_chain(path: Path) -> None:
    code = """
import sys
from qwench.gateway.ledger import Ledger
from qwench.gateway.records import *
with Ledger.open(sys.argv[1]) as ledger:
    for number in range(60):
        with ledger.attempt(Task(), Attempt(Kind.GENERATE, "t", "p", "m")) as running:
            running.end(Ending(Status.COMPLETED)).result() if number % 10 == 0 else None
"""
    others = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(2)]
    with Ledger.open(str(path)) as ledger:

        def write() -> None:
            wait([ledger.record(Task(), attempt(), ending()) for _ in range(100)])

        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [other.wait(60) for other in others] == [0, 0]
    found = checked(path)
    assert found.whole, found.wrong
    assert found.rows["attempt"] == 520


def test_what_a_dead_process_began_is_interrupted_and_what_a_living_one_began_is_not(path: Path) -> None:
    code = """
import os, sys, time
from qwench.gateway.ledger import Ledger
from qwench.gateway.records import *
ledger = Ledger.open(sys.argv[1])
ledger.attempt(Task("dead", name="code"), Attempt(Kind.GENERATE, "own", "p", "m", id="dead", decision={"p": 0.5}))
ledger.event(Event("configured")).result()  # behind it in the queue
os.kill(os.getpid(), 9)
"""
    with Ledger.open(str(path)) as ledger:
        running = ledger.attempt(Task("living"), attempt(id="living"))
        subprocess.run([sys.executable, "-c", code, str(path)], check=False, timeout=60)
        with Ledger.open(str(path)):
            assert rows_of(path, "SELECT attempt FROM pending") == [("living",)]
        assert rows_of(path, "SELECT id, status, tier, decision FROM attempt") == [
            ("dead", "interrupted", "own", '{"p":0.5}')
        ]
        running.end(ending()).result()
    assert rows_of(path, "SELECT attempt FROM pending") == []
    assert checked(path).whole


def test_a_clock_that_goes_back_is_told_and_loses_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with Ledger.open(str(path), clock=clock) as ledger:
        ledger.record(Task(), attempt(), ending()).result()
        clock.now -= 7200
        with caplog.at_level(logging.WARNING, "qwench.gateway.writer"):
            ledger.record(Task(), attempt(), ending()).result()
    assert "the clock went back by 7198 seconds" in caplog.text
    found = checked(path)
    assert found.whole
    assert any("clock went back" in remark for remark in found.remarks)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (FULL, "the disk is full"),
        (sqlite3.OperationalError("database or disk is full"), "the disk is full"),
        (sqlite3.OperationalError("attempt to write a readonly database"), "it may not be written"),
    ],
)
def test_while_the_disk_refuses_nothing_begins_and_nothing_is_lost(path: Path, error: Exception, sentence: str) -> None:
    with planned() as plan, Ledger.open(str(path)) as ledger:
        running = ledger.attempt(Task(), attempt())
        plan.fail("write.ledger", error)
        done = running.end(ending(0.5))
        assert sentence in trouble_of(ledger)
        with pytest.raises(LedgerUnavailable, match=sentence) as refused:
            ledger.attempt(Task(), attempt())
        assert (refused.value.status, refused.value.code) == (503, "ledger_unavailable")
        assert not done.done()
        plan.mend("write.ledger")
        done.result(timeout=30)
        assert not trouble_of(ledger, there=False)
        with ledger.attempt(Task(), attempt()):
            pass
    assert [status for status, _ in statuses(path)] == ["completed", "failed"]
    assert checked(path).whole


def test_a_file_that_another_holds_is_waited_for(path: Path) -> None:
    with Ledger.open(str(path)) as ledger, closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        done = ledger.record(Task(), attempt(), ending())
        assert "another process holds it locked" in trouble_of(ledger)
        other.rollback()
        done.result(timeout=30)
    assert checked(path).whole


def test_what_cannot_be_written_at_the_end_is_logged_and_can_be_imported(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from qwench import cli

    monkeypatch.setattr("qwench.gateway.writer.LAST_TRIES", 0.1)
    with planned() as plan:
        ledger = Ledger.open(str(path))
        plan.fail("write.ledger", FULL)
        done = ledger.record(Task("t"), attempt(id="late"), ending(0.5, contents={"request": "a secret"}))
        with caplog.at_level(logging.ERROR, "qwench"), pytest.raises(LedgerUnavailable, match="1 row is missing"):
            ledger.close()
    with pytest.raises(LedgerUnavailable):
        done.result()
    assert "a secret" not in caplog.text
    log = path.with_name("log.txt")
    log.write_text("\n".join(f"qwench: error: {line}" for line in caplog.messages if "{" in line), encoding="utf-8")
    assert cli.main(["ledger", "import", str(log), "--ledger", str(path)]) == 0, capsys.readouterr().err
    assert rows_of(path, "SELECT id, amount, task FROM attempt") == [("late", 0.5, "t")]
    assert checked(path).whole


def test_a_cancelled_wait_does_not_keep_the_row_from_being_written(path: Path) -> None:
    async def leave() -> None:
        with Ledger.open(str(path)) as ledger, ledger.attempt(Task(), attempt()) as running:
            waiting = asyncio.wrap_future(running.end(ending()))
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await asyncio.wrap_future(ledger.record(Task(), attempt(), ending()))

    asyncio.run(leave())
    assert [status for status, _ in statuses(path)] == ["completed", "completed"]


def test_contents_are_kept_apart_and_erased_without_a_trace(path: Path) -> None:
    with Ledger.open(str(path), clock=Clock()) as ledger:
        for number in range(250):
            kept = {"request": f"sentence number {number} of Ann", "response": "an answer"}
            ledger.record(Task(f"t{number}", key="ann"), attempt(), ending(contents=kept))
        ledger.record(Task("b", key="bob"), attempt(), ending(contents={"request": "Bob's own words"})).result()
        before = rows_of(path, "SELECT seq, hash FROM attempt")
        assert ledger.erase(key="ann") == 500
        assert rows_of(path, "SELECT seq, hash FROM attempt") == before
        for file in path.parent.iterdir():
            assert b"of Ann" not in file.read_bytes(), file
        assert ledger.erase(before=NOVEMBER) == 0
        assert rows_of(path, "SELECT text FROM content") == [("Bob's own words",)]
        assert ledger.erase(task="b") == 1
        with pytest.raises(UsageError, match="say what shall be erased"):
            ledger.erase()
    found = checked(path)
    assert found.whole, found.wrong
    assert found.texts == 0


def test_a_ledger_is_nobody_elses_to_read(path: Path) -> None:
    fill(path, 1)
    for file in path.parent.iterdir():
        assert not stat.S_IMODE(file.stat().st_mode) & 0o077, file


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"# Notes\n", "is a file, but no ledger"), (b"SQLite format 3\0 and nothing else", "its file is damaged")],
)
def test_another_file_is_refused_and_left_as_it_is(path: Path, content: bytes, sentence: str) -> None:
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=sentence):
        Ledger.open(str(path))
    assert path.read_bytes() == content


def test_another_database_is_refused(path: Path) -> None:
    change(path, "CREATE TABLE recipe (name TEXT)")
    with pytest.raises(LedgerError, match="holds no ledger"):
        Ledger.open(str(path))


@pytest.mark.parametrize(("version", "which"), [(0, "older"), (2, "newer")])
def test_another_versions_ledger_is_refused_and_left_as_it_is(path: Path, version: int, which: str) -> None:
    fill(path, 1)
    change(path, f"UPDATE ledger SET version = {version}")
    with pytest.raises(LedgerError, match=rf"version {version}, {which} than version 1.*Nothing was changed"):
        Ledger.open(str(path))


def test_an_older_copy_put_back_is_not_gone_on_with(path: Path) -> None:
    fill(path, 1)
    copy = path.read_bytes()
    fill(path.with_name("another.db"), 1)
    with Ledger.open(str(path)) as ledger:
        ledger.event(Event("configured")).result()
    path.write_bytes(copy)
    with pytest.raises(LedgerError, match="cut short or changed, or an older copy was put back"):
        Ledger.open(str(path))
    path.with_name("ledger.db.anchor").rename(path.with_name("kept"))
    Ledger.open(str(path)).close()


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("mysql://host/name", "cannot be read; give a path, or postgresql://"),
        ("postgresql://host:port/name", "cannot be read; give a path, or postgresql://"),
        ("postgresql://ann:secret@127.0.0.1:1/books", "the database server cannot be reached"),
        ("/proc/nowhere/ledger.db", "cannot be opened"),
    ],
)
def test_a_place_that_is_none_is_one_sentence_without_a_password(where: str, sentence: str) -> None:
    if where.startswith("postgresql://ann"):
        pytest.importorskip("psycopg")
    with pytest.raises(LedgerError, match=sentence) as refused:
        Ledger.open(where)
    assert "secret" not in str(refused.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_that_may_not_be_written_is_told(path: Path) -> None:
    fill(path, 1)
    path.chmod(0o400)
    with pytest.raises(LedgerUnavailable, match=r"it may not be written|cannot be opened"):
        Ledger.open(str(path))


def test_hundreds_of_attempts_of_every_kind_of_end_are_as_many_rows(path: Path) -> None:
    kinds = list(Kind)
    with Ledger.open(str(path)) as ledger:
        for number in range(600):
            try:
                with ledger.attempt(Task(f"t{number // 3}"), Attempt(kinds[number % 7], "t", "p", "m")) as running:
                    if number % 4 == 0:
                        raise TimeoutError
                    if number % 4 != 1:
                        running.end(ending())
                    if number % 4 == 3:
                        running.end(Ending(Status.FAILED))
            except TimeoutError:
                pass
    assert rows_of(path, "SELECT count(*), count(DISTINCT id) FROM attempt") == [(600, 600)]
    assert rows_of(path, "SELECT count(*) FROM pending") == [(0,)]
    assert dict(rows_of(path, "SELECT status, count(*) FROM attempt GROUP BY status")) == {
        "failed": 300,
        "completed": 300,
    }
