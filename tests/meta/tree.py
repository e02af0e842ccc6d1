"""The repository as data for the meta tests: which files there are and what each imports. Judges nothing."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "qwench"
IGNORED = {
    ".git",
    ".venv",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
    "__pycache__",
    "build",
    "dist",
    "runs",
}


def files(folder: Path, pattern: str = "*") -> list[Path]:
    """The repository's own files below ``folder``, sorted."""
    found = (path for path in folder.rglob(pattern) if path.is_file())
    return sorted(path for path in found if not _ignored(path.relative_to(ROOT)))


def _ignored(path: Path) -> bool:
    return path.suffix == ".so" or any(part in IGNORED or part.endswith(".egg-info") for part in path.parts)


def python_files() -> list[Path]:
    """All Python of the repository: package, tests, tools and benchmarks."""
    return [path for folder in ("src", "tests", "tools", "bench") for path in files(ROOT / folder, "*.py")]


@functools.cache
def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def module_name(path: Path) -> str:
    """``src/qwench/engine/core.py`` -> ``engine.core``; the package itself is ``""``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of everything a file imports, at its top or inside a function.

    ``from qwench.engine import request`` counts as ``qwench.engine.request``, because it loads that module.
    """
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            base = node.module or ""
            for alias in node.names:
                joined = f"{base}.{alias.name}"
                yield (joined if _is_module(joined) else base), node.lineno


def _is_module(dotted: str) -> bool:
    if not dotted.startswith("qwench."):
        return False
    path = PACKAGE.joinpath(*dotted.split(".")[1:])
    return path.with_suffix(".py").is_file() or path.is_dir()
