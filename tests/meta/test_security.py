"""What docs/security.md says is kept: every test it names exists, and what must not occur in our code does not."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.meta.tree import PACKAGE, ROOT, files, imports, syntax

DOCUMENT = ROOT / "docs" / "security.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
RUNS = {"eval", "exec", "compile", "__import__", "ast.literal_eval"}
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
WORDS = re.compile(r"trust_remote_code\s*=\s*True|torch\.load\(|allow_pickle\s*=\s*True|shell\s*=\s*True")
SERVING = [
    path for path in files(PACKAGE, "*.py") if "train" not in path.parts
]  # the trainer reads what it wrote itself


def rows() -> list[list[str]]:
    """The cells of the document's tables of advisories."""
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| (CVE|GHSA)-", line)
    ]


def test_every_test_that_the_document_names_exists() -> None:
    missing = []
    for path, name in NAMED.findall(DOCUMENT.read_text(encoding="utf-8")):
        file = ROOT / path
        if not file.exists():
            missing.append(path)
        elif name and name not in {node.name for node in ast.walk(syntax(file)) if isinstance(node, ast.FunctionDef)}:
            missing.append(f"{path}::{name}")
    assert not missing, f"docs/security.md names tests that are not there: {missing}"


def test_every_advisory_has_a_test_or_a_reason() -> None:
    found = rows()
    assert len(found) > 180
    for cells in found:
        assert len(cells) == 3, cells
        assert NAMED.search(cells[2]) or len(cells[2].split()) >= 5, f"docs/security.md: {cells[0]} has neither"


@pytest.mark.parametrize("path", SERVING, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_run_that_came_as_data(path: Path) -> None:
    called = [node for node in ast.walk(syntax(path)) if isinstance(node, ast.Call) and ast.unparse(node.func) in RUNS]
    assert not called, f"{path}:{called[0].lineno}"
    loaded = {name.partition(".")[0] for name, _ in imports(path)}
    assert not loaded & MODULES, f"{path}: {loaded & MODULES}"
    found = WORDS.search(path.read_text(encoding="utf-8"))
    assert found is None, f"{path}: {found[0]}"


@pytest.mark.parametrize("path", SERVING, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_query_is_put_together_from_words(path: Path) -> None:
    """What is executed is a literal, or an expression that keeps its values apart."""
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.startswith("execute"):
            joined = [given for given in node.args[:1] if isinstance(given, ast.JoinedStr | ast.BinOp)]
            assert not joined, f"{path}:{node.lineno}"
