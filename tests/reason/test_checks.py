"""Checks and the cell they run in: what fails, hangs, crashes, hoards or calls out is a failed check, told in words."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from qwench.errors import RequestError, UsageError
from qwench.reason.checks import Command, Verdict, read_check
from qwench.reason.judge import complaints, unknown_keyword
from qwench.reason.sandbox import Bounds, run

PYTHON = sys.executable


def confinable() -> bool:
    try:
        run(["true"], "", Bounds(seconds=10))
    except UsageError:
        return False
    return True


needs_namespaces = pytest.mark.skipif(not confinable(), reason="this machine gives no user namespaces")


def verdict(command: list[str], text: str = "answer", **options: Any) -> Verdict:
    return read_check({"command": command, "unconfined": True, "timeout": 2, **options}, "")(text)


def test_the_answer_comes_on_standard_input_and_the_exit_code_decides() -> None:
    assert verdict(["grep", "-q", "answer"]).passed
    failed = verdict([PYTHON, "-c", "import sys; sys.exit('line 3 is ' + sys.stdin.read())"], "wrong")
    assert not failed.passed
    assert "line 3 is wrong" in failed.words


def test_there_is_no_shell() -> None:
    assert "a; exit 0" in verdict([PYTHON, "-c", "import sys; sys.exit(sys.argv[1])", "a; exit 0"]).words


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["sleep", "100"], "stopped after 2 seconds"),
        (["sh", "-c", "while :; do :; done"], "stopped after 2 seconds"),
        (["sh", "-c", "kill -SEGV $$"], "crashed (SIGSEGV)"),
        ([PYTHON, "-c", "bytes(1 << 33)"], "MemoryError"),
        (["sh", "-c", "yes; exit 1"], "stopped after 2 seconds"),
        ([PYTHON, "-c", "open('/dev/stderr', 'w').write('x' * 10**7); raise SystemExit(1)"], "exit code 1"),
    ],
)
def test_a_checker_that_misbehaves_is_a_failed_check(command: list[str], words: str) -> None:
    started = time.monotonic()
    found = verdict(command)
    assert not found.passed
    assert words in found.words
    assert len(found.words) < 5000
    assert time.monotonic() - started < 8


def test_an_answer_that_nobody_reads_blocks_nothing() -> None:
    assert verdict(["true"], "x" * 10_000_000).passed


def test_a_checker_leaves_no_file_descriptor_and_no_folder_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    verdict(["true"])
    before = len(list(Path("/proc/self/fd").iterdir()))
    verdict(["sh", "-c", "exit 1"])
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert not list(tmp_path.iterdir())


@needs_namespaces
def test_a_confined_checker_reaches_no_network_not_even_this_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"import socket; socket.create_connection({server.getsockname()!r}, 1)"
        assert verdict([PYTHON, "-c", code]).passed
        found = verdict([PYTHON, "-c", code], unconfined=False)
    assert "unreachable" in found.words


@needs_namespaces
def test_a_confined_checker_writes_only_into_its_scratch(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("here")
    found = verdict(["sh", "-c", f"echo fine > $TMPDIR/x && cat $TMPDIR/x && rm {mine}"], unconfined=False)
    assert not found.passed
    assert "fine" in found.words
    assert mine.read_text() == "here"


@needs_namespaces
def test_what_a_confined_checker_began_dies_with_it(tmp_path: Path) -> None:
    """Also what left its session: the kernel ends the whole namespace."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    code = (
        f"import os, time\nif not os.fork():\n os.setsid()\n open({str(pipe)!r}, 'w')\n time.sleep(60)\ntime.sleep(0.3)"
    )
    assert verdict([PYTHON, "-c", code], unconfined=False).passed
    assert os.read(reader, 1) == b""  # nobody has it open for writing any more
    os.close(reader)


@needs_namespaces
def test_a_confined_checker_sees_no_keys_and_no_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "sesame")
    found = verdict(["sh", "-c", f"env; ls /proc/{os.getpid()}; exit 1"], unconfined=False)
    assert "sesame" not in found.words
    assert "environ" not in found.words


def test_where_there_is_no_confinement_it_is_refused_and_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cell = Path("src/qwench/reason/cell.py").resolve().read_text()
    broken = tmp_path / "cell.py"
    broken.write_text(
        cell.replace('must(libc.unshare(spaces), "unshare")', 'raise OSError(1, "Not permitted", "unshare")')
    )
    monkeypatch.setattr("qwench.reason.sandbox.CELL", broken)
    with pytest.raises(RequestError, match=r"shut off from the network \(unshare: Not permitted\).*unconfined"):
        read_check({"command": ["true"]}, "")
    assert read_check({"command": ["true"], "unconfined": True}, "")("x").passed


