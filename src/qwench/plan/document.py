"""One plan as data: what the terminal, the JSON and the page all show. Decides nothing about how it looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from qwench.footprint import tower_bytes
from qwench.plan.choose import LADDER, scores
from qwench.plan.cost import (
    TYPICAL,
    USES,
    Price,
    Task,
    Terms,
    break_even,
    completed,
    hourly,
    marginal,
    own_task,
    per_million,
    prices_of,
)
from qwench.plan.hardware import THIS, Machine
from qwench.plan.here import Calibration
from qwench.plan.memory import Footprint, Load, footprint, predictor_bytes
from qwench.plan.model import Subject, at
from qwench.plan.shapes import active_parameters, text_parameters, total_parameters, vision_parameters
from qwench.plan.span import Span
from qwench.plan.speed import ANY_OVERLAP, DEPTHS, Efficiency, Placement, Speed, efficiency, place, predict
from qwench.plan.trends import Wait, wait

USERS = (1, 2, 4, 8, 16, 32)
PICTURE = 1344 * 1344  # pixels
LONGEST = 1_010_000  # what the model cards extend the window to


@dataclass(frozen=True)
class Setting:
    """The machine and everything that is not the model's: what a user may state once."""

    machine: Machine
    terms: Terms = field(default_factory=Terms)
    task: Task = TYPICAL
    prices: Sequence[Price] = ()
    calibration: Calibration | None = None
    months: float | None = None

    @property
    def measured(self) -> Calibration | None:
        """The calibration, where it is of this machine's kind."""
        return self.calibration if self.machine.name == THIS and self.machine.kind == "cpu" else None


@dataclass(frozen=True)
class Rung:
    """One precision: the weights alone, all that is asked, whether it fits, one sequence's speed."""

    precision: str
    weights: float
    total: float
    fits: bool
    decode: Span | None


@dataclass(frozen=True)
class Point:
    """Speed at a number of ``tokens`` known or of ``users``; ``note`` where it cannot be."""

    at: int
    speed: Speed
    note: str = ""


@dataclass(frozen=True)
class Use:
    """Dollars for a million generated tokens with the machine at work for the ``share`` of the time."""

    share: float
    average: Span


@dataclass(frozen=True)
class Rival:
    """An offer, what one attempt and one completed task cost there, and from which use on own tokens are cheaper."""

    price: Price
    attempt: Span
    completed: Span | None
    break_even: Span | None


@dataclass(frozen=True)
class Costs:
    """Own hardware when ``users`` streams are kept busy. ``missing``: why figures are absent."""

    users: int
    hourly: Span | None
    uses: tuple[Use, ...]
    marginal: Span | None
    attempt: Span | None
    completed: Span | None
    rivals: tuple[Rival, ...]
    missing: str


@dataclass(frozen=True)
class Plan:
    """A model on a machine."""

    subject: Subject
    machine: Machine
    load: Load
    memory: Footprint
    placement: Placement
    speed: Speed
    shares: Efficiency
    ladder: tuple[Rung, ...]
    depths: tuple[Point, ...]
    users: tuple[Point, ...]
    costs: Costs
    task: Task
    terms: Terms
    waiting: Wait | None
    notes: tuple[str, ...]

    @property
    def scores(self) -> dict[str, float]:
        return scores().get(self.subject.name, {})


def make_plan(subjects: Sequence[Subject], load: Load, setting: Setting) -> Plan:
    """``subjects``: the precisions to choose from, finest first; planned for is the first that fits, else the last."""
    machine, measured = setting.machine, setting.measured
    subject = next((each for each in subjects if place(each, load, machine).fits), subjects[-1])
    placement = place(subject, load, machine)
    kind = "offload" if placement.offloads else machine.kind
    rate = predict(subject, load, machine, measured)
    shares = efficiency(kind, subject.config.moe is not None, measured, subject.bits)
    return Plan(
        subject=subject,
        machine=machine,
        load=load,
        memory=footprint(subject, load),
        placement=placement,
        speed=rate,
        shares=shares,
        ladder=tuple(_rung(each, load, setting) for each in _ladder(subject)),
        depths=tuple(_depths(subject, load, setting)),
        users=tuple(_users(subject, load, setting)),
        costs=_costs(subject, load, setting, rate),
        task=setting.task,
        terms=setting.terms,
        waiting=wait(text_parameters(subject.config), setting.months) if setting.months else None,
        notes=(*_notes(subject, load, machine, placement), *_overlap_note(machine, shares)),
    )


def _ladder(subject: Subject) -> list[Subject]:
    rungs = [at(subject.name, subject.config, precision) for precision in LADDER]
    return rungs if subject.precision in LADDER else [subject, *rungs]


def _rung(subject: Subject, load: Load, setting: Setting) -> Rung:
    placement = place(subject, load, setting.machine)
    one = Load(load.context, 1, load.kv_cache_dtype, load.snapshots, load.pixels)
    decode = predict(subject, one, setting.machine, setting.measured).each if placement.fits else None
    return Rung(subject.precision, subject.weight_bytes, placement.needed, placement.fits, decode)


