"""Speed: never the bare peak, laws of depth, users and placement, and what others measured lies in its span."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwench.plan.hardware import GB, Machine, load_machines
from qwench.plan.here import Calibration
from qwench.plan.memory import Load, cache_shape
from qwench.plan.model import Subject, at, published
from qwench.plan.span import Span
from qwench.plan.speed import DEPTHS, place, predict
from qwench.plan.work import coverage

MACHINES = load_machines()
positive = st.floats(0.001, 1e6)
share = st.floats(0, 1)


def model(name: str, precision: str = "q4") -> Subject:
    shape = published(name)
    return at(shape.short_name, shape.config, precision)


def bound(subject: Subject, machine: Machine, load: Load) -> float:
    """Tokens per second of one sequence if nothing but the reading of memory took time."""
    bandwidth, kept, (always, experts) = machine["bandwidth_gbs"], cache_shape(subject, load), subject.parts
    assert bandwidth is not None
    moved = always + experts * coverage(subject.config, 1) + load.context * kept.token_bytes + 2 * kept.sequence_bytes
    return bandwidth.high * GB / moved


@pytest.mark.parametrize("machine", ["rtx-4090", "dgx-spark", "epyc-9005-768", "mac-studio-m3-ultra-96", "h200"])
@pytest.mark.parametrize("name", ["9b", "35b-a3b"])
def test_the_bare_peak_is_never_promised(name: str, machine: str) -> None:
    subject, load = model(name), Load(4096)
    speed = predict(subject, load, MACHINES[machine])
    assert speed.each is not None
    assert 0.1 * bound(subject, MACHINES[machine], load) < speed.each.low
    assert speed.each.high < 0.9 * bound(subject, MACHINES[machine], load)


def test_a_sequence_alone_leaves_a_part_of_the_head_unread_on_a_cpu() -> None:
    whole = model("0.8b")
    shape = published("0.8b").config
    assert whole.unread == 2 * shape.vocab_size * shape.hidden_size / 8
    assert model("0.8b", "q8").unread == model("0.8b", "bf16").unread == 0
    held = replace(whole, weights=tuple(replace(each, unread=0.0) for each in whole.weights))
    for machine, sequences, faster in (("epyc-9005-768", 1, True), ("epyc-9005-768", 2, False), ("rtx-4090", 1, False)):
        loads = Load(512, sequences)
        known = [predict(each, loads, MACHINES[machine]).each for each in (whole, held)]
        assert known[0] is not None
        assert known[1] is not None
        assert (known[0].high > known[1].high) is faster, machine


@pytest.mark.parametrize("name", ["9b", "35b-a3b", "qwen3:8b"])
def test_depth_only_slows_down(name: str) -> None:
    """Of a prompt the high end may stay: where products pass beside reading altogether, reading the weights is all."""
    speeds = [predict(model(name), Load(depth), MACHINES["8x-h200"]) for depth in DEPTHS]
    for sooner, later in itertools.pairwise(speeds):
        assert sooner.each is not None
        assert later.each is not None
        assert sooner.prefill is not None
        assert later.prefill is not None
        assert later.each.high < sooner.each.high
        assert later.prefill.low < sooner.prefill.low
        assert later.prefill.high <= sooner.prefill.high


def test_users_share_dense_weights_but_each_brings_experts() -> None:
    """Eight sequences cost a dense model about what one does; of experts they touch several times as many."""
    gain = {}
    for name in ("27b", "122b-a10b"):
        one, eight = (predict(model(name), Load(64, users), MACHINES["8x-h200"]) for users in (1, 8))
        assert one.total is not None
        assert eight.total is not None
        gain[name] = eight.total.low / one.total.low
    assert gain["27b"] > 5.5
    assert 1.2 < gain["122b-a10b"] < 4


@pytest.mark.parametrize(
    ("name", "batch", "ratio"),
    [("397b", 8, 3.99), ("397b", 64, 17.5), ("122b", 16, 5.73), ("35b-a3b", 4, 1.96), ("27b", 64, 1.0)],
)
def test_bytes_of_a_batch_are_those_of_the_published_analysis(name: str, batch: int, ratio: float) -> None:
    """Of all weights of a step beside those of one token; the embedding's row counts for nothing."""
    subject = model(name, "bf16")
    always, experts = subject.parts
    one, many = (always + experts * coverage(subject.config, tokens) for tokens in (1, batch))
    assert many / one == pytest.approx(ratio, rel=0.06)


def test_what_does_not_fit_has_no_speed() -> None:
    speed = predict(model("397b"), Load(1024), MACHINES["rtx-4090"])
    assert (speed.each, speed.total, speed.prefill) == (None, None, None)
    assert speed.missing == ("it does not fit",)


def test_397b_in_bf16_does_not_fit_eight_h100_but_eight_h200() -> None:
    subject = model("397b", "bf16")
    assert not place(subject, Load(1024), MACHINES["8x-h100"]).fits
    assert 792e9 < place(subject, Load(1024), MACHINES["8x-h100"]).needed < 800e9
    assert place(subject, Load(1024), MACHINES["8x-h200"]).fits
    assert place(subject, Load(1024), MACHINES["16x-h100"]).fits
    assert place(model("397b", "q8"), Load(1024), MACHINES["8x-h100"]).fits


