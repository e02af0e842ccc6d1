"""The document shows the table as it was measured."""

from __future__ import annotations

import json

from bench.reasoning import table
from tests.meta.tree import ROOT


def test_the_table_of_the_document_is_that_of_the_results() -> None:
    results = json.loads((ROOT / "bench/results/reasoning.json").read_text(encoding="utf-8"))
    assert table(results) in (ROOT / "docs/reasoning.md").read_text(encoding="utf-8")
