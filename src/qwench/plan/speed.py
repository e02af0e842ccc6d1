"""How fast a model will be on a machine: time from bytes and operations, over what engines were measured to reach.

A step takes the time its bytes take in each memory, one memory after the other, and the time of its operations, less a
share of the shorter of the two that passes beside the longer. Never the bare peak: every figure is a span, because the
shares are (efficiency.toml, or measured here).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from qwench.plan.hardware import GB, Machine
from qwench.plan.here import SHARES, Calibration
from qwench.plan.memory import STEP_TOKENS, Load, cache_shape, footprint
from qwench.plan.model import Subject
from qwench.plan.span import Span
from qwench.plan.tables import ASSETS, read_table, span_of
from qwench.plan.work import coverage, operations

MODEL_ERROR = Span(0.85, 1.15)  # of the two-term model itself: cells it was not calibrated on, README's batches
ANY_OVERLAP = Span(0.0, 1.0)  # of what nobody measured: from one after the other to both at the same time
DEPTHS = (1024, 4096, 32768, 131072, 262144, 1_000_000)


@dataclass(frozen=True)
class Efficiency:
    """Shares of a machine's peaks, and who measured them; None where nobody did. ``overlap``: see ``Span.beside``."""

    decode: Span | None
    prefill: Span | None
    overlap: Span
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Placement:
    """Which share of the experts lies in the fast memory, the rest beside it; whether it all fits."""

    fits: bool
    needed: float  # bytes
    there: float  # bytes, both memories
    fast_experts: float = 1.0

    @property
    def offloads(self) -> bool:
        return self.fits and self.fast_experts < 1


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one of the sequences, of all, and of a prompt; None with the reason in ``missing``."""

    each: Span | None
    total: Span | None
    prefill: Span | None
    missing: tuple[str, ...]


@dataclass(frozen=True)
class _Row:
    """Of efficiency.toml."""

    kind: str
    experts: bool
    source: str
    decode: Span | None
    prefill: Span | None
    overlap: Span | None


@cache
def _table() -> tuple[_Row, ...]:
    rows = read_table(ASSETS / "efficiency.toml").content["row"]
    return tuple(
        _Row(row["kind"], row["experts"], row["source"], *(span_of(row.get(share)) for share in SHARES)) for row in rows
    )


def efficiency(kind: str, experts: bool, calibration: Calibration | None = None, bits: float = 0.0) -> Efficiency:
    """What was measured here, with weights like those of ``bits``; else the span of the table's rows of this kind, if
    need be of the other models'."""
    if calibration is not None:
        reached, sources = calibration.reached(bits), [f"measured here on {calibration.date}"]
        if reached.overlap:
            overlap: Span | None = Span.middle(reached.overlap)
        else:  # kept before batches were measured
            overlap, told = _of_table("overlap", "cpu", experts)
            sources += [f"overlap: {each}" for each in told]
        return Efficiency(_widened(reached.decode), _widened(reached.prefill), overlap or ANY_OVERLAP, tuple(sources))
    kind = "gpu" if kind == "cloud" else kind
    decode, told = _of_table("decode", kind, experts)
    prefill, more = _of_table("prefill", kind, experts)
    overlap, last = _of_table("overlap", kind, experts)
    return Efficiency(decode, prefill, overlap or ANY_OVERLAP, tuple(dict.fromkeys([*told, *more, *last])))


def _of_table(share: str, kind: str, experts: bool) -> tuple[Span | None, list[str]]:
    """One share of machines like that, and its sources: of models with or without experts, if need be of the others."""
    known = [(row, getattr(row, share)) for row in _table() if row.kind == kind and getattr(row, share) is not None]
    known = [pair for pair in known if pair[0].experts == experts] or known
    span: Span | None = None
    for _, value in known:
        span = value if span is None else span.join(value)
    return span, [row.source for row, _ in known]


def _widened(samples: Sequence[float]) -> Span:
    return Span(min(samples), max(samples)) * MODEL_ERROR


