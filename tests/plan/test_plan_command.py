"""``qwench plan`` as a user sees it: tables, JSON, a page, sentences; at once and without torch."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from qwench import cli
from tests.meta.tree import ROOT

LIMIT = 0.5  # seconds


@pytest.fixture(autouse=True)
def nothing_measured_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def output(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert cli.main(["plan", *arguments]) == code
    return capsys.readouterr().out


def document(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output(capsys, *arguments, "--json", code=code).splitlines()[-1])
    return found


def test_a_plan_says_what_fits_how_fast_and_for_how_much(capsys: pytest.CaptureFixture[str]) -> None:
    told = output(capsys, "35b-a3b", "--hardware", "rtx-5090", "--users", "8", "--context", "32k")
    assert "qwen3.5:35b-a3b at q4 on NVIDIA RTX 5090" in told
    for part in (
        "It fits:",
        "experts",
        "keys and values",
        "recurrent states",
        "work buffers",
        "32k",
        "GPT-5.4",
        "$ per million",
    ):
        assert part in told
    assert max(map(len, told.splitlines())) <= 100
    assert "\033" not in told


def test_json_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    told = document(
        capsys, "397b", "--hardware", "8x-h200", "--quantization", "bf16", "--wait", "6", "--completion", "0.21"
    )
    assert told["parameters"] == {"total": 403_397_928_944, "text": 396_346_350_336, "active": 16_331_922_176}
    assert told["memory"]["total"] == pytest.approx(sum(line["bytes"] for line in told["memory"]["lines"]))
    assert told["placement"]["fits"] is True
    assert told["machine"]["cells"]["rent_usd_hour"]["value"] == {"low": 32.48, "high": 32.48}
    assert [point["at"] for point in told["depths"]][-1] == 1_000_000
    assert told["waiting"]["fewer"]["high"] == pytest.approx(4.0)
    assert told["costs"]["completed"]["low"] == pytest.approx(told["costs"]["attempt"]["low"] / 0.21)
    assert told["scores"]["GPQA"] == 88.4


def test_every_statement_of_the_user_counts(capsys: pytest.CaptureFixture[str]) -> None:
    plain = document(capsys, "27b", "--hardware", "rtx-pro-6000", "--context", "32k")
    lines = {line["name"]: line["bytes"] for line in plain["memory"]["lines"]}
    flags = (
        "--kv-cache-dtype",
        "int8",
        "--snapshots",
        "3",
        "--pixels",
        "1000000",
        "--electricity",
        "0.4",
        "--years",
        "1.5",
    )
    stated = document(capsys, "27b", "--hardware", "rtx-pro-6000", "--context", "32k", "--task", "100,50", *flags)
    more = {line["name"]: line["bytes"] for line in stated["memory"]["lines"]}
    assert more["keys and values"] / lines["keys and values"] == pytest.approx(260 / 512)
    assert more["snapshots"] == 3 * lines["recurrent states"]
    assert more["vision tower"] == 2 * 460_730_096
    assert stated["costs"]["hourly"]["low"] == pytest.approx(2 * plain["costs"]["hourly"]["low"])
    assert (stated["task"]["prompt"], stated["task"]["answer"]) == (100, 50)


@pytest.mark.parametrize(("machine", "said"), [("h200", True), ("rtx-5090", False)])
def test_an_overlap_that_nobody_measured_is_told_where_it_counts(
    machine: str, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an RTX 5090 the table has no arithmetic, so products are no part of its figures."""
    told = document(capsys, "35b-a3b", "--hardware", machine, "--users", "8")
    assert any("passes beside the products" in note for note in told["notes"]) is said
    assert told["shares"]["overlap"] == {"low": 0.0, "high": 1.0}


def test_what_does_not_fit_is_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    told = output(capsys, "397b", "--hardware", "8x-h100", "--quantization", "bf16")
    assert "It does not fit: 793 GB needed" in told or "It does not fit: 79" in told
    assert "576 GB may be used" in told


def test_this_machine_is_planned_for_without_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    told = document(capsys, "qwen3.5:0.8b")
    assert told["machine"]["name"] == "this"
    if told["machine"]["kind"] == "cpu":
        assert told["speed"]["each"] is None
        assert "--calibrate" in told["speed"]["missing"][0]


def test_nano_and_files_are_planned_for_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert document(capsys, "nano")["source"].startswith("config of nano")
    folder = ROOT / "tests/golden/dense"
    assert document(capsys, str(folder))["parameters"]["text"] > 0


def test_a_wish_lists_machines_and_its_exit_code_tells_whether_one_would_do(capsys: pytest.CaptureFixture[str]) -> None:
    told = document(capsys, "--for", "35b-a3b at 32k, 8 users, 20 tok/s")
    assert told["wish"]["users"] == 8
    assert told["offers"][0]["verdict"] == "yes"
    assert told["nearest"] is None
    told = document(capsys, "--for", "397b in 16 bits under $5000", code=1)
    assert told["nearest"]["giving_up"] == "without the limit of the price"
    assert "No machine of the table would do" in output(capsys, "--for", "397b in 16 bits under $5000", code=1)


