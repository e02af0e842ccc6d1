"""``qwench show`` of a GGUF file: its types and sizes, from the header."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwench.cli import main


def test_the_types_of_a_file_are_counted(nano_q8: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(nano_q8), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["format"], document["receipt"]) == ("GGUF", None)
    assert document["types"].keys() == {"Q8_0", "F32"}
    assert document["types"]["Q8_0"]["bits_per_weight"] == 8.5
    assert document["bytes"] == sum(row["bytes"] for row in document["types"].values())
    assert document["bytes"] < nano_q8.stat().st_size
    assert main(["show", str(nano_q8)]) == 0
    assert "Q8_0" in capsys.readouterr().out


def test_a_file_is_not_quantised_again(nano_q8: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", str(nano_q8), str(tmp_path / "new"), "--bits", "4"]) == 2
    assert "is a GGUF file, which is in its own format already" in capsys.readouterr().err
