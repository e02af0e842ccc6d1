"""``qwench quantize`` and ``qwench show``: a folder that runs, its receipt, and one sentence for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwench.cli import main
from qwench.cli.quantize import RECEIPT, REFERENCE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("quantised") / "nano-q4"
    assert main(["quantize", "nano", str(target), "--bits", "4"]) == 0
    return target


def test_the_receipt_is_kept_and_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    receipt = json.loads((folder / RECEIPT).read_text())
    assert receipt["recipe"] == "q4"
    assert receipt["tokens"] > 300
    assert 0 < receipt["divergence"] < 0.15
    assert 0.6 < receipt["agreement"] < 1
    assert not (folder / REFERENCE).exists()
    assert main(["show", str(folder), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["receipt"] == {name: value for name, value in receipt.items() if name != "recipe"}
    assert (document["format"], document["recipe"]) == ("safetensors, qwench", "q4")
    assert document["types"].keys() >= {"q4", "q5", "q6"}
    assert document["bytes"] == sum(row["bytes"] for row in document["types"].values())
    assert main(["show", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "recipe q4" in told
    assert f"{receipt['divergence']:.5f} nats" in told


def test_the_folder_runs_and_says_what_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(folder), "-p", "What is 12 + 30?", "--no-think"]) == 0
    told = capsys.readouterr()
    assert told.out.strip()
    assert "q4 " in told.err
    assert "(as stored)" in told.err


def test_a_plain_folder_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "nano"]) == 0
    told = capsys.readouterr().out
    assert "safetensors" in told
    assert "BF16" in told
    assert "receipt" not in told


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give either --bits (8, 6, 5, 4, 3 or 2) or --type"),
        (["--bits", "4", "--type", "q4"], "give either --bits"),
        (["--type", "q7"], "--type is 'q7'; did you mean q"),
        (["--bits", "7"], "--bits is 7; it must be 8, 6, 5, 4, 3 or 2."),
        (["--bits", "4", "--delete-source"], "--delete-source would remove the embedded model"),
    ],
)
def test_a_wrong_flag_is_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", "nano", str(tmp_path / "new"), *arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"qwench: {sentence}")
    assert told.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_another_quantization_of_a_quantised_folder_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(folder), str(tmp_path / "again"), "--bits", "2"]) == 4
    assert "is quantised already (qwench)" in capsys.readouterr().err
    assert main(["chat", str(folder), "-p", "x", "--quantization", "q8"]) == 4
    assert "is quantised already" in capsys.readouterr().err
