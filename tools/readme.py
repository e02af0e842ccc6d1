"""Writes the README's two measured tables from their sources, so that no figure is typed by hand.

    .venv/bin/python -m tools.readme            after `make bench`, or after nano was trained and evaluated

The comparison comes from each processor's newest files in bench/results, nano's table from the evaluation beside its
weights. A test compares the README with the same sources.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench import suite

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "bench/results"
EVALUATION = ROOT / "src/qwench/assets/nano/evaluation.json"


def section(readme: str, name: str) -> str:
    """What stands between ``<!-- name -->`` and ``<!-- /name -->``."""
    return readme.partition(f"<!-- {name} -->\n")[2].partition(f"\n<!-- /{name} -->")[0]


def comparison(folder: Path) -> str:
    """Each processor's newest measurement of each part, the newest document first."""
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("20*.json")]
    tables = [document for document in documents if "parts" in document]  # others are of an earlier kind
    seen: set[tuple[str, str]] = set()
    told = []
    for document in sorted(tables, key=lambda each: str(each["date"]), reverse=True):
        parts = [part for part in document["parts"] if (part["machine"]["cpu"], part["name"]) not in seen]
        seen |= {(part["machine"]["cpu"], part["name"]) for part in parts}
        told += [suite.table({**document, "parts": parts})] if parts else []
    return "\n\n".join(told)


def nano(path: Path) -> str:
    """Exact answers in per cent, one row a skill, a column for each position of the thinking switch."""
    document = json.loads(path.read_text(encoding="utf-8"))
    skills: dict[str, dict[bool, str]] = {}
    for row in document["results"]:
        exact = f"{row['exact']:.1f} ({row['low']:.1f} to {row['high']:.1f})"
        skills.setdefault(row["skill"], {})[row["thinking"]] = exact
    lines = ["| skill | without thinking | with thinking |", "|---|--:|--:|"]
    lines += [f"| {skill} | {shown.get(False, '')} | {shown.get(True, '')} |" for skill, shown in skills.items()]
    by = {"engine": "our engine", "transformers": "transformers"}[document["by"]]
    ended = min(row["ended"] for row in document["results"])
    told = (
        f"Exact answers in per cent with a 95 % interval, greedy, by {by}; {document['samples']} unseen samples a row. "
        f"In the worst row {ended:.1f} % of the answers end by themselves."
    )
    return "\n".join([*lines, "", told])


def main() -> int:
    readme = README.read_text(encoding="utf-8")
    tables = {"measured": comparison(RESULTS)}
    if EVALUATION.is_file():
        tables["nano"] = nano(EVALUATION)
    for name, text in tables.items():
        mark = f"<!-- {name} -->\n"
        readme = readme.replace(mark + section(readme, name), mark + text)
    README.write_text(readme, encoding="utf-8")
    print(f"README.md: wrote {', '.join(tables)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
