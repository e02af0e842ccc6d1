"""A process killed at any moment loses no row it was told of, writes none twice, and leaves a chain that verifies."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from qwench.gateway.ledger import Ledger
from tests.gateway.books import checked, rows_of

# Begins attempts on three threads, and says an id once its row is committed: what a client would have seen.
WRITER = """
import sys, threading
from qwench.gateway.ledger import Ledger
from qwench.gateway.records import *
ledger = Ledger.open(sys.argv[1])
lock = threading.Lock()
def work():
    while True:
        attempt = Attempt(Kind.GENERATE, "own", "p", "m")
        with ledger.attempt(Task(), attempt) as running:
            running.end(Ending(Status.COMPLETED, contents={"request": "text"})).result()
        with lock:
            sys.stdout.write(attempt.id + "\\n")
            sys.stdout.flush()
print("ready", flush=True)
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
threading.Event().wait()
"""


def kill_rounds(path: Path, rounds: int, seed: int) -> Counter[str]:
    chance, told = random.Random(seed), Counter[str]()
    for number in range(rounds):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        seen: list[str] = []
        reader = threading.Thread(target=lambda out=process.stdout, into=seen: into.extend(out), daemon=True)
        reader.start()
        rows = chance.randrange(1, 40)  # by progress, for a busy machine takes its time
        while len(seen) < rows:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.wait()
        reader.join()
        process.stdout.close()
        told.update(line.strip() for line in seen[1:] if line.endswith("\n"))
        found = checked(path)
        assert found.whole, (seed, number, found.wrong)
    Ledger.open(str(path)).close()  # the next start
    found = checked(path)
    assert found.whole, found.wrong
    assert not found.remarks
    kept = Counter(dict(rows_of(path, "SELECT id, count(*) FROM attempt GROUP BY id")))
    assert all(kept[name] == 1 for name in told), "a row that was told of is missing or there twice"
    assert set(kept.values()) <= {1}
    return told


def test_a_killed_process_loses_no_committed_row(tmp_path: Path) -> None:
    assert kill_rounds(tmp_path / "ledger.db", rounds=2, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_kills_lose_no_committed_row(tmp_path: Path) -> None:
    assert len(kill_rounds(tmp_path / "ledger.db", rounds=200, seed=2)) > 2000
