"""The same ledger in PostgreSQL: a server of its own, where one is installed."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwench.errors import LedgerError, LedgerUnavailable
from qwench.gateway import tables
from qwench.gateway.chain import Finding, verify
from qwench.gateway.history import read_cases
from qwench.gateway.ledger import Ledger
from qwench.gateway.records import Ending, Judge, Outcome, Status, Task, Verdict
from qwench.gateway.report import make_report
from qwench.gateway.store import connect
from tests.gateway.books import Clock, attempt, ending
from tests.gateway.conftest import Start
from tests.gateway.test_faults import hold_the_storm

pytest.importorskip("psycopg")
PROGRAMS = {name: shutil.which(name) for name in ("initdb", "postgres")}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all(PROGRAMS.values()), reason="no PostgreSQL server is installed"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A URL. The server listens on a socket in its folder alone, and does not run as root."""
    user = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    with tempfile.TemporaryDirectory() as folder:
        shutil.chown(folder, user)
        run: dict[str, Any] = {"user": user} if os.geteuid() == 0 else {}
        data = f"{folder}/data"
        subprocess.run(
            [str(PROGRAMS["initdb"]), "-D", data, "-U", "qwench", "--auth=trust"],
            check=True,
            capture_output=True,
            **run,
        )
        command = [str(PROGRAMS["postgres"]), "-D", data, "-k", folder, "-c", "listen_addresses="]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **run)
        assert process.stderr is not None
        for line in process.stderr:
            if "ready to accept connections" in line:
                break
        yield f"postgresql://qwench@/{{}}?host={folder}"
        process.send_signal(signal.SIGINT)  # who is still connected is not waited for
        process.communicate(timeout=30)


@pytest.fixture
def where(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database of its own; anchors lie in the user's folder."""
    import psycopg

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    name = f"books_{tmp_path.name.replace('-', '_')}".lower()
    with psycopg.connect(server.format("postgres"), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return server.format(name)


def checked(where: str) -> Finding:
    store = connect(where, make=False)
    try:
        return verify(store)
    finally:
        store.close()


def execute(where: str, statement: str) -> None:
    import psycopg

    with psycopg.connect(where) as connection:
        connection.execute(statement)


def test_the_same_records_make_a_whole_chain_and_the_same_report(where: str) -> None:
    with Ledger.open(where, clock=Clock()) as ledger:
        for number in range(4):
            with ledger.attempt(Task(f"t{number}", name="code", key="ann"), attempt(model="a\0b")) as running:
                running.end(ending(0.1 * (number + 1), contents={"request": "Ann's words"}))
            verdict = Verdict.ACCEPTED if number else Verdict.REJECTED
            ledger.outcome(Outcome(f"t{number}", verdict, Judge.TEST)).result()
        assert ledger.spent(key="ann").amounts == {"USD": pytest.approx(1.0)}
        assert ledger.erase(key="ann") == 4
        with ledger.store.reading() as connection:
            total = make_report(read_cases(connection)).total
    assert total.cost is not None
    assert total.cost.value == pytest.approx(1 / 3)
    found = checked(where)
    assert found.whole, found.wrong
    assert found.rows == {"task": 4, "attempt": 4, "outcome": 4, "event": 1}


def test_several_processes_write_one_chain_and_the_dead_one_is_found(where: str) -> None:
    code = """
import os, sys
from qwench.gateway.ledger import Ledger
from qwench.gateway.records import *
ledger = Ledger.open(sys.argv[1])
print("open", flush=True)
sys.stdin.readline()
for _ in range(50):
    ledger.record(Task(), Attempt(Kind.GENERATE, "t", "p", "m"), Ending(Status.COMPLETED)).result()
ledger.attempt(Task(), Attempt(Kind.GENERATE, "t", "p", "m"))
ledger.event(Event("configured")).result()
os.kill(os.getpid(), 9)
"""
    with Ledger.open(where) as ledger:
        waiting, go = os.pipe()
        run = [sys.executable, "-c", code, where]
        others = [subprocess.Popen(run, stdin=waiting, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        os.close(waiting)
        # Who opened later would end what the other, dead by then, had begun.
        assert [other.stdout.readline() for other in others if other.stdout] == ["open\n", "open\n"]
        os.close(go)
        for _ in range(50):
            ledger.record(Task(), attempt(), Ending(Status.COMPLETED)).result()
        for other in others:
            other.communicate(timeout=60)
        assert [other.returncode for other in others] == [-9, -9]
    assert any("2 attempts are pending" in remark for remark in checked(where).remarks)
    Ledger.open(where).close()
    found = checked(where)
    assert found.whole, found.wrong
    assert (found.rows["attempt"], found.remarks) == (152, [])


@pytest.mark.parametrize("table", [table.name for table in tables.CHAIN if table.name != "event"])
def test_a_change_is_found(where: str, table: str) -> None:
    with Ledger.open(where) as ledger:
        ledger.record(Task("t"), attempt(), ending())
        ledger.outcome(Outcome("t", Verdict.ACCEPTED, Judge.USER)).result()
    execute(where, f"DELETE FROM {table}")
    assert not checked(where).whole


def test_other_databases_and_servers_that_are_gone_are_one_sentence(where: str) -> None:
    execute(where, "CREATE TABLE recipe (name TEXT)")
    with pytest.raises(LedgerError, match="holds no ledger"):
        Ledger.open(where)
    with pytest.raises(LedgerUnavailable, match="the database server knows no such database"):
        Ledger.open(where.replace("books_", "no_books_"))


def test_every_attempt_of_a_storm_is_one_row(where: str, start: Start) -> None:
    hold_the_storm(start, 500, where)
