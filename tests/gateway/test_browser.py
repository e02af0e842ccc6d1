"""The pages as a browser shows them: plan, report, and the gateway's own, which all stand alone and fit a phone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwench import cli
from qwench.gateway.records import Judge, Outcome, Task, Verdict
from tests.gateway.books import attempt, ending, fill
from tests.gateway.conftest import Start, tiers
from tests.gateway.standin import refused_url
from tests.page.conftest import DESKTOP, PHONE, browser

__all__ = ["browser"]  # a fixture

pytestmark = pytest.mark.slow
WINDOWS = (DESKTOP, PHONE)
CHARTS = "[...document.querySelectorAll('svg')].map(chart => chart.getBoundingClientRect()).map(box => box.width)"
MARKS = (
    "[...document.querySelectorAll('svg rect, svg path, svg polygon')].filter(mark => mark.getBBox().width > 0).length"
)


def shown(browser: Any, address: str, heading: str) -> None:
    """Raises where the page asks for anything, complains, or is wider than the window."""
    for window in WINDOWS:
        page = browser.new_page(viewport=window)
        wrong: list[str] = []
        page.on("pageerror", lambda error, into=wrong: into.append(str(error)))
        page.on("console", lambda message, into=wrong: into.append(message.text))
        page.on("request", lambda sent, into=wrong: into.append(sent.url) if sent.url != address else None)
        page.goto(address)
        assert heading in page.inner_text("h1")
        assert page.locator("table tbody tr").count() > 0
        widths = page.evaluate(CHARTS)
        assert widths
        assert all(200 < width <= window["width"] for width in widths)
        assert page.evaluate(MARKS) > 0, "the charts are empty"
        assert page.evaluate("document.documentElement.scrollWidth") <= window["width"]
        page.close()
        assert not [told for told in wrong if not told.endswith("/favicon.ico")]


def test_a_plan_is_a_page(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "plan.html"
    assert cli.main(["plan", "35b-a3b", "--hardware", "rtx-5090", "--html", str(file)]) == 0
    shown(browser, file.as_uri(), "qwen3.5:35b-a3b")


def test_a_report_is_a_page(browser: Any, tmp_path: Path) -> None:
    ledger, file = tmp_path / "ledger.db", tmp_path / "report.html"
    fill(ledger, 8)
    assert cli.main(["report", "--ledger", str(ledger), "--html", str(file)]) == 0
    shown(browser, file.as_uri(), "What completed tasks cost")


def test_the_live_report_is_a_page(browser: Any, start: Start) -> None:
    running = start(tiers(refused_url()))
    for name in ("code", "chat"):
        task = Task(name=name)
        running.ledger.record(task, attempt(), ending(0.02)).result()
        running.ledger.outcome(Outcome(task.id, Verdict.ACCEPTED, Judge.USER)).result()
    shown(browser, f"{running.url}/", "The last 24 hours")
