"""``qwench ledger``: whether it is whole, what goes in and out of it, what somebody found about a task."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from qwench.errors import UsageError
from qwench.fault import fault

FORMATS = ("jsonl", "csv", "otel")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    said = "; ".join(f"{name}: {told}" for name, (told, *_) in ACTIONS.items())
    parser.add_argument("action", choices=tuple(ACTIONS), help=said)
    parser.add_argument("words", nargs="*", metavar="WORD", help="FILE of import; TASK and VERDICT of outcome")
    parser.add_argument("--ledger", metavar="PATH", help="the ledger's file, or a postgresql:// URL")
    parser.add_argument("--anchor", metavar="SEQ:HASH", help="verify: how far the chain had come, as you kept it")
    parser.add_argument("--format", choices=FORMATS, help="export: rows, attempts as a table, or spans")
    parser.add_argument("--tier", metavar="NAME", help="import: the tier to book under (imported)")
    parser.add_argument("--provider", metavar="NAME", help="import: whose models these are, where the log does not say")
    parser.add_argument("--class", dest="name", metavar="NAME", help="import: the class of the tasks")
    parser.add_argument("--price-file", type=Path, metavar="TOML", help="import: prices of your own")
    parser.add_argument("--skip", action="store_true", help="import: go on without lines that are not understood")
    parser.add_argument("--by", metavar="WHO", help="outcome: user (the default), test, verifier, judge or timeout")
    parser.add_argument("--before", metavar="WHEN", help="erase: contents kept before a date or an age such as 30d")
    parser.add_argument("--task", metavar="ID", help="erase: contents of this task")
    parser.add_argument("--key", metavar="NAME", help="erase: contents of tasks asked for with this key")


def run(args: argparse.Namespace) -> int:
    from qwench.gateway.store import default_path

    _, use, words, flags = ACTIONS[args.action]
    if len(args.words) != len(words):
        need = f"needs {' and '.join(words)}" if words else f"has no use for {args.words[0]!r}"
        raise UsageError(f"qwench ledger {args.action} {need}.")
    for flag in ("anchor", "format", "tier", "provider", "name", "price_file", "skip", "by", "before", "task", "key"):
        if getattr(args, flag) and flag not in flags:
            told = "class" if flag == "name" else flag.replace("_", "-")
            raise UsageError(f"--{told} is of no use to qwench ledger {args.action}.", param=flag)
    return use(args, args.ledger or str(default_path()))


def _verify(args: argparse.Namespace, where: str) -> int:
    from qwench.gateway.anchor import parse
    from qwench.gateway.chain import verify
    from qwench.gateway.store import connect

    anchor = parse(args.anchor) if args.anchor else None
    if args.anchor and anchor is None:
        raise UsageError("--anchor must be SEQ:HASH, as `qwench ledger verify` prints it.", param="anchor")
    store = connect(where, make=False)
    try:
        found = verify(store, anchor)
    finally:
        store.close()
    for sentence in found.wrong:
        print(sentence)
    for sentence in found.remarks:
        print(sentence, file=sys.stderr)
    rows = ", ".join(f"{count:,} {table}{'s' if count != 1 else ''}" for table, count in found.rows.items()) or "no row"
    state = "is whole" if found.whole else f"was changed: {len(found.wrong):,} findings"
    print(f"{store.name} {state} ({rows}, {found.texts:,} texts).")
    print(f"anchor {found.head}")
    return 0 if found.whole else 1


def _import(args: argparse.Namespace, where: str) -> int:
    from qwench.gateway.imports import Entry, Setting, read_log
    from qwench.gateway.ledger import Ledger
    from qwench.gateway.prices import load_prices

    name = args.words[0]
    setting = Setting(args.tier or "imported", args.provider or "", args.name or "", load_prices(args.price_file))
    found, wrong = read_log(_read(name), name, setting)
    if wrong and not args.skip:
        more = f" and {len(wrong) - 1:,} lines more" if len(wrong) > 1 else ""
        raise UsageError(f"{wrong[0].rstrip('.')}{more}; nothing was imported. --skip goes on without them.")
    with Ledger.open(where) as ledger:
        added, there = ledger.take(found, name)
    print(f"{added:,} added, {there:,} were there already, {len(wrong):,} not understood, of {name}.")
    unpriced = sum(isinstance(each, Entry) and not isinstance(each.ending.cost.amount, float) for each in found)
    if unpriced:
        print(f"{unpriced:,} have no known cost; `qwench report` counts them as unknown.", file=sys.stderr)
    return 0


def _export(args: argparse.Namespace, where: str) -> int:
    from qwench.gateway.exports import comma_separated, json_lines, spans
    from qwench.gateway.store import connect

    write = {"jsonl": json_lines, "csv": comma_separated, "otel": spans}[args.format or "jsonl"]
    store = connect(where, make=False)
    try:
        with store.reading() as connection:
            for line in write(connection):
                print(line)
    finally:
        store.close()
    return 0


def _erase(args: argparse.Namespace, where: str) -> int:
    from qwench.cli.report import when
    from qwench.gateway.ledger import Ledger

    with Ledger.open(where) as ledger:
        count = ledger.erase(before=when(args.before, "before", time.time()), task=args.task, key=args.key)
    print(f"{count:,} texts erased; the accounts are as they were.")
    return 0


def _outcome(args: argparse.Namespace, where: str) -> int:
    from qwench.gateway.ledger import Ledger
    from qwench.gateway.records import Judge, Outcome, Verdict

    task, verdict = args.words
    judges, verdicts = [each.value for each in Judge], [each.value for each in Verdict]
    if verdict not in verdicts:
        raise UsageError(f"{verdict!r} is no verdict; give {', '.join(verdicts)}.")
    if args.by and args.by not in judges:
        raise UsageError(f"--by {args.by} judges nothing; give {', '.join(judges)}.", param="by")
    with Ledger.open(where) as ledger:
        receipt = ledger.outcome(Outcome(task, Verdict(verdict), Judge(args.by or "user"))).result()
    print(f"Recorded as row {receipt.seq:,}.")
    return 0


def _read(name: str) -> str:
    try:
        fault("read.log")
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {str(error.strerror).lower()}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{name} is not UTF-8 text.") from None


Use = Callable[[argparse.Namespace, str], int]
ACTIONS: dict[str, tuple[str, Use, tuple[str, ...], tuple[str, ...]]] = {
    "verify": ("whether every row is as it was written", _verify, (), ("anchor",)),
    "import": (
        "read a log of OpenAI's or LiteLLM's form, or an export",
        _import,
        ("FILE",),
        ("tier", "provider", "name", "price_file", "skip"),
    ),
    "export": ("print every row", _export, (), ("format",)),
    "erase": ("delete kept prompts and answers; accounts stay", _erase, (), ("before", "task", "key")),
    "outcome": ("say that a task was accepted, rejected or abandoned", _outcome, ("TASK", "VERDICT"), ("by",)),
}
