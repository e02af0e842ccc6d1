"""``qwench ledger`` and ``qwench report`` as a user sees them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from qwench import cli
from qwench.cli.report import when
from qwench.errors import LedgerError
from tests.gateway.books import NOVEMBER, change, fill, rows_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    fill(tmp_path / "ledger.db")
    return tmp_path / "ledger.db"


def run(path: Path, *arguments: str) -> int:
    return cli.main([*arguments, "--ledger", str(path)])


def test_a_report_has_cost_and_completion_together(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(path, "report") == 0
    told = capsys.readouterr().out
    assert "3 tasks, 9 attempts, ≥ $0.0630 spent; 2 of 3 with a verdict were completed." in told
    assert "for a completed task; 67% (21%–94%) completed." in told
    assert "3 attempts of unknown cost: not reported." in told
    for word in ("class", "tier", "model", "thinking", "where it went", "verify"):
        assert word in told


def test_a_report_for_machines_keeps_unknown_unknown(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(path, "report", "--json", "--by", "class,tier") == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["total"]["cost"] is None
    assert report["total"]["at_least"]["value"] == pytest.approx(0.0315)
    assert report["total"]["completion"]["value"] == pytest.approx(2 / 3)
    assert report["unknown"] == {"not reported": 3}
    assert run(path, "report", "--csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["by"] for row in rows} == {"class", "tier", "model", "thinking"}
    assert all(row["cost_per_completed"] == "" and row["unknown_attempts"] != "0" for row in rows)


def test_a_report_becomes_a_page(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "report.html"
    assert run(path, "report", "--html", str(page)) == 0
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert f"Written to {page}." in capsys.readouterr().err
    assert run(path, "report", "--html", str(tmp_path / "no" / "page.html")) == 10
    assert "cannot be written" in capsys.readouterr().err


def test_a_time_is_a_date_or_an_age(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert when("2026-11-01", "since", 0.0) == NOVEMBER
    assert when("2d", "since", 3 * 86_400.0) == 86_400.0
    assert run(path, "report", "--json", "--until", "2026-11-01") == 0
    assert json.loads(capsys.readouterr().out)["total"]["tasks"] == 0
    assert run(path, "report", "--since", "yesterday") == 2
    assert "--since 'yesterday' is no time; give a date such as 2026-11-01" in capsys.readouterr().err


@pytest.mark.parametrize("command", [("report",), ("ledger", "verify"), ("ledger", "export")])
def test_where_no_ledger_is_none_is_made(
    tmp_path: Path, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "none.db", *command) == LedgerError.exit_code
    assert "there is no ledger at" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_verify_prints_an_anchor_to_keep_and_fails_on_a_change(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(path, "ledger", "verify") == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"{path} is whole (3 tasks, 9 attempts, 3 outcomes, 1 event, 6 texts)."
    anchor = told[-1].removeprefix("anchor ")
    assert run(path, "ledger", "verify", "--anchor", anchor) == 0
    change(path, "UPDATE attempt SET amount = 0 WHERE id = 'second-0'")
    assert run(path, "ledger", "verify") == 1
    assert "is not as it was written" in capsys.readouterr().out
    assert run(path, "ledger", "verify", "--anchor", "7:x") == 2
    assert "--anchor must be SEQ:HASH" in capsys.readouterr().err


def test_an_export_goes_into_another_ledger(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other, log = tmp_path / "other.db", tmp_path / "log.jsonl"
    assert run(path, "ledger", "export") == 0
    log.write_text(capsys.readouterr().out, encoding="utf-8")
    assert run(other, "ledger", "import", str(log)) == 0
    told = capsys.readouterr()
    assert told.out == f"12 added, 0 were there already, 0 not understood, of {log}.\n"
    assert "3 have no known cost" in told.err
    assert run(other, "ledger", "verify") == 0
    for form in ("csv", "otel"):
        assert run(path, "ledger", "export", "--format", form) == 0
    assert capsys.readouterr().out


def test_a_log_with_a_wrong_line_is_taken_only_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, path = tmp_path / "log", tmp_path / "ledger.db"
    line = {"model": "m", "created": NOVEMBER, "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    log.write_text(f"{json.dumps(line)}\nhalf\nhalf\n", encoding="utf-8")
    assert run(path, "ledger", "import", str(log), "--tier", "api", "--class", "chat") == 2
    assert "line 2: is no JSON object and 1 lines more; nothing was imported. --skip" in capsys.readouterr().err
    assert not path.exists()
    assert run(path, "ledger", "import", str(log), "--skip", "--tier", "api", "--class", "chat") == 0
    assert rows_of(path, "SELECT tier, name FROM attempt JOIN task ON task.id = attempt.task") == [("api", "chat")]


def test_an_outcome_is_recorded(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(path, "ledger", "outcome", "task-1", "accepted") == 0
    assert capsys.readouterr().out == "Recorded as row 17.\n"
    assert rows_of(path, "SELECT judge, verdict FROM outcome WHERE task = 'task-1' ORDER BY seq") == [
        ("test", "rejected"),
        ("user", "accepted"),
    ]


def test_texts_are_erased_and_accounts_stay(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(path, "ledger", "erase", "--task", "task-0") == 0
    assert run(path, "ledger", "erase", "--before", "1h") == 0
    assert capsys.readouterr().out.splitlines() == [
        "2 texts erased; the accounts are as they were.",
        "4 texts erased; the accounts are as they were.",
    ]
    assert run(path, "ledger", "verify") == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("verify", "more"), "qwench ledger verify has no use for 'more'"),
        (("outcome", "task-0"), "qwench ledger outcome needs TASK and VERDICT"),
        (("outcome", "task-0", "good"), "'good' is no verdict; give accepted, rejected, abandoned"),
        (("outcome", "task-0", "accepted", "--by", "me"), "--by me judges nothing; give user, test"),
        (("outcome", "none", "accepted"), "there is no task 'none' in the ledger"),
        (("erase",), "say what shall be erased"),
        (("erase", "--tier", "x"), "--tier is of no use to qwench ledger erase"),
        (("verify", "--class", "x"), "--class is of no use to qwench ledger verify"),
        (("import", "/nowhere.jsonl"), "/nowhere.jsonl cannot be read: no such file or directory"),
    ],
)
def test_a_mistake_is_one_sentence(
    path: Path, arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(path, "ledger", *arguments) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1
