"""Small on purpose: files, functions and signatures stay within what a reader can hold."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.meta.tree import PACKAGE, ROOT, files, python_files, syntax

MAX_FILE = 600
MAX_FUNCTION = 60
MAX_PARAMETERS = 8
PAGE = [path for path in files(PACKAGE / "server" / "page") if "vendor" not in path.parts]
NOT_NOUNS = {"utils", "util", "common", "helpers", "helper", "misc", "base"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(syntax(path)) if isinstance(node, Function))


def parameters(function: Function) -> list[str]:
    named = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return [each.arg for each in named if each.arg not in {"self", "cls"}]


@pytest.mark.parametrize("path", [*python_files(), *PAGE], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE, f"{path} has {lines} lines; split it where it holds two nouns"


@pytest.mark.parametrize("path", files(PACKAGE, "*.py"), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_fit_a_screen_and_take_few_parameters(path: Path) -> None:
    wrong = []
    for function in functions(path):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if length > MAX_FUNCTION:
            wrong.append(f"{path}:{function.lineno}: {function.name} has {length} lines, more than {MAX_FUNCTION}")
        if len(parameters(function)) > MAX_PARAMETERS:
            wrong.append(f"{path}:{function.lineno}: {function.name} takes {len(parameters(function))} parameters")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", files(PACKAGE, "*.py"), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_global_statement_and_no_module_without_a_noun(path: Path) -> None:
    assert path.stem not in NOT_NOUNS, f"{path}: a file that has no noun has no place"
    assert not [node for node in ast.walk(syntax(path)) if isinstance(node, ast.Global)], f"{path} uses `global`"


def test_broad_excepts_stand_only_in_the_engine_loop_and_the_request_handler() -> None:
    allowed = ("engine/core.py", "engine/client.py", "server/", "gateway/app.py")
    handlers = (
        (path.relative_to(PACKAGE).as_posix(), node)
        for path in files(PACKAGE, "*.py")
        for node in ast.walk(syntax(path))
        if isinstance(node, ast.ExceptHandler)
    )
    wrong = [f"{name}:{node.lineno}" for name, node in handlers if _is_broad(node) and not name.startswith(allowed)]
    assert not wrong, f"`except Exception` outside the engine loop and the request handler: {wrong}"


def _is_broad(handler: ast.ExceptHandler) -> bool:
    named = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(
        each is None or (isinstance(each, ast.Name) and each.id in {"Exception", "BaseException"}) for each in named
    )
