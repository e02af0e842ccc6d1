"""``qwench models``: a table that fits a terminal, exact numbers as JSON, at once and without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from qwench import cli
from qwench.plan.shapes import SHAPES


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["models", *arguments]) == 0
    return capsys.readouterr().out


def test_the_table_fits_80_columns_and_lines_up(capsys: pytest.CaptureFixture[str]) -> None:
    lines = output(capsys).splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if line.startswith("qwen3")]
    assert [row.split()[0] for row in rows] == [shape.short_name for shape in SHAPES]
    assert len({len(row) for row in rows} | {len(lines[0]), len(lines[1])}) == 1
    assert "\033" not in "".join(lines)


def test_a_row_says_what_was_asked(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {line.split()[0]: line.split()[1:] for line in output(capsys).splitlines() if line.startswith("qwen3")}
    assert rows["qwen3.5:397b-a17b"] == ["403", "16.3", "807", "403", "202", "151", "101", "30", "180"]
    assert rows["qwen3.5:0.8b"] == ["0.87", "0.75", "1.75", "0.87", "0.44", "0.33", "0.22", "12", "18"]
    assert rows["qwen3:8b"][-2:] == ["144", "-"]


def test_json_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    models = {model["name"]: model for model in json.loads(output(capsys, "--json").splitlines()[-1])["models"]}
    assert len(models) == len(SHAPES)
    assert models["qwen3.5:27b"]["parameters"] == 27_781_427_952
    assert models["qwen3.5:27b"]["bytes"] == {
        "16": 55_562_855_904,
        "8": 27_781_427_952,
        "4": 13_890_713_976,
        "3": 10_418_035_482,
        "2": 6_945_356_988,
    }
    assert models["qwen3.5:27b"]["full_attention_layers"] == 16


def test_no_torch_is_loaded() -> None:
    code = "import sys; from qwench import cli; cli.main(['models']); sys.exit('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