def _depths(subject: Subject, load: Load, setting: Setting) -> list[Point]:
    points = []
    for depth in DEPTHS:
        asked = Load(depth, 1, load.kv_cache_dtype, 0, load.pixels)
        beyond = depth > max(subject.config.max_positions, LONGEST if subject.config.delta else 0)
        note = "beyond the window" if beyond else ""
        if not note and depth > subject.config.max_positions:
            note = "needs YaRN"
        points.append(Point(depth, predict(subject, asked, setting.machine, setting.measured), note))
    return points


def _users(subject: Subject, load: Load, setting: Setting) -> list[Point]:
    asked = sorted({*USERS, load.sequences})
    loads = [Load(load.context, users, load.kv_cache_dtype, load.snapshots, load.pixels) for users in asked]
    return [Point(each.sequences, predict(subject, each, setting.machine, setting.measured)) for each in loads]


def _costs(subject: Subject, load: Load, setting: Setting, rate: Speed) -> Costs:
    machine, terms, task = setting.machine, setting.terms, setting.task
    full = hourly(machine, terms, 1.0)
    own = own_task(full, rate.total, rate.prefill, task) if full is not None and rate.total is not None else None
    uses = []
    for share in USES if rate.total is not None else ():
        average = per_million(machine, terms, rate.total, share)  # type: ignore[arg-type]
        if average is not None:
            uses.append(Use(share, average))
    rivals = [
        Rival(
            price,
            price.task(task),
            completed(price.task(task), task) if price.model else None,  # another model succeeds at another rate
            break_even(machine, terms, rate.total, price.output) if rate.total is not None else None,
        )
        for price in prices_of(subject.name, setting.prices)
    ]
    unknown = [name for name in ("price_usd", "watts") if machine[name] is None and machine["rent_usd_hour"] is None]
    missing = (
        f"{' and '.join(unknown)} of {machine.title} {'is' if len(unknown) == 1 else 'are'} unknown" if unknown else ""
    )
    if not missing and rate.total is None:
        missing = "; ".join(rate.missing)
    return Costs(
        load.sequences,
        full,
        tuple(uses),
        marginal(machine, terms, rate.total) if rate.total is not None else None,
        own,
        completed(own, task) if own is not None else None,
        tuple(rivals),
        missing,
    )


def _notes(subject: Subject, load: Load, machine: Machine, placement: Placement) -> list[str]:
    config, notes = subject.config, []
    if not load.pixels and config.vision is not None:
        tower, peak = 2 * vision_parameters(config) / 1e9, tower_bytes(config.vision, PICTURE) / 1e9
        notes.append(
            f"Pictures would add {tower:.2f} GB for the vision tower and {peak:.2f} GB for 1344 × 1344 pixels "
            "(--pixels)."
        )
    if config.num_mtp_layers:
        notes.append(f"The MTP head ({predictor_bytes(config) / 1e9:.2f} GB in BF16) is not loaded by this engine.")
    if config.moe is not None:
        notes.append(
            "Experts are counted as if each token chose uniformly and independently; real prompts overlap more, so "
            "batches are a little faster."
        )
    if placement.offloads:
        notes.append(
            f"{1 - placement.fast_experts:.0%} of the experts lie in the slower memory; this engine does not place "
            "them there yet."
        )
    if machine.count > 1:
        notes.append(
            f"The memories and speeds of {machine.count} boards are added up, which tensor parallelism reaches at "
            "best; this engine uses one device."
        )
    if machine.kind in ("gpu", "cloud", "unified"):
        notes.append("Shares of the peak are other engines' on such hardware; this engine's own kernels are for CPUs.")
    if machine.kind in ("gpu", "cloud") and load.sequences > 1:
        notes.append(
            "The share was measured with one sequence; with many it is likely better, by how much no source here tells."
        )
    return notes


def _overlap_note(machine: Machine, shares: Efficiency) -> list[str]:
    if shares.overlap != ANY_OVERLAP or shares.prefill is None or machine["bf16_tflops"] is None:
        return []
    told = "How much of reading passes beside the products nobody measured on such hardware: batches and prompts reckon"
    return [f"{told} with anything from none of it to all."]


def to_json(plan: Plan) -> dict[str, Any]:
    """Everything, with exact numbers."""
    config = plan.subject.config
    return {
        "model": plan.subject.name,
        "precision": plan.subject.precision,
        "source": plan.subject.source,
        "parameters": {
            "total": total_parameters(config),
            "text": text_parameters(config),
            "active": active_parameters(config),
        },
        "scores": plan.scores,
        "machine": asdict(plan.machine),
        "load": asdict(plan.load),
        "memory": {"lines": [asdict(line) for line in plan.memory.lines], "total": plan.memory.total},
        **{name: asdict(getattr(plan, name)) for name in ("placement", "speed", "shares", "costs", "task", "terms")},
        "precisions": [asdict(rung) for rung in plan.ladder],
        "depths": [asdict(point) for point in plan.depths],
        "users": [asdict(point) for point in plan.users],
        "waiting": asdict(plan.waiting) if plan.waiting else None,
        "notes": plan.notes,
    }
