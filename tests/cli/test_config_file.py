"""Flags from a file: the same as typed, overruled by what is typed, and every mistake named by file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwench.cli import Parser
from qwench.cli.config_file import with_config
from qwench.cli.serve import add_arguments
from qwench.errors import UsageError


def parser() -> Parser:
    made = Parser(prog="qwench serve", allow_abbrev=False)
    add_arguments(made)
    return made


def write(folder: Path, text: str) -> str:
    file = folder / "serve.toml"
    file.write_text(text)
    return str(file)


def test_a_file_says_what_flags_say(tmp_path: Path) -> None:
    told = 'model = "qwen3.5:4b"\nport = 81\nmax_queue = 3\nkeep-noise = true\nallow-no-key = false\n'
    file = write(tmp_path, told + 'allow-host = ["a.lan", "b.lan"]\nmemory = "-1GiB"\n')
    made = parser()
    args = made.read(with_config(made, ["--config", file, "--port=82", "--allow-host", "c.lan"]))
    assert (args.model, args.port, args.max_queue, args.keep_noise, args.allow_no_key) == (
        "qwen3.5:4b",
        82,
        3,
        True,
        False,
    )
    assert args.allow_host == ["a.lan", "b.lan", "c.lan"]
    assert args.memory == "-1GiB"  # no flag, although it looks like one
    made = parser()
    assert made.read(with_config(made, ["nano", f"--config={file}"])).model == "nano"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prot = 1", "prot is no flag of `qwench serve`; did you mean port?"),
        ("quite-another = 1", "lists the flags"),
        ("config = 'other.toml'", "config is no flag"),
        ("keep-noise = 3", "keep-noise is 3; give true or false"),
        ("host = true", "host is True; give a text or a number"),
        ("[server]\nport = 1", "server is no flag"),
        ("port = ", "is not valid TOML"),
        ("port = 'many'", "invalid int value: 'many'"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, told: str) -> None:
    made = parser()
    with pytest.raises(UsageError) as failure:
        made.read(with_config(made, ["--config", write(tmp_path, text)]))
    assert told in failure.value.message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--config .*none\.toml cannot be read"):
        with_config(parser(), ["--config", str(tmp_path / "none.toml")])
