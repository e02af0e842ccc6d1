"""`qwench chat` with many samples: the flags, what is told before and after, and every mistake in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwench.cli import main
from qwench.cli.serve import named_checkers
from qwench.errors import UsageError
from tests.cli.conftest import Install

ASK = ("-p", "What is 47 + 38?", "--max-tokens", "40")


@pytest.fixture
def model(text_folder: Path) -> str:
    return str(text_folder)


def test_a_vote_tells_its_cost_before_and_after(
    scripted: Install, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted("85")
    assert main(["chat", model, *ASK, "--vote", "8"]) == 0
    told = capsys.readouterr()
    assert told.out == "85\n"
    assert "vote: up to 8 samples, at most 320 tokens" in told.err
    assert "of at most 320 tokens" in told.err
    assert "votes for the answer" in told.err


def test_best_of_in_json_says_what_passed(scripted: Install, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    scripted("86")
    assert main(["chat", model, *ASK, "--best-of", "3", "--check", "arithmetic", "--budget", "100", "--json"]) == 0
    told = capsys.readouterr()
    document = json.loads(told.out)
    assert document["reasoning_strategy"]["passed"] is False
    assert len(document["reasoning_strategy"]["samples"]) == 3
    assert "no answer passed the check" in told.err


def test_a_command_and_a_schema_as_checks(
    scripted: Install, model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    scripted('{"sum": 85}')
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "required": ["sum"]}')
    for check in (("command:grep -q 85", "--check-unconfined", "--check-seconds", "3"), (f"schema:{schema}",)):
        assert main(["chat", model, *ASK, "--best-of", "2", "--check", *check]) == 0
        assert "it passed the check" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--best-of", "4"], "--best-of needs --check"),
        (["--check", "arithmetic"], "--check needs --vote N, --best-of N or --forest N"),
        (["--budget", "100"], "--budget needs --vote N"),
        (["--vote", "1000"], "--vote is 1000; give a whole number from 1 to 64"),
        (["--vote", "4", "--budget", "-5"], "--budget is -5; give a whole number"),
        (["--vote", "4", "--forest", "2"], "not allowed with"),
        (["--best-of", "2", "--check", "sums"], "--check is 'sums'; give arithmetic, schema:FILE"),
        (["--best-of", "2", "--check", "schema:/no/file"], "/no/file cannot be read (No such file or directory)"),
        (["--best-of", "2", "--check", "regex:("], "--check: regex cannot be read"),
        (["--best-of", "2", "--check", "command:no-such-thing -x"], "no command 'no-such-thing'"),
        (["--best-of", "2", "--check", "command:'"], "cannot be read (No closing quotation)"),
        (["--best-of", "2", "--check", "regex:x", "--check-seconds", "2"], "are about a command"),
        (["--vote", "4", "--temperature", "0"], "every sample would be the same"),
    ],
)
def test_a_mistake_is_one_sentence(
    scripted: Install, model: str, capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str
) -> None:
    scripted("85")
    assert main(["chat", model, *ASK, *flags]) in {2, 7}
    told = capsys.readouterr()
    assert sentence in told.err
    assert "Traceback" not in told.err
    assert not told.out


def test_the_operators_checkers() -> None:
    assert named_checkers(["pass=true", "grep.x=grep -q x"])["grep.x"].arguments == ("grep", "-q", "x")
    for wrong in (["true"], ["a=true", "a=true"], ["a b=true"], ["a="], ["a=no-such-thing"]):
        with pytest.raises(UsageError, match="--checker"):
            named_checkers(wrong)
