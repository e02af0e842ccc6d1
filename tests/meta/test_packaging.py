"""What is installed: pins that fit the declared ranges, and a wheel with everything that is not Python in it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.meta.tree import PACKAGE, ROOT, files


def test_every_declared_requirement_is_pinned_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    pins = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line]
    pinned = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in pins)}
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        if name != "qwench":
            assert name in pinned, f"constraints.txt does not pin {name}"
            assert pinned[name] in requirement.specifier, f"{name}=={pinned[name]} is outside {requirement.specifier}"


@pytest.mark.slow
@pytest.mark.timeout(1200)  # it compiles the native library from nothing
def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE", "setup.py"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    shutil.copytree(PACKAGE, tmp_path / "src" / "qwench", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "out", "."]
    subprocess.run(build, cwd=tmp_path, check=True, timeout=1100)
    (wheel,) = (tmp_path / "out").glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("qwench/")}
    expected = {f"qwench/{path.relative_to(PACKAGE).as_posix()}" for path in files(PACKAGE)}
    if shutil.which("c++"):
        expected.add("qwench/ops/libqwench.so")
    assert packed == expected
    assert wheel.stat().st_size < 16e6
