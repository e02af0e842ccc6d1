"""A state belongs to one model, computed in one way: whatever changes either changes the fingerprint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qwench.cache.identity import identity
from qwench.files import open_files
from qwench.weights.locate import locate

SETTINGS = ("float32", "avx2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = locate("nano", offline=True)
    return Path(shutil.copytree(path, tmp_path / "model"))


def test_a_copy_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert identity(open_files(copy), SETTINGS) == identity(open_files(folder), SETTINGS)


def test_other_settings_are_another(folder: Path) -> None:
    assert identity(open_files(folder), SETTINGS) != identity(open_files(folder), ("bfloat16", "avx2"))


@pytest.mark.parametrize("suffix", [".json", ".jinja", ".safetensors"])
def test_a_byte_of_any_file_makes_another(folder: Path, suffix: str) -> None:
    before = identity(open_files(folder), SETTINGS)
    path = next(path for path in sorted(folder.iterdir()) if path.suffix == suffix)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert identity(open_files(folder), SETTINGS) != before