def test_experts_that_do_not_fit_lie_beside_and_slow_it_down() -> None:
    subject, machine = model("397b", "q4"), MACHINES["epyc-9005-768-rtx-pro-6000"]
    placement = place(subject, Load(8192), machine)
    assert placement.offloads
    assert 0.2 < placement.fast_experts < 0.5
    speed = predict(subject, Load(8192), machine)
    assert speed.each is not None
    assert speed.each.low < 22.5 < speed.each.high  # measured so, with another 4-bit type
    assert speed.prefill is None
    assert any("prompts" in reason for reason in speed.missing)


@pytest.mark.parametrize(
    ("name", "machine", "measured"),
    [
        ("35b-a3b", "rtx-3090", 111),
        ("27b", "rtx-3090", 34),
        ("35b-a3b", "strix-halo-128", 49),
        ("122b", "dgx-spark", 28.3),
        ("35b-a3b", "dgx-spark", 65.3),
        ("397b", "mac-studio-m3-ultra-256", 39),
    ],
)
def test_what_the_table_was_made_of_lies_in_its_spans(name: str, machine: str, measured: float) -> None:
    found = MACHINES[machine]
    roomy = replace(found, cells={**found.cells, "usable_gb": replace(found.cells["memory_gb"], value=Span.of(500.0))})
    speed = predict(model(name), Load(1024), roomy)
    assert speed.each is not None
    assert speed.each.low * 0.95 <= measured <= speed.each.high * 1.05


def test_a_calibrated_machine_covers_what_was_measured_elsewhere_on_it() -> None:
    """README's table of 2026-11-22: shares from its prompt of 512 and its single sequence, other cells predicted."""
    cells = {"memory_gb": Span.of(24.0), "bandwidth_gbs": Span.of(19.8), "bf16_tflops": Span.of(5.01)}
    like = MACHINES["epyc-9005-768"].cells["memory_gb"]
    machine = Machine("this", "x", "cpu", {name: replace(like, value=value) for name, value in cells.items()})
    kept = Calibration("x", "2026-11-22", 19.8e9, 5.01e12, "int8 amx", (0.947,), (0.0596,))
    for users, total in ((1, 28.9), (8, 95.5), (16, 118.8)):
        found = predict(model("0.8b"), Load(144, users), machine, kept).total
        assert found is not None
        assert found.low <= total <= found.high, users
    for prompt, rate in ((512, 291.5), (2048, 292.2)):
        read = predict(model("0.8b"), Load(prompt), machine, kept).prefill
        assert read is not None
        assert read.low <= rate <= read.high


@given(positive, positive, positive, positive)
def test_a_span_holds_every_result_of_its_ends(a: float, b: float, c: float, d: float) -> None:
    left, right = Span(min(a, b), max(a, b)), Span(min(c, d), max(c, d))
    for x in (left.low, left.high):
        for y in (right.low, right.high):
            for value, span in ((x + y, left + right), (x * y, left * right), (x / y, left / right), (1 / x, 1 / left)):
                assert span.low * (1 - 1e-12) <= value <= span.high * (1 + 1e-12)
    assert left.join(right).low == min(a, b, c, d)


@given(positive, positive, positive, positive, share, share)
def test_a_step_lies_between_its_longer_part_and_both_one_after_the_other(
    a: float, b: float, c: float, d: float, most: float, least: float
) -> None:
    left, right = Span(min(a, b), max(a, b)), Span(min(c, d), max(c, d))
    overlap = Span(min(most, least), max(most, least))
    span = left.beside(right, overlap)
    for x in (left.low, left.high):
        for y in (right.low, right.high):
            for part in (overlap.low, overlap.high):
                assert span.low * (1 - 1e-12) <= x + y - part * min(x, y) <= span.high * (1 + 1e-12)
    assert (left + right).high * (1 + 1e-12) >= span.high
    assert span.low >= max(left.low, right.low) * (1 - 1e-12)
    assert left.beside(right, Span.of(0.0)) == left + right
    assert left.beside(right, overlap) == right.beside(left, overlap)


@pytest.mark.parametrize(
    ("samples", "middle"),
    [((0.5,), (0.5, 0.5)), ((0.9, 0.1), (0.1, 0.9)), ((3, 1, 2, 4), (2, 3)), ((5, 1, 2, 4, 3), (2, 4))],
)
def test_the_middle_of_samples_leaves_a_quarter_out_at_either_end(
    samples: tuple[float, ...], middle: tuple[float, float]
) -> None:
    assert Span.middle(samples) == Span(*middle)


def test_overlap_makes_batches_faster_and_single_tokens_hardly() -> None:
    """On a machine whose reading and products take about as long with eight sequences."""
    cells = {"memory_gb": Span.of(24.0), "bandwidth_gbs": Span.of(40.0), "bf16_tflops": Span.of(1.0)}
    like = MACHINES["epyc-9005-768"].cells["memory_gb"]
    machine = Machine("this", "x", "cpu", {name: replace(like, value=value) for name, value in cells.items()})
    after = Calibration("x", "2026-11-23", 4e10, 1e12, "int8", (0.7,), (0.5,), overlap=(0.0,))
    beside = replace(after, overlap=(0.5,))
    gains = {}
    for users in (1, 8):
        slow, fast = (predict(model("0.8b"), Load(136, users), machine, kept).total for kept in (after, beside))
        assert slow is not None
        assert fast is not None
        gains[users] = fast.low / slow.low
    assert gains[1] == pytest.approx(1.06, abs=0.03)
    assert gains[8] == pytest.approx(1.3, abs=0.05)
