"""The suite: parts that cannot be run are left out, parts of one day and commit join, and all become one table."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench import suite
from tests.bench.documents import document


def test_parts_of_one_commit_join_and_the_later_one_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(suite, "ROOT", tmp_path)
    first, second = ({"name": name, **document()} for name in ("4 bits", "8 bits"))
    path = suite.write([first, second])
    assert path == suite.write([{**first, "qwench": "later"}])
    kept = json.loads(path.read_text())["parts"]
    assert [(part["name"], part["qwench"]) for part in kept] == [("8 bits", second["qwench"]), ("4 bits", "later")]
    shown = suite.table({"parts": kept})
    assert shown.count("| prefill 4 |") == 2
    assert f"Raw samples: `{suite.result_file(kept)}`." in shown


def test_a_part_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 2)

    monkeypatch.setattr(subprocess, "run", run)
    part = suite.Part("4 bits", ("--shape", "qwen3.5:0.8b"), ("llama.cpp",))
    assert suite.run_part(part, ["llama.cpp:Q4_0"], 5, ["ik_llama.cpp=/there"]) is None
    assert "4 bits: left out, for the reason above" in capsys.readouterr().err
    (command,) = commands
    assert command[command.index("--compare") + 1] == "llama.cpp:Q4_0"
    assert command[command.index("--peer-path") + 1] == "ik_llama.cpp=/there"


def test_every_part_is_a_command_that_is_understood(tmp_path: Path) -> None:
    import argparse

    from qwench.bench.compare import PEERS
    from qwench.cli import bench

    for part in suite.parts(full=True, small_file=tmp_path / "x.gguf"):
        parser = argparse.ArgumentParser()
        bench.add_arguments(parser)
        args = parser.parse_args(part.flags)
        assert bench.read_rows(args)
        bench.read_choice(args)
        assert all(peer.partition(":")[0] in PEERS for peer in part.peers)
