"""The command line's frame: finds the command, reads its flags, turns errors into one sentence and an exit code.

A command is a file beside this one with ``add_arguments(parser)`` and ``run(args) -> int``; what is heavy it imports
inside ``run``. This file knows no command but by name and summary, so that ``qwench --help`` is instant.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn, Protocol, cast

from qwench import __version__, log
from qwench.cli import config_file
from qwench.errors import OutputError, QwenchError, UsageError
from qwench.fault import fault

COMMANDS = {
    "chat": "talk to a model: one answer with -p, else a conversation",
    "serve": "serve a model over HTTP, compatible with OpenAI's API",
    "launch": "use a running server with an agent: Claude Code, Codex, Qwen Code, Open WebUI, Continue",
    "generate": "answer a file of requests offline, in OpenAI's batch format",
    "quantize": "write a checkpoint in fewer bits, with a receipt of what that cost",
    "show": "what a model's files hold: types, sizes, receipt",
    "models": "the Qwen3.5 and Qwen3 models with their sizes",
    "plan": "what fits, how fast it will be and what it will cost, before anything is downloaded",
    "report": "what completed tasks cost, with the share that was completed, from the gateway's ledger",
    "ledger": "verify the ledger, import and export logs, record outcomes, erase kept texts",
    "bench": "prefill and decode speed beside the machine's limits and beside other engines",
    "gateway": "several tiers behind one address, routed by what a completed task is worth and costs",
    "route": "what the gateway's router would do and why, without asking any model",
    "doctor": "what this machine has, how fast it is, which kernels were chosen, what to mend",
}
INTERRUPTED = 130  # 128 + SIGINT, as shells count
BEHIND = "behind"  # a command with a default for it gets the words behind `--`, which it hands on to another program
BROKEN_PIPE = 141  # 128 + SIGPIPE
UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


class Command(Protocol):
    """What a file of this folder offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


class Parser(argparse.ArgumentParser):
    """argparse, with mistakes raised as UsageError and unknown flags answered with the nearest known one."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`.")

    @property
    def flags(self) -> dict[str, argparse.Action]:
        """Every flag without its dashes."""
        return {option.lstrip("-"): action for option, action in self._option_string_actions.items()}

    @property
    def positionals(self) -> frozenset[str]:
        return frozenset(action.dest for action in self._get_positional_actions())

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """All of ``arguments``, or UsageError. Unknown flags are looked for first: they explain what is missing."""
        if self.get_default(BEHIND) is not None and "--" in arguments:
            end = arguments.index("--")
            self.set_defaults(**{BEHIND: tuple(arguments[end + 1 :])})
            arguments = arguments[:end]
        for word in self._flags(arguments):
            if word not in self._option_string_actions:
                raise UsageError(f"{self.prog} has no flag {word}{self._nearest(word)}")
        known, unknown = self.parse_known_args(arguments)
        if unknown and unknown[0].startswith("-"):
            raise UsageError(f"{self.prog} has no flag {unknown[0]}{self._nearest(unknown[0])}")
        if unknown:
            raise UsageError(f"{self.prog} has no use for {unknown[0]!r}; see `{self.prog} --help`.")
        return known

    @staticmethod
    def _flags(arguments: Sequence[str]) -> Iterable[str]:
        for word in arguments:
            if word == "--":
                return
            if re.fullmatch(r"--[A-Za-z][\w-]*(=.*)?", word, flags=re.DOTALL):
                yield word.partition("=")[0]

    def _nearest(self, word: str) -> str:
        return nearest(word, self._option_string_actions, f"`{self.prog} --help` lists its flags.")


def nearest(word: str, known: Iterable[str], otherwise: str) -> str:
    """The end of a sentence about an unknown ``word``: what was probably meant, or ``otherwise``."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else f"; {otherwise}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; expected failures are one sentence on standard error."""
    try:
        code = _run(sys.argv[1:] if arguments is None else list(arguments))
        fault("write.output")
        sys.stdout.flush()
    except QwenchError as error:
        print(f"qwench: {error.message}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _silence()  # the reader went away (`| head`)
        return BROKEN_PIPE
    except OSError as error:
        if error.errno not in UNWRITABLE or error.filename is not None:
            raise
        _silence()
        print(f"qwench: standard output cannot be written ({error.strerror}); send it elsewhere.", file=sys.stderr)
        return OutputError.exit_code
    return code


def _silence() -> None:
    """Python flushes standard output once more at exit; give it somewhere to go."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: list[str]) -> int:
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help", "help"):
        print(_help())
        return 0
    if first in ("-V", "--version"):
        print(f"qwench {__version__}")
        return 0
    if first not in COMMANDS:
        kind = "flag" if first.startswith("-") else "command"
        known = [*COMMANDS, "--help", "--version"]
        raise UsageError(f"qwench has no {kind} {first}{nearest(first, known, '`qwench --help` lists the commands.')}")
    command = _load(first)
    parser = Parser(prog=f"qwench {first}", description=COMMANDS[first], allow_abbrev=False)
    command.add_arguments(parser)
    try:
        words = arguments[1:]
        if config_file.is_asked(parser, words):
            words = config_file.with_config(parser, words)
        args = parser.read(words)
    except SystemExit as done:  # argparse leaves this way after printing --help
        return int(done.code or 0)
    log.configure()
    return command.run(args)


def _load(name: str) -> Command:
    return cast(Command, importlib.import_module(f"qwench.cli.{name}"))


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: qwench COMMAND [MODEL] [flags]",
            "",
            "Runs Qwen3.5 and Qwen3 on your own hardware. Without a MODEL the embedded model `nano` is used.",
            "",
            *lines,
            "",
            "`qwench COMMAND --help` lists a command's flags; `qwench --version` prints the version.",
        ]
    )
