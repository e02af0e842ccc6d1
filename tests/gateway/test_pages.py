"""The report as a page: whole in itself, and nobody's words become markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from qwench.gateway.ledger import Ledger
from qwench.gateway.page import LivePage, report_page
from qwench.gateway.records import Task
from qwench.gateway.report import make_report
from tests.gateway.books import NOVEMBER, attempt, ending, fill
from tests.gateway.test_report import call, case

EMPTY_TAGS = {"meta", "rect", "line", "br"}


class Balance(HTMLParser):
    """Every tag that opens closes, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in EMPTY_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in EMPTY_TAGS:
            assert self.open.pop() == tag


def parsed(page: str) -> Balance:
    found = Balance()
    found.feed(page)
    assert not found.open
    return found


def test_a_page_is_whole_in_itself() -> None:
    tasks = [
        case(call(0.01 * n, tier), accepted=n % 3 > 0, name=name)
        for n in range(8)
        for tier in ("own", "premium")
        for name in "ab"
    ]
    page = report_page(make_report(tasks))
    found = parsed(page)
    assert "svg" in found.seen
    assert not found.seen & {"script", "link", "img", "iframe"}
    assert not re.search(r"(src|href)=|https?:|@import|url\(", page)
    assert "Had every task gone to one tier" in page
    assert "95 %" in page


def test_a_name_is_no_markup() -> None:
    hostile = "<script>alert(1)</script>\"'&"
    page = report_page(make_report([case(call(tier=hostile, model=hostile), name=hostile)]), facts=[(hostile, hostile)])
    assert "<script" not in page
    parsed(page)


@pytest.mark.parametrize("tasks", [[], [case(call(None))], [case(accepted=None)], [case(accepted=False)]])
def test_a_page_of_little_is_a_page(tasks: list[object]) -> None:
    page = report_page(make_report(tasks))  # type: ignore[arg-type]
    parsed(page)
    assert "nan" not in page
    assert "inf" not in page


def test_the_live_page_counts_again_only_after_a_while(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    fill(path, 1)
    with Ledger.open(str(path)) as ledger:
        patient, hasty = LivePage(ledger.store, seconds=60), LivePage(ledger.store, seconds=0)
        now = NOVEMBER + 100
        first = patient.page(now, [("premium", "open")])
        assert '<meta http-equiv="refresh" content="60">' in first
        assert "premium" in first
        assert "1 tasks" in first
        assert "1 tasks" in hasty.page(now)
        ledger.record(Task(), attempt(), ending(), started=NOVEMBER).result()
        assert "2 tasks" in hasty.page(now)
        assert patient.page(now, [("premium", "open")]) == first
        assert "0 tasks" in hasty.page(now + 2 * 86_400)
