"""The flags of `qwench chat` that have an answer chosen from many samples, and how that is run in a terminal."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwench.cli.terminal import Terminal
from qwench.errors import RequestError, UsageError
from qwench.reason.strategy import Strategy, read_strategy

if TYPE_CHECKING:
    from qwench.engine.client import EngineClient
    from qwench.engine.request import SamplingParams
    from qwench.reason.checks import Check
    from qwench.reason.course import Outcome
    from qwench.reason.recipes import Task
    from qwench.reason.samples import Message, Render
    from qwench.text.tokenizer import Tokenizer


def add_reasoning_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("many samples for one answer (docs/reasoning.md)")
    methods = group.add_mutually_exclusive_group()
    methods.add_argument("--vote", type=int, metavar="N", help="the answer most of up to N samples give")
    methods.add_argument("--best-of", type=int, metavar="N", help="the first of up to N that passes --check")
    methods.add_argument(
        "--forest", type=int, metavar="N", help="N trees of thought, whose answers vote (experimental)"
    )
    group.add_argument(
        "--check", metavar="CHECK", help="arithmetic, schema:FILE, regex:PATTERN, or command:COMMAND (no shell)"
    )
    group.add_argument("--check-seconds", type=float, metavar="S", help="the time a command may take (10)")
    group.add_argument(
        "--check-unconfined", action="store_true", help="run the command where it cannot be shut off from the network"
    )
    group.add_argument("--budget", type=int, metavar="N", help="tokens of all samples together")


@dataclass(frozen=True)
class Wish:
    """What the flags ask for."""

    strategy: Strategy
    flag: str | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def task(self, messages: Sequence[Message], render: Render, sampling: SamplingParams) -> Task:
        from qwench.reason.recipes import Task, question

        check = read_flag(self.flag, question(messages), options=self.options) if self.flag else None
        return Task(messages, render, sampling, self.strategy, check)


def read_wish(args: argparse.Namespace) -> Wish | None:
    """The wish, checked as far as it can be before the model is loaded; None without one. Raises UsageError."""
    counts = {"vote": args.vote, "best_of": args.best_of, "forest": args.forest}
    asked = [(method, number) for method, number in counts.items() if number is not None]
    options = [("timeout", args.check_seconds), ("unconfined", args.check_unconfined or None)]
    given = tuple((name, value) for name, value in options if value is not None)
    if given and not (args.check or "").startswith("command:"):
        raise UsageError("--check-seconds and --check-unconfined are about a command; give --check command:COMMAND.")
    if not asked:
        for flag, value in (("--check", args.check), ("--budget", args.budget)):
            if value is not None:
                raise UsageError(f"{flag} needs --vote N, --best-of N or --forest N; give one of them.")
        return None
    method, number = asked[0]
    if method == "best_of" and args.check is None:
        raise UsageError("--best-of needs --check, such as --check arithmetic; or use --vote.")
    try:
        strategy, _ = read_strategy({"method": method, "samples": number, "budget": args.budget, "check": args.check})
    except RequestError as error:
        flag = "--budget" if (error.param or "").endswith("budget") else f"--{method.replace('_', '-')}"
        raise UsageError(f"{flag} is{error.message.partition(' is')[2]}") from None
    if args.check is not None:
        read_flag(args.check, "", options=given)
    return Wish(strategy, args.check, given)


def read_flag(text: str, question: str, name: str = "--check", options: Sequence[tuple[str, Any]] = ()) -> Check:
    """The check that a flag describes. Raises UsageError naming the flag."""
    from qwench.reason.checks import read_check

    kind, _, rest = text.partition(":")
    given: object
    if text == "arithmetic":
        given = text
    elif kind == "schema" and rest:
        given = {"schema": _schema(rest, name)}
    elif kind == "regex" and rest:
        given = {"regex": rest}
    elif kind == "command" and rest:
        try:
            given = {"command": shlex.split(rest), **dict(options)}
        except ValueError as error:
            raise UsageError(f"{name}: the command {rest!r} cannot be read ({error}); close what is open.") from None
    else:
        raise UsageError(f"{name} is {text!r}; give arithmetic, schema:FILE, regex:PATTERN or command:COMMAND.")
    try:
        return read_check(given, question)
    except RequestError as error:
        raise UsageError(f"{name}: {error.message.removeprefix('check: ')}") from None


def _schema(path: str, name: str) -> object:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"no JSON: {error}"
        raise UsageError(f"{name}: {path} cannot be read ({reason}); give a file with a JSON schema.") from None


def consider(client: EngineClient, tokenizer: Tokenizer, task: Task, terminal: Terminal) -> Outcome:
    """Run ``task``, its cost told beforehand. An interrupt ends it."""
    import asyncio

    from qwench.reason.recipes import reason
    from qwench.reason.told import before

    limit = task.limit(client)
    terminal.note(before(task.strategy, limit))
    return asyncio.run(reason(client, tokenizer, task, limit))
