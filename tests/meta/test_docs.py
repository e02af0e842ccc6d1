"""Documents that can lie are tested: the README's tree, commands, flags and code, and what no file may mention."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from qwench import __version__
from qwench.cli import COMMANDS, Parser, _load
from tests.meta.tree import IGNORED, PACKAGE, ROOT, files
from tools import readme

README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TEXT = {".py", ".md", ".toml", ".txt", ".jinja", ".json", ".yml", ""}


def blocks(language: str) -> list[str]:
    """The fenced code blocks of the README in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def listed() -> dict[Path, str]:
    """The README's tree: path -> phrase. Two spaces of indent are one folder deeper; a folder ends with a slash."""
    tree = README.partition("## The tree")[2].partition("```text\n")[2].partition("```")[0]
    found: dict[Path, str] = {}
    folders: list[str] = []
    for line in tree.splitlines():
        entry = re.fullmatch(r"((?:  )*)(\S+)(?:\s{2,}(.+))?", line)
        assert entry, f"README: the tree holds {line!r}, which is no entry"
        indent, name, phrase = entry.groups()
        del folders[len(indent) // 2 :]
        found[Path(*folders, name)] = phrase or ""
        if name.endswith("/"):
            folders.append(name)
    return found


def test_the_tree_of_the_readme_exists() -> None:
    missing = [str(path) for path in listed() if not (ROOT / path).exists()]
    assert not missing, f"README: its tree lists what is not there: {missing}"


def test_every_file_stands_in_the_tree_of_the_readme() -> None:
    paths = set(listed())
    whole = {path for path in paths if (ROOT / path).is_dir() and not any(path in each.parents for each in paths)}
    missing = []
    for path in files(ROOT):
        name = path.relative_to(ROOT)
        if name not in paths and name.name not in {"__init__.py", "py.typed"} and not whole & set(name.parents):
            missing.append(str(name))
    assert not missing, f"README: add to the tree, with a phrase: {missing}"


def test_every_entry_of_the_tree_has_a_phrase() -> None:
    bare = [str(path) for path, phrase in listed().items() if not phrase and (ROOT / path).is_file()]
    assert not bare, f"README: entries without a phrase: {bare}"


@pytest.mark.parametrize("line", [line for block in blocks("bash") for line in block.splitlines() if line.strip()])
def test_a_command_of_the_readme_is_understood(line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^\.PHONY: (.+)$", MAKEFILE, flags=re.MULTILINE)[0].split()
        assert words[1] in targets
        assert all(f"{word.partition('=')[0]} ?=" in MAKEFILE for word in words[2:])
        return
    assert words[0] == ".venv/bin/qwench", f"README: {words[0]} is neither make nor qwench"
    assert words[1] in COMMANDS
    parser = Parser(prog=f"qwench {words[1]}", allow_abbrev=False)
    _load(words[1]).add_arguments(parser)
    parser.read(words[2:])


def test_make_runs_the_test_command_of_the_readme() -> None:
    told = re.search(r"The tests alone: `([^`]+)`", README)
    assert told
    assert f"TEST := {told.group(1).replace('.venv/bin', '$(BIN)')}\n" in MAKEFILE
    recipe = MAKEFILE.partition("\ncheck:")[2].partition("\n\n")[0]
    assert recipe.endswith("\t$(TEST)")


def test_every_command_is_in_the_readme() -> None:
    for name in COMMANDS:
        assert f"qwench {name}" in README


@pytest.mark.parametrize("block", blocks("python"))
def test_the_python_of_the_readme_is_python(block: str) -> None:
    ast.parse(block)


def test_the_quick_start_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(blocks("python")[0], "README.md", "exec"), {})  # noqa: S102  # our own file
    assert capsys.readouterr().out.strip()


def test_the_changelog_begins_with_this_version() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert newest
    assert newest.group(1) == __version__


def test_architecture_names_every_package_and_module_it_can() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    packages = {path.parent.relative_to(PACKAGE).parts[0] for path in files(PACKAGE, "*.py") if path.parent != PACKAGE}
    missing = [name for name in packages if f"`{name}`" not in text and f"{name}/" not in text]
    assert not missing, f"docs/architecture.md does not say what {missing} is"
    stale = [name for name in re.findall(r"`((?:[a-z_]+/)+[a-z_0-9]+\.py)`", text) if not _exists(name)]
    assert not stale, f"docs/architecture.md names files that are not there: {stale}"


def _exists(name: str) -> bool:
    return (PACKAGE / name).exists() or (ROOT / name).exists()


def test_no_file_names_a_machine_or_leaves_a_note_without_an_owner() -> None:
    own = {"work": "(main|shared|venv|interfaces)", "opt": "(wheels|pypi)", "root": r"\.", "tmp": r"bash_"}
    machine = "|".join(rf"/{folder}/{rest}" for folder, rest in own.items())
    notes = "|".join(rf"\b{first}{second}\b" for first, second in (("TO", "DO"), ("FIX", "ME"), ("XX", "X")))
    unwanted = re.compile(f"{machine}|{notes}")
    found = []
    for path in files(ROOT):
        if path.suffix in TEXT and not set(path.parts) & IGNORED and path.name != "LICENSE" and _is_ours(path):
            lines = path.read_text(encoding="utf-8").splitlines()
            found += [
                f"{path}:{number}: {line.strip()}" for number, line in enumerate(lines, 1) if unwanted.search(line)
            ]
    assert not found, "\n".join(found)


def _is_ours(path: Path) -> bool:
    return not path.is_relative_to(PACKAGE / "assets") and not path.is_relative_to(ROOT / "tests" / "fixtures")


def test_the_readme_shows_a_comparison_as_it_was_measured() -> None:
    shown = readme.section(README, "measured")
    assert "Raw samples: `bench/results/" in shown
    assert shown == readme.comparison(readme.RESULTS), "README: `python -m tools.readme` writes the table"


def test_the_readme_shows_the_evaluation_of_nano_that_ships() -> None:
    assert readme.section(README, "nano") == readme.nano(readme.EVALUATION), (
        "README: `python -m tools.readme` writes the table"
    )
