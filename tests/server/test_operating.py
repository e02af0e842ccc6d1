"""docs/operating.md: its files are read by those they are for, and whatever it names exists."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from qwench.cli import COMMANDS, Parser, _load
from qwench.cli.config_file import with_config
from tests.meta.tree import ROOT

PAGE = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
OTHERS = {"--no-install-recommends", "--no-cache-dir", "--from", "--create-home"}  # of apt-get, pip, COPY and useradd


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    return str(found)


def parser(command: str) -> Parser:
    made = Parser(prog=f"qwench {command}", allow_abbrev=False)
    _load(command).add_arguments(made)
    return made


def test_the_file_of_flags_is_understood(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(block("toml"))
    made = parser("serve")
    args = made.read(with_config(made, ["--config", str(file)]))
    assert (args.model, args.key_running, args.log_format) == ("qwen3.5:4b", 8, "json")


def test_every_flag_of_serve_may_stand_in_a_file(tmp_path: Path) -> None:
    samples = {"log-format": "json", "answers-to": "any", "on-disconnect": "finish", "max-body": "1MiB"}
    made, file = parser("serve"), tmp_path / "serve.toml"
    for name, action in made.flags.items():
        if name not in ("h", "help", "config"):
            value = True if action.nargs == 0 else samples.get(name, "1")
            file.write_text(f"{name} = {json.dumps(value)}\n")
            made.read(with_config(made, ["--config", str(file)]))


def test_every_flag_it_names_exists() -> None:
    known = {f"--{flag}" for command in COMMANDS for flag in parser(command).flags} | OTHERS
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)) <= known


def test_the_service_starts_what_there_is(tmp_path: Path) -> None:
    unit = block("ini")
    command = re.findall(r"^ExecStart=\S+/qwench (\w+) (.+)$", unit, flags=re.MULTILINE)
    assert command == [("serve", "--config /etc/qwench/serve.toml")]
    judge = shutil.which("systemd-analyze")
    if judge is None:
        pytest.skip("systemd-analyze is not installed")
    file = tmp_path / "qwench.service"
    file.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit, flags=re.MULTILINE))
    told = subprocess.run([judge, "verify", str(file)], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr) == (0, "")


def test_the_container_starts_what_there_is() -> None:
    lines = block("dockerfile").replace("\\\n", " ")
    (entry,) = re.findall(r"^ENTRYPOINT (.+)$", lines, flags=re.MULTILINE)
    program, command, *flags = json.loads(entry)
    (run,) = re.findall(r"^`docker run (.+)`$", PAGE, flags=re.MULTILINE)
    model = shlex.split(run)[-1]
    args = parser(command).read([*flags, model])
    assert (Path(program).name, args.host, args.model) == ("qwench", "0.0.0.0", "qwen3.5:4b")  # noqa: S104
    assert f"EXPOSE {args.port}\n" in lines
    assert "make" in lines, "CMake needs it beside the compiler, and without it builds nothing"
    assert (ROOT / "constraints.txt").exists()
