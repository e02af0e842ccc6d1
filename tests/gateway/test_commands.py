"""`qwench route` and what of `qwench gateway` can be said without serving."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwench.cli import main
from qwench.gateway.ledger import Ledger
from qwench.gateway.records import Task
from tests.gateway.books import attempt, ending
from tests.gateway.conftest import PRICES, tiers

MORE = '[classes.sums]\nvalue = 0.01\nwords = ["sum"]\n'


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    (tmp_path / "prices.toml").write_text(PRICES, encoding="utf-8")
    path = tmp_path / "tiers.toml"
    path.write_text(tiers("http://127.0.0.1:1", "https://api.example.com", more=MORE), encoding="utf-8")
    return path


def test_explain_prints_every_signal_number_and_the_decision(
    settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["route", "explain", "What is the sum?", "--config", str(settings), "--data", "secret"]) == 0
    told = capsys.readouterr().out
    for part in (
        "data       secret: the header says so",
        "class      sums: it says 'sum'",
        "V = 0.01 USD",
        "own/small",
        "0 of the 5 outcomes it takes",
        "premium/large  data: premium may not see secret data, and the header says so",
        "decision   own/small: nothing else is open",
    ):
        assert part in told, told


def test_explain_as_json(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["route", "explain", "the sum", "--config", str(settings), "--json", "--max-tokens", "5", "--budget", "1"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["class"] == "sums"
    assert told["signals"]["limit"] == 5
    assert set(told["weighed"]) == {"own/small", "premium/large"}


def test_replay_counts_who_would_answer(settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bodies = [{"messages": [{"role": "user", "content": text}]} for text in ("the sum", "the sum", "hello")]
    lines = [json.dumps(bodies[0]), json.dumps({"custom_id": "1", "body": bodies[1]}), "", json.dumps(bodies[2])]
    file = tmp_path / "requests.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    assert main(["route", "replay", str(file), "--config", str(settings)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "3 requests"
    assert [line.split() for line in told[1:3]] == [["2", "sums", "own/small"], ["1", "general", "own/small"]]
    assert told[-1].startswith("expected cost of 3: ")
    file.write_text("{]", encoding="utf-8")
    assert main(["route", "replay", str(file), "--config", str(settings)]) == 2
    assert f"{file}, line 1: no JSON" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["gateway"], ["route", "explain", "x"]])
def test_a_settings_file_that_is_missing_or_wrong_is_one_sentence(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--config", str(tmp_path / "none.toml")]) == 2
    assert "none.toml cannot be read: no such file" in capsys.readouterr().err
    (tmp_path / "wrong.toml").write_text("[gateway]\ndefualt = 1\n", encoding="utf-8")
    assert main([*words, "--config", str(tmp_path / "wrong.toml")]) == 2
    told = capsys.readouterr().err
    assert told.endswith("wrong.toml, line 2: gateway.defualt is not known; did you mean default?\n")


def test_other_machines_need_a_key(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gateway", "--config", str(settings), "--host", "192.0.2.1"]) == 2
    assert "lets other machines in without a key" in capsys.readouterr().err


def test_a_report_by_many_dimensions_is_told_whole_where_nobody_looks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ledger.db"
    with Ledger.open(str(path)) as ledger:
        task = Task("t1", "a class whose name is rather long", "confidential and more", "a key with a long name")
        ledger.record(task, attempt(), ending(), started=1.0).result()
    assert main(["report", "--ledger", str(path), "--by", "class,tier,model,thinking,recipe,data,key"]) == 0
    told = capsys.readouterr().out
    for whole in (task.name, task.data, task.key, "for a completed task", "on failures", "1 (1 open)"):
        assert whole in told, told
