"""What share of this machine's limits our engine reaches, measured in a minute or two for the planner.

One small shape with random weights stands for all, in 4, 8 and 16 bits: what differs between models is how many bytes
and operations a step has, and those the planner counts. A step's time is taken as its bytes over one share plus its
operations over another; the second is solved from prompts, the first from single tokens. Deep and batched rows are
checks of that, not fitted.
"""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass

from qwench.bench.rows import Row
from qwench.bench.subject import Choice, Subject, build, measure
from qwench.device import probe
from qwench.footprint import CacheShape
from qwench.model.parameters import declare
from qwench.ops.limits import Limits, join, measure_limits
from qwench.plan.here import Calibration, Reached, machine_key
from qwench.plan.memory import STEP_TOKENS, Load, footprint
from qwench.plan.model import PLAIN, at, published
from qwench.plan.work import is_read, operations, weight_bytes

SHAPE, PRECISIONS = "qwen3.5:0.8b", ("q4", "q8", "bf16")
PROMPT = Row(prefill=STEP_TOKENS)
TOKENS = Row(decode=16)
ROUNDS = 5
ROOM = 2.0  # times what a precision takes must be free


@dataclass(frozen=True)
class Samples:
    """One precision's: the machine's limits meanwhile, and tokens per second."""

    subject: Subject
    limits: list[Limits]
    prompts: list[float]
    tokens: list[float]


def calibrate() -> Calibration:
    """The first precision is measured in any case, the others where there is memory for them beside it.

    Limits, prompts and tokens of all precisions take turns: a machine's speed changes by the minute, and what was not
    sampled at another minute would be promised too narrowly.
    """
    taken = [_subject(precision) for precision in PRECISIONS if precision == PRECISIONS[0] or _fits(precision)]
    for seed in range(ROUNDS):
        for each in taken:
            each.limits.append(measure_limits("cpu", each.subject.resolved.threads))
            each.prompts.append(measure(each.subject, PROMPT, seed))
            each.tokens.append(measure(each.subject, TOKENS, seed))
    first, found = taken[0], join([limits for each in taken for limits in each.limits])
    peak = found.peak(first.subject.arithmetic) or found.peak("bf16") or found.peak("fp32")
    assert peak is not None, "some arithmetic can be measured on any machine"
    # A busy moment only lowers a limit: who moved more than was measured has measured better.
    bandwidth, arithmetic = max(found.reads.best, *map(_moved, taken)), peak[1].best
    reached = [_reached(each, bandwidth, arithmetic) for each in taken]
    info = probe()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return Calibration(
        machine_key(info),
        today,
        bandwidth,
        arithmetic,
        peak[0],
        reached[0].decode,
        reached[0].prefill,
        reached[0].bits,
        tuple(reached[1:]),
    )


def _fits(precision: str) -> bool:
    shape = at(SHAPE, published(SHAPE).config, precision)
    return ROOM * footprint(shape, Load(STEP_TOKENS)).total < probe().memory_available


def _subject(precision: str) -> Samples:
    quantization = None if precision == PLAIN else precision
    subject = build(Choice("nano", shape=SHAPE, quantization=quantization, device="cpu"), [PROMPT, TOKENS])
    return Samples(subject, [], [], [])


def _reached(taken: Samples, bandwidth: float, arithmetic: float) -> Reached:
    subject = taken.subject
    prefill = [_prefill_share(subject, rate, bandwidth, arithmetic) for rate in taken.prompts]
    typical = sorted(prefill)[len(prefill) // 2]
    decode = [_decode_share(subject, rate, bandwidth, arithmetic * typical) for rate in taken.tokens]
    return Reached(_bits(subject), tuple(decode), tuple(prefill))


def _bits(subject: Subject) -> float:
    """Of a weight that is read, on average."""
    sizes = {
        name: math.prod(spec.shape) for name, spec in declare(subject.model).items() if is_read(subject.model, name)
    }
    return sum(size * subject.bits[name] for name, size in sizes.items()) / sum(sizes.values())


def _moved(taken: Samples) -> float:
    """Bytes per second that the engine was seen to read at least, whatever else a token's time went into."""
    return max(taken.tokens) * _token_bytes(taken.subject)


def _token_bytes(subject: Subject) -> float:
    kept = CacheShape.of(subject.model, subject.model.dtype)
    return weight_bytes(subject.model, subject.bits, 1) + TOKENS.decode / 2 * kept.token_bytes + 2 * kept.sequence_bytes


def _prefill_share(subject: Subject, rate: float, bandwidth: float, arithmetic: float) -> float:
    """Of the arithmetic: what is left of a prompt's time once its weights are read, at the pace of memory."""
    work = PROMPT.prefill * operations(subject.model, PROMPT.prefill / 2, logits=1 / PROMPT.prefill)
    return _share(
        work / arithmetic, PROMPT.prefill / rate, weight_bytes(subject.model, subject.bits, PROMPT.prefill) / bandwidth
    )


def _decode_share(subject: Subject, rate: float, bandwidth: float, arithmetic: float) -> float:
    """Of the bandwidth: what is left of a token's time once its products are made."""
    work = operations(subject.model, TOKENS.decode / 2, logits=1.0)
    return _share(_token_bytes(subject) / bandwidth, 1 / rate, work / arithmetic)


def _share(least: float, took: float, other: float) -> float:
    """What a step ``took`` but for its ``other`` part. The two overlap, so neither part is all of it: at most half is
    taken off, and a share may be more than 1, as it stands for a step that takes the one after the other."""
    return least / max(took - other, took / 2)
