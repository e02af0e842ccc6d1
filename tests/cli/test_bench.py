"""``qwench bench``: what it refuses, and that its last line is a document with every sample."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwench.cli import bench, main
from qwench.device import Measurement
from qwench.ops.limits import Limits
from qwench.progress import Progress

LIMITS = Limits(Measurement((1e12,), "bytes/s", "by hand"), None, {"fp32 x": Measurement((1e14,), "operations/s", "x")})
FEW = ["--prefill", "9", "--depths", "0,20", "--batch", "1,2", "--decode", "3", "--runs", "3"]


@pytest.fixture(autouse=True)
def _limits_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwench.bench.compare.measured_limits", lambda _choice, _threads: LIMITS)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--quantization", "q9"], "quantization is 'q9'; did you mean q8?"),
        (["--runs", "0"], "--runs is 0; give a whole number of at least 1."),
        (["--prefill", "-3"], "--prefill is '-3'; give whole numbers of at least 1 such as 128,512, or none."),
        (["--depths", "a,b"], "--depths is 'a,b'; give whole numbers of at least 0"),
        (["--prefill", "none", "--depths", "none", "--batch", "none"], "--prefill, --depths and --batch are all none"),
        (["--layers", "3"], "--layers cuts random weights short; give --shape with it."),
        (["--shape", "qwen3:0.6b", "--layers", "99"], "--layers is 99, but qwen3:0.6b has 28; give at most that."),
        (["--shape", "qwen3.5:0.9b"], "--shape qwen3.5:0.9b is no published shape; did you mean qwen3.5:"),
        (["--shape", "nope"], "--shape nope is no published shape; `qwench models` lists the shapes."),
        (["--shape", "@@@"], "--shape @@@ is no published shape; `qwench models` lists the shapes."),
        (["other", "--shape", "qwen3:0.6b"], "--shape qwen3:0.6b and the model other exclude each other"),
        (["--compare", "nobody"], "--compare nobody is unknown; give llama.cpp"),
        (["--compare", "transformers"], "--compare transformers runs random weights; add --shape."),
        (["--compare", "llama.cpp", "--peer-path", "/nowhere"], "--peer-path /nowhere holds no llama-bench"),
        (["--prefill", "9999999", "--depths", "none", "--batch", "none"], "no row fits into the model's window"),
    ],
)
def test_a_wrong_flag_is_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) != 0
    told = capsys.readouterr()
    assert told.err.splitlines()[-1].startswith(f"qwench: {sentence}")
    assert told.out == ""


def test_nano_is_measured_and_told_as_a_document(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown: list[float] = []
    monkeypatch.setattr(Progress, "update", lambda _bar, done, note="": shown.append(done))
    monkeypatch.setattr("qwench.bench.compare.our_first_token", lambda _choice, _threads: 1.5)
    assert main(["bench", *FEW, "--json", "--out", str(tmp_path / "deep" / "file.json")]) == 0
    told = capsys.readouterr()
    document: dict[str, Any] = json.loads(told.out)
    assert told.out.count("\n") == 1
    assert json.loads((tmp_path / "deep" / "file.json").read_text()) == document
    assert document["subject"]["model"] == "nano"
    assert [row["name"] for row in document["rows"]] == ["prefill 9", "decode", "decode at 20", "decode, batch 2"]
    for row in document["rows"]:
        assert row["name"] in told.err
        ours = row["sides"]["qwench"]
        assert len(ours["samples"]) == 3
        assert ours["tokens_per_second"] == sorted(ours["samples"])[1] > 0
        assert 0 < ours["share_of_limit"] < 1
        assert ours["tokens_per_second"] / row["limit_tokens_per_second"] == pytest.approx(ours["share_of_limit"])
    assert document["sides"]["qwench"]["peak_memory_bytes"] > 0
    assert document["sides"]["qwench"]["weight_bytes"] > 1e6
    assert document["first_token"]["sides"]["qwench"]["seconds"] == 1.5
    assert shown == sorted(shown)
    assert shown[-1] == 1.0


def test_rows_beyond_the_window_are_named_and_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--prefill", "8", "--depths", "999999", "--batch", "none", "--runs", "1", "--quick"]
    assert main(["bench", *args[:-1]]) == 0
    told = capsys.readouterr()
    assert "left out: decode at 999999, because the model's window is" in told.err
    assert "prefill 8" in told.out


def test_a_folder_alone_is_that_of_llama_cpp() -> None:
    assert bench.read_paths(["/a", "ik_llama.cpp=/b"]) == {"llama.cpp": Path("/a"), "ik_llama.cpp": Path("/b")}
