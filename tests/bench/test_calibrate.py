"""Calibration finds the shares of a machine whose shares are known, and the planner then finds its speeds again."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qwench import cli
from qwench.bench import calibrate as subject_of_test
from qwench.bench.calibrate import BATCH, PROMPT, ROUNDS, TOKENS, calibrate
from qwench.bench.rows import Row
from qwench.bench.subject import Subject
from qwench.device import Measurement, probe
from qwench.ops.limits import Limits
from qwench.plan.here import this_machine
from qwench.plan.memory import Load, cache_shape
from qwench.plan.model import at, published
from qwench.plan.speed import predict
from qwench.plan.work import operations

BANDWIDTH, ARITHMETIC, DECODE, PREFILL, OVERLAP = 2e10, 5e12, 0.8, 0.06, 0.4
MODEL = at("x", published("0.8b").config, "q4")
CELLS = [
    Row(decode=16, depth=4096),
    Row(decode=16, depth=32768),
    *(Row(decode=8, batch=users) for users in (2, 4, 8, 16)),
]


def made(row: Row, overlap: float = OVERLAP) -> float:
    """Tokens per second of a machine that is exactly what the planner takes machines for."""
    config, kept, (always, _) = MODEL.config, cache_shape(MODEL, Load(1)), MODEL.parts
    tokens, context, moved = row.prefill, row.prefill / 2, always
    moved -= MODEL.unread if row.batch == 1 else 0.0
    if not row.prefill:
        tokens, context = row.batch, row.depth + row.decode / 2
        moved += row.batch * (context * kept.token_bytes + 2 * kept.sequence_bytes)
    work = tokens * operations(config, context, 1 / row.prefill if row.prefill else 1.0)
    read, multiplied = moved / (BANDWIDTH * DECODE), work / (ARITHMETIC * PREFILL)
    return tokens / (read + multiplied - overlap * min(read, multiplied))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    bits = {each.name: 8 * each.bytes / each.parameters for each in MODEL.weights}
    every = {name: bits.get(name, bits.get(_first(name), 0.0)) for name in _names()}
    subject = SimpleNamespace(
        model=MODEL.config, bits=every, unread=MODEL.unread, arithmetic="int8", resolved=SimpleNamespace(threads=2)
    )
    subject.read = functools.partial(Subject.read, cast(Subject, subject))
    limits = Limits(
        Measurement((BANDWIDTH,), "bytes/s", ""), None, {"int8 x": Measurement((ARITHMETIC,), "operations/s", "")}
    )
    monkeypatch.setattr(subject_of_test, "build", lambda *_: subject)
    monkeypatch.setattr(subject_of_test, "measure", lambda _, row, seed: made(row))
    monkeypatch.setattr(subject_of_test, "measure_limits", lambda *_: limits)


def _names() -> list[str]:
    from qwench.model.parameters import declare

    return list(declare(MODEL.config))


def _first(name: str) -> str:
    """The parameter that stands for ``name`` among those that are alike."""
    ending = name.split(".", 2)[-1]
    return next(each.name for each in MODEL.weights if each.name.split(".", 2)[-1] == ending)


@pytest.mark.usefixtures("machine")
def test_the_shares_are_found_and_every_other_speed_follows() -> None:
    found = calibrate()
    assert found.decode == pytest.approx((DECODE,) * ROUNDS, rel=0.02)
    assert found.prefill == pytest.approx((PREFILL,) * ROUNDS, rel=0.02)
    assert found.overlap == pytest.approx((OVERLAP,) * ROUNDS, abs=0.02)
    for each in found.every:
        assert each == dataclasses.replace(found.every[0], bits=each.bits), "the machine is the same in all precisions"
    here = dataclasses.replace(probe(), nvidia_driver=False)
    for row in (PROMPT, TOKENS, *CELLS):
        load = Load(row.prefill or row.depth + row.decode // 2, row.batch)
        speed = predict(MODEL, load, this_machine(here, found), found)
        span = speed.prefill if row.prefill else speed.total
        assert span is not None
        assert span.low < made(row) < span.high, row


@pytest.mark.usefixtures("machine")
def test_the_command_keeps_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cli.main(["plan", "--calibrate", "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    kept = json.loads((tmp_path / "qwench" / "calibration.json").read_text(encoding="utf-8"))
    assert kept == told
    assert cli.main(["plan", "0.8b", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    if plan["machine"]["kind"] == "cpu":
        assert plan["shares"]["sources"] == [f"measured here on {told['date']}"]
        assert plan["speed"]["each"]["low"] > 0
    assert cli.main(["plan", "--calibrate"]) == 0
    assert capsys.readouterr().out.count("of a batch's shorter part 40% to 40% passed beside the longer") == 3
    (tmp_path / "blocked").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))
    assert cli.main(["plan", "--calibrate"]) == 10
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.usefixtures("machine")
def test_a_limit_measured_in_a_slow_moment_is_raised_by_what_the_engine_read(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Limits(
        Measurement((0.5 * BANDWIDTH,), "bytes/s", ""), None, {"int8 x": Measurement((ARITHMETIC,), "operations/s", "")}
    )
    monkeypatch.setattr(subject_of_test, "measure_limits", lambda *_: slow)
    found = calibrate()
    assert 0.5 * BANDWIDTH < found.bandwidth <= DECODE * BANDWIDTH
    here = dataclasses.replace(probe(), nvidia_driver=False)
    for row in (PROMPT, TOKENS, *CELLS):
        speed = predict(
            MODEL, Load(row.prefill or row.depth + row.decode // 2, row.batch), this_machine(here, found), found
        )
        span = speed.prefill if row.prefill else speed.total
        assert span is not None
        assert span.low < made(row) < span.high, row


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_how_much_is_done_at_the_same_time_is_found(overlap: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject_of_test, "measure", lambda _, row, seed: made(row, overlap))
    found = calibrate()
    assert found.overlap == pytest.approx((overlap,) * ROUNDS, abs=0.02)
    here = dataclasses.replace(probe(), nvidia_driver=False)
    machine = this_machine(here, found)
    for row in (PROMPT, TOKENS, BATCH, *CELLS):
        speed = predict(MODEL, Load(row.prefill or row.depth + row.decode // 2, row.batch), machine, found)
        span = speed.prefill if row.prefill else speed.total
        assert span is not None
        assert span.low < made(row, overlap) < span.high, row


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("factor", "expected"), [(0.5, 0.0), (2.0, 1.0)])
def test_a_batch_no_overlap_explains_is_none_or_all_of_it(
    factor: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise: a batch that was slower than one after the other, or faster than the longer part alone."""
    monkeypatch.setattr(subject_of_test, "measure", lambda _, row, seed: made(row) * (factor if row.batch > 1 else 1.0))
    found = calibrate()
    assert found.overlap == pytest.approx((expected,) * ROUNDS, abs=0.001)
    assert all(0 <= share <= 1 for share in found.overlap)
    assert found.decode == pytest.approx((found.decode[0],) * ROUNDS)
    assert 0.8 * DECODE < found.decode[0] < 1.2 * DECODE


def test_the_longer_part_of_a_step_is_at_least_half_of_it() -> None:
    assert subject_of_test._longer(4.0, 1.0, 0.0) == pytest.approx(3.0)
    assert subject_of_test._longer(4.0, 1.0, 0.5) == pytest.approx(3.5)
    assert subject_of_test._longer(4.0, 5.0, 0.0) == pytest.approx(2.0)
