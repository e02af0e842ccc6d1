"""A report in a terminal: tables and colours. Nothing is computed here."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from qwench.gateway import words
from qwench.gateway.report import Grouping, Line, Report
from qwench.plan.terminal import ruled, show_table


def show_report(out: Console, report: Report) -> None:
    total = report.total
    out.print(f"[bold]{escape(words.window(report))}[/]")
    told = f"{total.tasks:,} tasks, {total.attempts:,} attempts, {words.spent(total.spent, report.currency)} spent"
    out.print(f"{told}; {total.accepted:,} of {total.decided:,} with a verdict were completed.")
    if total.completion is not None:
        cost = words.cost(total, report.currency)
        out.print(f"[bold]{cost}[/] for a completed task; {words.completion(total)} completed.")
    for grouping in report.groupings:
        _grouping(out, grouping, report.currency)
    _flows(out, report)
    _comparisons(out, report)
    for remark in words.remarks(report):
        out.print(f"[dim]· {escape(remark)}[/]")


def _grouping(out: Console, grouping: Grouping, currency: str) -> None:
    heads = (*grouping.by, "tasks", "completed", "for a completed task", "spent", "on failures")
    rows = ruled(*heads, names=len(grouping.by))
    for line in grouping.lines:
        rows.add_row(*_cells(line, currency))
    show_table(out, rows)


def _cells(line: Line, currency: str) -> Sequence[str]:
    open_ = line.tasks - line.decided
    return (
        *map(escape, line.name),
        f"{line.tasks:,}" + (f" ({open_:,} open)" if open_ else ""),
        words.completion(line),
        words.cost(line, currency),
        words.spent(line.spent, currency),
        words.share(line.wasted),
    )


def _flows(out: Console, report: Report) -> None:
    rows = ruled("where it went", "tier", "model", "attempts", "failed", "tokens in", "out", "spent", names=3)
    for flow in report.flows:
        rows.add_row(
            flow.kind,
            escape(flow.tier),
            escape(flow.model),
            f"{flow.attempts:,}",
            f"{flow.failed:,}" if flow.failed else "",
            f"{flow.input:,}",
            f"{flow.output:,}",
            words.spent(flow.spent, report.currency),
        )
    show_table(out, rows)


def _comparisons(out: Console, report: Report) -> None:
    if not report.comparisons:
        return
    rows = ruled("always", "compared", "completed", "routed", "a completed task", "routing saved")
    for each in report.comparisons:
        rows.add_row(
            escape(each.tier),
            words.covered(each),
            words.share(each.completion),
            words.share(each.routed_completion),
            words.money(each.cost.value, report.currency) if each.cost is not None else "unknown",
            words.saved(each, report.currency),
        )
    show_table(out, rows)