def place(subject: Subject, load: Load, machine: Machine) -> Placement:
    """Everything but experts goes to the fast memory first, then as many experts as fit; the rest lies beside it."""
    needed = footprint(subject, load).total
    fast, beside = machine.usable_bytes, machine.host_bytes
    there = fast + beside
    if needed <= fast:
        return Placement(True, needed, there)
    _, experts = subject.parts
    room = fast - (needed - experts)
    if needed > there or not experts or room < 0:
        return Placement(False, needed, fast if room < 0 or not experts else there)
    return Placement(True, needed, there, room / experts)


def predict(subject: Subject, load: Load, machine: Machine, calibration: Calibration | None = None) -> Speed:
    """For ``load.sequences`` sequences that each know ``load.context`` tokens."""
    placement = place(subject, load, machine)
    if not placement.fits:
        return Speed(None, None, None, ("it does not fit",))
    kind = "offload" if placement.offloads else machine.kind
    shares = efficiency(kind, subject.config.moe is not None, calibration, subject.bits)
    missing = []
    decode_time = _decode_seconds(subject, load, machine, placement, shares)
    if decode_time is None:
        missing.append("the memory's bandwidth is unknown" + _advice(machine))
    prefill_time = _prefill_seconds(subject, load, machine, placement, shares)
    if prefill_time is None:
        missing.append("prompts: no figure with a source" + _advice(machine))
    total = float(load.sequences) / decode_time if decode_time else None
    each = 1.0 / decode_time if decode_time else None
    prefill = 1.0 / prefill_time if prefill_time else None
    return Speed(each, total, prefill, tuple(missing))


def _advice(machine: Machine) -> str:
    return "; `qwench plan --calibrate` measures it" if machine.name == "this" else ""


def _decode_seconds(
    subject: Subject, load: Load, machine: Machine, placement: Placement, shares: Efficiency
) -> Span | None:
    """Of one step of all sequences."""
    bandwidth, beside = machine["bandwidth_gbs"], machine["host_bandwidth_gbs"]
    if bandwidth is None or shares.decode is None or (placement.offloads and beside is None):
        return None
    kept, (always, experts) = cache_shape(subject, load), _parts(subject, machine, load.sequences)
    touched = experts * coverage(subject.config, load.sequences)
    remembered = load.sequences * (load.context * kept.token_bytes + 2 * kept.sequence_bytes)
    fast = always + touched * placement.fast_experts + remembered
    seconds = fast / (bandwidth * GB * shares.decode)
    if placement.offloads:
        assert beside is not None
        seconds += touched * (1 - placement.fast_experts) / (beside * GB * shares.decode)
    peak = machine["bf16_tflops"]
    if peak is not None and shares.prefill is not None:
        work = load.sequences * operations(subject.config, load.context, logits=1.0)
        seconds = seconds.beside(work / (peak * 1e12 * shares.prefill), shares.overlap)
    return seconds


def _parts(subject: Subject, machine: Machine, logits: int) -> tuple[float, float]:
    """The subject's, as a step reads them that asks for so many rows of logits."""
    always, experts = subject.parts
    return always - (subject.unread if machine.kind == "cpu" and logits <= 1 else 0.0), experts


def _prefill_seconds(
    subject: Subject, load: Load, machine: Machine, placement: Placement, shares: Efficiency
) -> Span | None:
    """Of one token of a prompt of ``load.context`` tokens, read in steps."""
    bandwidth, peak = machine["bandwidth_gbs"], machine["bf16_tflops"]
    if bandwidth is None or peak is None or shares.prefill is None or shares.decode is None or placement.offloads:
        return None
    step = min(STEP_TOKENS, load.context)
    always, experts = _parts(subject, machine, 1)
    moved = (always + experts * coverage(subject.config, step)) / step
    work = operations(subject.config, load.context / 2, logits=1 / load.context)
    products = work / (peak * 1e12 * shares.prefill)
    return (moved / (bandwidth * GB * shares.decode)).beside(products, shares.overlap)
