"""What share of this machine's limits our engine reaches, measured in about half a minute for the planner.

One small shape in 4 bits with random weights stands for all: what differs between models is how many bytes and
operations a step has, and those the planner counts. A step's time is taken as its bytes over one share plus its
operations over another; the second is solved from prompts, the first from single tokens. Deep and batched rows are
checks of that, not fitted.
"""

from __future__ import annotations

import datetime

from qwench.bench.rows import Row
from qwench.bench.subject import Choice, Subject, build, measure
from qwench.device import probe
from qwench.footprint import CacheShape
from qwench.ops.limits import join, measure_limits
from qwench.plan.here import Calibration, machine_key
from qwench.plan.memory import STEP_TOKENS
from qwench.plan.work import operations, weight_bytes

SHAPE, BITS = "qwen3.5:0.8b", "q4"
PROMPT = Row(prefill=STEP_TOKENS)
TOKENS = Row(decode=16)
ROUNDS = 3


def calibrate() -> Calibration:
    """Alternates limits, prompts and tokens, so that a neighbour's work falls on all of them."""
    subject = build(Choice("nano", shape=SHAPE, quantization=BITS, device="cpu"), [PROMPT, TOKENS])
    limits, prompts, tokens = [], [], []
    for seed in range(ROUNDS):
        limits.append(measure_limits("cpu", subject.resolved.threads))
        prompts.append(measure(subject, PROMPT, seed))
        tokens.append(measure(subject, TOKENS, seed))
    found = join(limits)
    peak = found.peak(subject.arithmetic) or found.peak("bf16") or found.peak("fp32")
    assert peak is not None, "some arithmetic can be measured on any machine"
    bandwidth, arithmetic = found.reads.best, peak[1].best
    prefill = [_prefill_share(subject, rate, bandwidth, arithmetic) for rate in prompts]
    typical = sorted(prefill)[len(prefill) // 2]
    decode = [_decode_share(subject, rate, bandwidth, arithmetic * typical) for rate in tokens]
    info = probe()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return Calibration(machine_key(info), today, bandwidth, arithmetic, peak[0], tuple(decode), tuple(prefill))


def _prefill_share(subject: Subject, rate: float, bandwidth: float, arithmetic: float) -> float:
    """Of the arithmetic: what is left of a prompt's time once its weights are read, at the pace of memory."""
    seconds = PROMPT.prefill / rate - weight_bytes(subject.model, subject.bits, PROMPT.prefill) / bandwidth
    work = PROMPT.prefill * operations(subject.model, PROMPT.prefill / 2, logits=1 / PROMPT.prefill)
    return _share(work / arithmetic, seconds)


def _decode_share(subject: Subject, rate: float, bandwidth: float, arithmetic: float) -> float:
    """Of the bandwidth: what is left of a token's time once its products are made."""
    kept = CacheShape.of(subject.model, subject.model.dtype)
    context = TOKENS.decode / 2
    moved = weight_bytes(subject.model, subject.bits, 1) + context * kept.token_bytes + 2 * kept.sequence_bytes
    seconds = 1 / rate - operations(subject.model, context, logits=1.0) / arithmetic
    return _share(moved / bandwidth, seconds)


def _share(least: float, seconds: float) -> float:
    """At most 1: a limit that was measured in a slower moment than the engine is no reason to promise more."""
    return min(1.0, least / seconds) if seconds > 0 else 1.0