def test_a_checker_that_vanishes_later_is_a_failed_check() -> None:
    found = Command(("nowhere-to-be-found",), Bounds(confined=False))("x")
    assert not found.passed
    assert "cannot be run" in found.words


SCHEMA = {
    "type": "object",
    "required": ["name", "age"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "minLength": 1, "pattern": "^[A-Z]"},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "uniqueItems": True, "maxItems": 2},
        "kind": {"anyOf": [{"const": None}, {"enum": ["a", "b"]}]},
    },
    "$defs": {"tag": {"type": "string"}},
}


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ({"name": "Ann", "age": 3}, None),
        ({"name": "Ann", "age": 3.0, "tags": ["x"], "kind": "b"}, None),
        ({"name": "ann", "age": 3}, "$.name does not match"),
        ({"name": "Ann"}, "$.age is missing"),
        ({"name": "Ann", "age": True}, "$.age should be of type integer"),
        ({"name": "Ann", "age": -1}, "$.age does not keep minimum 0"),
        ({"name": "Ann", "age": 3, "more": 1}, "$.more must not be there"),
        ({"name": "Ann", "age": 3, "tags": ["x", 1]}, "$.tags[1] should be of type string"),
        ({"name": "Ann", "age": 3, "tags": ["x", "x"]}, "$.tags holds something twice"),
        ({"name": "Ann", "age": 3, "kind": "c"}, "$.kind fits none of anyOf"),
        ([], "$ should be of type object"),
    ],
)
def test_a_schema(value: object, complaint: str | None) -> None:
    found = list(complaints(value, SCHEMA, SCHEMA))
    assert (not found) if complaint is None else any(complaint in each for each in found)


def test_schema_and_pattern_as_checks() -> None:
    check = read_check({"schema": SCHEMA}, "")
    assert check('{"name": "Ann", "age": 3}').passed
    assert "is not JSON" in check("Ann, 3").words
    assert "$.age is missing" in check('{"name": "Ann"}').words
    assert read_check({"regex": r"\d+ euros"}, "")("It costs 12 euros.").passed
    assert "does not match" in read_check({"regex": "^x"}, "")("y").words


def test_a_pattern_that_would_take_for_ever_is_a_failed_check() -> None:
    found = read_check({"regex": "^(a+)+$"}, "")("a" * 40 + "b")
    assert not found.passed
    assert "stopped after 5 seconds" in found.words


def test_arithmetic() -> None:
    check = read_check("arithmetic", "What is 47 + 38?")
    assert check("85").passed
    assert check("47 + 38 = 85").passed
    assert not check("86").passed
    assert "2 + 2 = 5 is not true" in check("2 + 2 = 5, so 85").words
    assert "no equation" in read_check("arithmetic", "How are you?")("Fine.").words


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("sums", "give one of"),
        ({"schema": {}, "regex": "x"}, "give one of"),
        ({"schema": {"type": "thing"}}, "schema.type cannot be checked"),
        ({"schema": {"properties": {"a": {"if": {}}}}}, "schema.properties.a.if cannot be checked"),
        ({"schema": 3}, "schema is no schema"),
        ({"regex": "("}, "regex cannot be read"),
        ({"regex": "x", "timeout": 3}, "'timeout', which regex does not know"),
        ({"command": "make test"}, "list of arguments"),
        ({"command": []}, "list of arguments"),
        ({"command": ["no-such-command-here"]}, "no command 'no-such-command-here'"),
        ({"command": ["true"], "timeout": 0}, "timeout is 0"),
        ({"command": ["true"], "memory": 5}, "memory is 5"),
        ({"command": ["true"], "shell": True}, "'shell', which command does not know"),
        ({"checker": "tests"}, "no checker 'tests'"),
    ],
)
def test_what_cannot_be_checked_is_refused_by_name(given: object, sentence: str) -> None:
    with pytest.raises(RequestError) as refusal:
        read_check(given, "")
    assert sentence in refusal.value.message
    assert refusal.value.param == "check"


def test_a_client_names_a_checker_and_never_a_command() -> None:
    checkers = {"yes": Command(("true",), Bounds(confined=False))}
    assert read_check({"checker": "yes"}, "", checkers)("x").passed
    with pytest.raises(RequestError, match="commands are not run for clients"):
        read_check({"command": ["true"]}, "", checkers)
    with pytest.raises(RequestError, match="there is no checker 'no'; there is yes"):
        read_check({"checker": "no"}, "", checkers)


def test_keywords_nobody_checks_are_named_with_their_place() -> None:
    assert unknown_keyword(SCHEMA) is None
    assert unknown_keyword({"items": {"format": "date"}}) == "schema.items.format"
    assert unknown_keyword({"$ref": "http://elsewhere"}) is not None
