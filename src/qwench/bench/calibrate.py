"""What share of this machine's limits our engine reaches, measured in a minute or two for the planner.

One small shape with random weights stands for all, in 4, 8 and 16 bits: what differs between models is how many bytes
and operations a step has, and those the planner counts. A step's time is taken as its bytes over one share plus its
operations over another, less what of the shorter passes beside the longer, a third share: a prompt tells of the
operations, a single token of the bytes, and a batch, where both take long, of the overlap. Deep rows and other batches
are checks of that, not fitted.
"""

from __future__ import annotations

import datetime
import math
import statistics
from dataclasses import dataclass

from qwench.bench.rows import BATCH_DEPTH, Row
from qwench.bench.subject import Choice, Subject, build, measure
from qwench.device import probe
from qwench.footprint import CacheShape
from qwench.model.parameters import declare
from qwench.ops.limits import Limits, join, measure_limits
from qwench.plan.here import Calibration, Reached, machine_key
from qwench.plan.memory import STEP_TOKENS, Load, footprint
from qwench.plan.model import PLAIN, at, published
from qwench.plan.work import is_read, operations

SHAPE, PRECISIONS = "qwen3.5:0.8b", ("q4", "q8", "bf16")
PROMPT = Row(prefill=STEP_TOKENS)
TOKENS = Row(decode=16)
BATCH = Row(decode=8, depth=BATCH_DEPTH, batch=8)
ROWS = (PROMPT, TOKENS, BATCH)
ROUNDS = 5
TURNS = 20  # of solving: each takes a hundredth of what is off, or less; and of halving
ROOM = 2.0  # times what a precision takes must be free


@dataclass(frozen=True)
class Samples:
    """One precision's: the machine's limits meanwhile, and tokens per second."""

    subject: Subject
    limits: list[Limits]
    prompts: list[float]
    tokens: list[float]
    batches: list[float]


@dataclass(frozen=True)
class Step:
    """What a step must take at the machine's limits, and what it took; seconds."""

    reading: float
    products: float
    took: float


def calibrate() -> Calibration:
    """The first precision is measured in any case, the others where there is memory for them beside it.

    Limits, prompts, tokens and batches of all precisions take turns: a machine's speed changes by the minute, and what
    was not sampled at another minute would be promised too narrowly.
    """
    taken = [_subject(precision) for precision in PRECISIONS if precision == PRECISIONS[0] or _fits(precision)]
    for seed in range(ROUNDS):
        for each in taken:
            each.limits.append(measure_limits("cpu", each.subject.resolved.threads))
            each.prompts.append(measure(each.subject, PROMPT, seed))
            each.tokens.append(measure(each.subject, TOKENS, seed))
            each.batches.append(measure(each.subject, BATCH, seed))
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
        reached[0].overlap,
    )


def _fits(precision: str) -> bool:
    shape = at(SHAPE, published(SHAPE).config, precision)
    return ROOM * footprint(shape, Load(STEP_TOKENS, BATCH.batch)).total < probe().memory_available


def _subject(precision: str) -> Samples:
    quantization = None if precision == PLAIN else precision
    subject = build(Choice("nano", shape=SHAPE, quantization=quantization, device="cpu"), ROWS)
    return Samples(subject, [], [], [], [])


def _reached(taken: Samples, bandwidth: float, arithmetic: float) -> Reached:
    """Each round's overlap is its own; its shares are what they are at the typical one, because how much a kernel does
    at the same time is no matter of the minute."""
    rates = zip(taken.prompts, taken.tokens, taken.batches, strict=True)
    rounds = [
        [_step(taken.subject, row, rate, bandwidth, arithmetic) for row, rate in zip(ROWS, each, strict=True)]
        for each in rates
    ]
    overlaps = [_overlap(*each) for each in rounds]
    shares = [_shares(prompt, token, statistics.median(overlaps)) for prompt, token, _ in rounds]
    decode, prefill = zip(*shares, strict=True)
    return Reached(_bits(taken.subject), decode, prefill, tuple(overlaps))


def _bits(subject: Subject) -> float:
    """Of a weight that is read, on average."""
    sizes = {
        name: math.prod(spec.shape) for name, spec in declare(subject.model).items() if is_read(subject.model, name)
    }
    return sum(size * subject.bits[name] for name, size in sizes.items()) / sum(sizes.values())


def _moved(taken: Samples) -> float:
    """Bytes per second that the engine was seen to read at least, whatever else a step's time went into."""
    rates = zip((TOKENS, BATCH), (taken.tokens, taken.batches), strict=True)
    return max(_bytes(taken.subject, row) * max(each) / row.batch for row, each in rates)


def _bytes(subject: Subject, row: Row) -> float:
    """That a step reads. What a prompt keeps is written, not read again."""
    read = subject.read(row)
    if row.prefill:
        return read
    kept = CacheShape.of(subject.model, subject.model.dtype)
    return read + row.batch * ((row.depth + row.decode / 2) * kept.token_bytes + 2 * kept.sequence_bytes)


def _step(subject: Subject, row: Row, rate: float, bandwidth: float, arithmetic: float) -> Step:
    """A prompt, or one token of each sequence."""
    tokens = row.prefill or row.batch
    logits = 1 / row.prefill if row.prefill else 1.0
    work = tokens * operations(subject.model, row.depth + (row.prefill or row.decode) / 2, logits)
    return Step(_bytes(subject, row) / bandwidth, work / arithmetic, tokens / rate)


def _shares(prompt: Step, token: Step, overlap: float) -> tuple[float, float]:
    """Of the bandwidth and of the arithmetic: of a prompt's time the products' part is what its reading leaves, of a
    token's the reading's what its products leave."""
    read = multiply = 1.0  # times as long as at the limit
    for _ in range(TURNS):
        multiply = _longer(prompt.took, read * prompt.reading, overlap) / prompt.products
        read = _longer(token.took, multiply * token.products, overlap) / token.reading
    return 1 / read, 1 / multiply


def _longer(took: float, shorter: float, overlap: float) -> float:
    """The longer part of what ``took`` so long, and at least half of it, so that noise makes no part nothing. A share
    may come to more than 1 where the limit was measured in a slow moment."""
    return max(took - (1 - overlap) * shorter, took / 2)


def _overlap(prompt: Step, token: Step, batch: Step) -> float:
    """The share of a batch's shorter part with which its time comes out, between 0 and 1; more is always faster."""
    low, high = 0.0, 1.0
    for _ in range(TURNS):
        middle = (low + high) / 2
        decode, prefill = _shares(prompt, token, middle)
        reading, products = batch.reading / decode, batch.products / prefill
        slower = reading + products - middle * min(reading, products) > batch.took
        low, high = (middle, high) if slower else (low, middle)
    return (low + high) / 2
