"""``--config FILE.toml``: every flag can stand in a file; those on the command line come after it and win."""

from __future__ import annotations

import argparse
import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qwench.errors import UsageError

if TYPE_CHECKING:
    from qwench.cli import Parser

FLAG = "--config"


def add_config_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        FLAG, metavar="FILE", type=Path, help="flags from a TOML file, `max-queue = 64`; those given here win"
    )


def is_asked(parser: Parser, words: Sequence[str]) -> bool:
    """Whether ``words`` name a file of flags; a command may mean something else by the same flag."""
    action = parser.flags.get(FLAG.lstrip("-"))
    means_flags = action is None or action.dest == "config"
    return means_flags and any(word.partition("=")[0] == FLAG for word in words)


def with_config(parser: Parser, arguments: Sequence[str]) -> list[str]:
    """``arguments`` behind those of the file that ``--config`` among them names.

    Raises UsageError naming the file and the key.
    """
    given = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    given.add_argument(FLAG, type=Path)
    try:
        path = given.parse_known_args(list(arguments))[0].config
    except argparse.ArgumentError:  # the command's own parser says it better
        return list(arguments)
    if path is None:
        return list(arguments)
    told = _read(path)
    flags, positionals = parser.flags, parser.positionals
    words: list[str] = []
    for key, value in told.items():
        name = key.replace("_", "-")
        if key in positionals and isinstance(value, str):
            parser.set_defaults(**{key: value})
        elif name in flags and name not in ("config", "help"):
            words += _words(f"--{name}", flags[name], value, f"{path}: {key}")
        else:
            near = difflib.get_close_matches(name, [*flags, *positionals], n=1, cutoff=0.6)
            meant = f"did you mean {near[0]}?" if near else f"`{parser.prog} --help` lists the flags."
            raise UsageError(f"{path}: {key} is no flag of `{parser.prog}`; {meant}")
    return [*words, *arguments]


def _read(path: Path) -> Mapping[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{FLAG} {path} cannot be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{FLAG} {path} is not valid TOML: {error}.") from None


def _words(flag: str, action: argparse.Action, value: object, where: str) -> Iterator[str]:
    """The flag as it would be typed, once for each value of a list. ``=`` keeps values apart from flags."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UsageError(f"{where} is {value!r}; give true or false.")
        yield from [flag] if value else []
        return
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, bool) or not isinstance(each, str | int | float):
            raise UsageError(f"{where} is {each!r}; give a text or a number.")
        yield f"{flag}={each}"
