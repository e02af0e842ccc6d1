"""``qwench report``: what completed tasks cost, with the share that was completed, from the ledger of a gateway."""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from qwench.errors import OutputError, UsageError

if TYPE_CHECKING:
    from qwench.gateway.report import Report

AGES = {"h": 3600, "d": 86_400, "w": 7 * 86_400}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ledger", metavar="PATH", help="the ledger's file, or a postgresql:// URL")
    parser.add_argument("--by", metavar="A,B", help="one table by class, tier, model, thinking, recipe, data, key")
    parser.add_argument("--since", metavar="WHEN", help="tasks begun since: 2026-11-01, or an age such as 12h, 7d, 4w")
    parser.add_argument("--until", metavar="WHEN", help="tasks begun before")
    parser.add_argument("--currency", metavar="CUR", help="of the amounts; else the one most attempts were paid in")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report as one page with charts")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print one JSON document with exact numbers instead")
    shape.add_argument("--csv", action="store_true", help="print the groups as comma-separated values instead")


def run(args: argparse.Namespace) -> int:
    from qwench.gateway.history import read_cases
    from qwench.gateway.report import make_report
    from qwench.gateway.store import connect, default_path

    now = time.time()
    since, until = when(args.since, "since", now) or 0.0, when(args.until, "until", now)
    store = connect(args.ledger or str(default_path()), make=False)
    try:
        with store.reading() as connection:
            cases = read_cases(connection, since, float("inf") if until is None else until)
    finally:
        store.close()
    by = [name.strip() for name in args.by.split(",")] if args.by else []
    report = make_report(cases, by, (args.currency or "").upper())
    if args.html:
        from qwench.gateway.page import report_page

        _write(args.html, report_page(report))
    if args.json:
        print(json.dumps(asdict(report)))
    elif args.csv:
        _csv(report)
    else:
        from qwench.gateway.terminal import show_report
        from qwench.plan.terminal import console

        show_report(console(), report)
    if args.html:
        print(f"Written to {args.html}.", file=sys.stderr)
    return 0


def when(text: str | None, flag: str, now: float) -> float | None:
    """A date, or how long ago. Raises UsageError."""
    from qwench.gateway.prices import beginning

    if text is None:
        return None
    age = re.fullmatch(r"(\d+)([hdw])", text)
    found = now - int(age[1]) * AGES[age[2]] if age else beginning(text)
    if found is None:
        told = "give a date such as 2026-11-01, or an age such as 12h or 7d"
        raise UsageError(f"--{flag} {text!r} is no time; {told}.", param=flag)
    return found


def _csv(report: Report) -> None:
    """A line for each group; an empty cell is unknown, and ``unknown_attempts`` says whether a sum is only a part."""
    out = csv.writer(sys.stdout, lineterminator="\n")
    heads = "by group tasks decided accepted attempts spent unknown_attempts currency completion completion_low"
    out.writerow([*heads.split(), "completion_high", "cost_per_completed", "cost_low", "cost_high"])
    for grouping in report.groupings:
        for line in grouping.lines:
            share, cost = line.completion, line.cost
            group = "+".join(grouping.by), ", ".join(line.name)
            counts = line.tasks, line.decided, line.accepted, line.attempts, line.spent.known, line.spent.unknown
            shares = (share.value, share.low, share.high) if share else ("", "", "")
            costs = (cost.value, cost.low, cost.high) if cost else ("", "", "")
            out.writerow([*group, *counts, report.currency, *shares, *costs])


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {str(error.strerror).lower()}.") from None
