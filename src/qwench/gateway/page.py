"""A report as one HTML page with charts, for a file or as the gateway's live page. Every number is the report's.

No script: the live page asks the browser to come again. What it shows beside the report (tiers, budgets) it is told.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape
from threading import Lock

from qwench import __version__
from qwench.gateway import words
from qwench.gateway.history import read_cases
from qwench.gateway.report import Grouping, Report, make_report
from qwench.gateway.store import Store
from qwench.plan.charts import Bar, bars, columns
from qwench.plan.sheet import sheet, table

Facts = Sequence[tuple[str, str]]
DAY = 86_400.0
METHOD = (
    "A task counts under the option whose answer was taken, with everything spent on it: failed attempts, checks, "
    "routing. Cost per completed task is what was spent on tasks with a verdict over how many were accepted; its 95 % "
    "interval is bootstrapped over tasks, that of the share is Wilson's."
)
COMPARED = (
    "Each task at the mean cost and completion of the tasks of its class that this tier answered alone. What was "
    "routed to a tier was chosen, so its record may flatter it or not."
)


def report_page(report: Report, *, title: str = "What completed tasks cost", facts: Facts = (), again: int = 0) -> str:
    """``facts``: a table at the top; ``again``: seconds after which a browser asks once more, 0 never."""
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(words.window(report))}. {_summary(report)}</p>",
        *([table(("now", ""), facts)] if facts else []),
        *(part for grouping in report.groupings for part in _grouping(grouping, report.currency)),
        *_comparisons(report),
        *_flows(report),
        "<h2>How this was counted</h2>",
        "<ul>" + "".join(f"<li>{escape(remark)}</li>" for remark in (*words.remarks(report), METHOD)) + "</ul>",
        f"<p><small>qwench {__version__}; amounts in {escape(report.currency)}.</small></p>",
    ]
    head = f'<meta http-equiv="refresh" content="{again}">' if again else ""
    return sheet(title, body, head)


class LivePage:
    """The last day's report, counted again at most every ``seconds``, however many browsers ask."""

    def __init__(self, store: Store, *, seconds: int = 10) -> None:
        self._store, self._seconds = store, seconds
        self._lock = Lock()
        self._made: tuple[float, Report] | None = None

    def page(self, now: float, facts: Facts = ()) -> str:
        """``now``: seconds since 1970. Reads the ledger, so call it from a thread. Raises LedgerUnavailable."""
        with self._lock:
            if self._made is None or time.monotonic() - self._made[0] >= self._seconds:
                with self._store.reading() as connection:
                    cases = read_cases(connection, since=now - DAY)
                self._made = time.monotonic(), make_report(cases)
            report = self._made[1]
        return report_page(report, title="The last 24 hours", facts=facts, again=self._seconds)


def _summary(report: Report) -> str:
    total = report.total
    spent = escape(words.spent(total.spent, report.currency))
    told = f"{total.tasks:,} tasks, {total.attempts:,} attempts, {spent} spent."
    if total.completion is None:
        return f"{told} No task has a verdict yet."
    return (
        f"{told} <strong>{escape(words.cost(total, report.currency))}</strong> for a completed task; "
        f"{escape(words.completion(total))} of {total.decided:,} with a verdict were completed."
    )


def _grouping(grouping: Grouping, currency: str) -> list[str]:
    drawn = [
        Bar(
            ", ".join(line.name),
            line.cost.value,
            f"{words.money(line.cost.value, currency)}, {words.share(line.completion.value)} done",
            line.cost.low,
            line.cost.high,
        )
        for line in grouping.lines
        if line.cost is not None and line.completion is not None  # a bar of what is only partly known would lie
    ]
    rows = [
        (
            ", ".join(line.name),
            f"{line.tasks:,}",
            words.completion(line),
            words.cost(line, currency),
            words.spent(line.spent, currency),
            words.share(line.wasted),
        )
        for line in grouping.lines
    ]
    by = " and ".join(grouping.by)
    heads = (by, "tasks", "completed", "for a completed task", "spent", "on failures")
    return [f"<h2>By {escape(by)}</h2>", bars(drawn) if drawn else "", table(heads, rows)]


def _comparisons(report: Report) -> list[str]:
    if not report.comparisons:
        return []
    rows = [
        (
            each.tier,
            words.covered(each),
            f"{words.share(each.completion)} ({words.share(each.routed_completion)} routed)" if each.covered else "",
            words.estimate(each.cost, report.currency) if each.cost is not None else "unknown",
            words.saved(each, report.currency),
        )
        for each in report.comparisons
    ]
    heads = ("always", "tasks compared", "completed", "for a completed task", "routing saved")
    return ["<h2>Had every task gone to one tier</h2>", table(heads, rows), f"<p><small>{escape(COMPARED)}</small></p>"]


def _flows(report: Report) -> list[str]:
    rows = [
        (
            f"{flow.kind}, {flow.tier}, {flow.model}",
            f"{flow.attempts:,}",
            f"{flow.failed:,}" if flow.failed else "",
            f"{flow.input:,}",
            f"{flow.output:,}",
            words.spent(flow.spent, report.currency),
        )
        for flow in report.flows
    ]
    return [
        "<h2>Where it went</h2>",
        columns(report.days, lambda value: words.money(value, report.currency)),
        table(("for what, where", "attempts", "failed", "tokens in", "out", "spent"), rows),
    ]