def test_a_machine_lists_models_with_scores(capsys: pytest.CaptureFixture[str]) -> None:
    told = output(capsys, "--hardware", "rtx-4090")
    assert re.search(r"qwen3.5:27b +yes +q5 +20\.\d", told)
    assert re.search(r"qwen3.5:397b-a17b +no .* 88.4", told)
    assert len(document(capsys, "--hardware", "rtx-4090")["models"]) == 16
    assert "rtx-4090" in output(capsys, "--hardware", "list")
    assert document(capsys, "--hardware", "list")["machines"][1]["cells"]["memory_gb"]["source"]


class Checked(HTMLParser):
    """Counts elements, and refuses what would be fetched or run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "link", "img", "iframe"}
        assert not any(name in {"src", "href"} for name, _ in attrs)
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_file_with_its_charts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "plan.html"
    told = document(capsys, "122b", "--hardware", "8x-h100", "--users", "8", "--wait", "6", "--html", str(page))
    text = page.read_text(encoding="utf-8")
    checked = Checked()
    checked.feed(text)
    assert not checked.open
    assert checked.counts["svg"] == 5
    assert checked.counts["polygon"] >= 4
    assert "nan" not in text
    assert "url(" not in text
    for line in told["memory"]["lines"]:
        assert line["name"] in text


def test_the_page_of_an_unknown_speed_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "plan.html"
    output(capsys, "0.8b", "--html", str(page))
    checked = Checked()
    checked.feed(page.read_text(encoding="utf-8"))
    assert checked.counts["svg"] >= 1


def test_tokens_per_word_are_those_of_the_users_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one two three four\n" * 10, encoding="utf-8")
    told = document(capsys, "nano", "--text", str(text))
    assert told["words"] == 40
    assert told["tokens"] / told["words"] == told["tokens_per_word"] > 0.9


def test_atlas_is_a_what_if(capsys: pytest.CaptureFixture[str]) -> None:
    told = output(capsys, "--languages", "2")
    assert "1.18 times the parameters" in told
    assert "Nobody who runs a model pays it" in told


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["35b-a4b"], "'35b-a4b' is no published model, folder or GGUF file; nearest: qwen3.5:35b-a3b"),
        (["some/model"], "some/model is no published shape and not on this machine, and the Hub cannot be reached"),
        (["none.gguf"], "none.gguf: there is no such file"),
        (["27b", "--hardware", "rtx-409"], "--hardware 'rtx-409' is not in the table; the nearest is rtx-4090"),
        (["27b", "--quantization", "q7"], "--quantization is 'q7'; use bf16, q8"),
        (["27b", "--context", "many"], "argument --context: 'many' is no number of tokens"),
        (["27b", "--context", "0"], "argument --context: '0' is no number of tokens"),
        (["27b", "--task", "5"], "--task is '5'; give tokens in and out"),
        (["27b", "--completion", "2"], "argument --completion: '2' is no share"),
        (["27b", "--users", "-1"], "argument --users: "),
        (["27b", "--hardware-file", "none.toml", "--hardware", "x"], "none.toml cannot be read: no such file"),
        (["27b", "--hardware-file", "none.toml"], "none.toml cannot be read: no such file"),
        (["27b", "--for", "9b"], "--for names its model; leave out 27b"),
        (["--html", "x.html"], "--html shows the plan of one model; give a MODEL"),
        (["--for", "moon base"], "'moon' is no published model"),
        (["--for", ""], "--for '' names no model"),
        ([""], "'' is not a known model"),
        (["27b", "--quantization", ""], "--quantization is ''; use bf16"),
        (["--text", "none.txt"], "--text none.txt cannot be read"),
        (["27b", "--html", "/none/x.html"], "--html /none/x.html cannot be written"),
        (["27b", "--electricty", "1"], "did you mean --electricity?"),
    ],
)
def test_a_mistake_is_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *arguments]) != 0
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["35b-a3b"], ["--hardware", "rtx-4090"], ["--for", "35b-a3b at 32k, 8 users, 20 tok/s"]], ids=" ".join
)
def test_a_plan_is_there_at_once_and_without_torch(arguments: list[str], tmp_path: Path) -> None:
    """Processor time above a bare start of Python, the least of several."""
    code = f"import sys; from qwench import cli; cli.main(['plan', *{arguments!r}]); sys.exit('torch' in sys.modules)"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "XDG_CACHE_HOME": str(tmp_path),
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(tmp_path / "compiled"),  # as where it is installed: only the first start compiles
    }
    bare: list[float] = []
    taken: list[float] = []
    for _ in range(4):
        for program, times in (("pass", bare), (code, taken)):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            assert done.returncode == 0, done.stderr
            times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(taken) - min(bare) < LIMIT
