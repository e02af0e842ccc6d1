"""The frame of the command line: help, unknown words, sentences instead of tracebacks, exit codes."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from qwench import __version__, cli, errors

Run = Callable[[argparse.Namespace], int]
Install = Callable[[Run], None]
SOURCE = Path(cli.__file__).parents[2]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a function as what every command runs; it has the flags MODEL, --port and --print."""

    def install(run: Run) -> None:
        def add_arguments(parser: argparse.ArgumentParser) -> None:
            parser.add_argument("model", nargs="?")
            parser.add_argument("--port", type=int, default=8000)
            parser.add_argument("-p", "--print")

        made = types.SimpleNamespace(add_arguments=add_arguments, run=run)
        monkeypatch.setattr(cli, "_load", lambda _name: made)

    return install


def test_help_lists_every_command_with_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    told = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"  {name} " in told
    assert cli.main([]) == 0
    assert capsys.readouterr().out == told


def test_commands_are_the_files_of_the_folder() -> None:
    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py")} - {"__init__"}
    runnable = {name for name in files if hasattr(cli._load(name), "run")}
    assert runnable == set(cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_and_a_short_summary(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    summary = cli.COMMANDS[name]
    assert summary == summary.strip().rstrip(".")
    assert 10 < len(summary) <= 90
    assert cli.main([name, "--help"]) == 0
    assert f"usage: qwench {name}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"qwench {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["chta"], "qwench has no command chta; did you mean chat?"),
        (["xyzzy"], "qwench has no command xyzzy; `qwench --help` lists the commands."),
        (["--versoin"], "qwench has no flag --versoin; did you mean --version?"),
        (["serve", "--prot", "80"], "qwench serve has no flag --prot; did you mean --port?"),
        (["serve", "--prot=80"], "qwench serve has no flag --prot; did you mean --port?"),
        (["serve", "--por", "80"], "qwench serve has no flag --por; did you mean --port?"),
        (["serve", "--zzz"], "qwench serve has no flag --zzz; `qwench serve --help` lists its flags."),
        (["serve", "-x"], "qwench serve has no flag -x; `qwench serve --help` lists its flags."),
        (["serve", "a", "b"], "qwench serve has no use for 'b'; see `qwench serve --help`."),
        (["serve", "--port", "x"], "argument --port: invalid int value: 'x'; see `qwench serve --help`."),
    ],
)
def test_a_mistyped_word_is_answered_with_the_nearest_one(
    arguments: list[str],
    sentence: str,
    command: Install,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command(lambda _args: pytest.fail("must not run"))
    assert cli.main(arguments) == errors.UsageError.exit_code == 2
    told = capsys.readouterr()
    assert told.err == f"qwench: {sentence}\n"
    assert told.out == ""


def test_text_that_looks_like_a_flag_can_be_passed(
    command: Install,
) -> None:
    seen: list[argparse.Namespace] = []

    def run(args: argparse.Namespace) -> int:
        seen.append(args)
        return 0

    command(run)
    assert cli.main(["chat", "-p", "-- is a comment"]) == 0
    assert cli.main(["chat", "--print=--zzz", "nano"]) == 0
    assert cli.main(["chat", "--", "--zzz"]) == 0
    assert [(args.print, args.model) for args in seen] == [
        ("-- is a comment", None),
        ("--zzz", "nano"),
        (None, "--zzz"),
    ]


@pytest.mark.parametrize("error", [errors.ConfigError, errors.ModelNotFound, errors.OutputError])
def test_an_expected_failure_is_one_sentence_and_its_exit_code(
    error: type[errors.QwenchError],
    command: Install,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(_args: argparse.Namespace) -> int:
        raise error("config.json is missing; give a folder that has one.")

    command(run)
    assert cli.main(["chat"]) == error.exit_code
    assert capsys.readouterr().err == "qwench: config.json is missing; give a folder that has one.\n"


def test_a_bug_keeps_its_traceback(command: Install) -> None:
    def run(_args: argparse.Namespace) -> int:
        raise AssertionError("a bug")

    command(run)
    with pytest.raises(AssertionError, match="a bug"):
        cli.main(["chat"])


def test_control_c_is_130(command: Install) -> None:
    def run(_args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    command(run)
    assert cli.main(["chat"]) == 130


def test_an_unknown_log_level_is_named(
    command: Install,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command(lambda _args: 0)
    monkeypatch.setenv("QWENCH_LOG", "loud")
    assert cli.main(["models"]) == 2
    assert capsys.readouterr().err == "qwench: QWENCH_LOG is 'loud'; give one of debug, info, warning, error.\n"


def test_exit_codes_are_distinct() -> None:
    classes = [
        each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.QwenchError)
    ]
    own = {each.exit_code for each in classes if "exit_code" in vars(each)}
    assert len(own) == len([each for each in classes if "exit_code" in vars(each)])
    assert not own & {0, cli.INTERRUPTED, cli.BROKEN_PIPE}


def test_a_reader_that_leaves_is_no_traceback() -> None:
    code = (
        "import sys, types, qwench.cli as cli\n"
        "def run(args):\n"
        "    for _ in range(20000): print('line after line')\n"
        "    return 0\n"
        "cli._load = lambda name: types.SimpleNamespace(add_arguments=lambda parser: None, run=run)\n"
        "sys.exit(cli.main(['chat']))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"line after line\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == cli.BROKEN_PIPE
