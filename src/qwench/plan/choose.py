"""Which machines would do for a wish, cheapest first, or the nearest that would; which models a machine runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from qwench.plan.cost import Terms, hourly
from qwench.plan.hardware import Machine
from qwench.plan.here import Calibration
from qwench.plan.memory import Load
from qwench.plan.model import PLAIN, Subject, at, published
from qwench.plan.shapes import SHAPES, Shape
from qwench.plan.span import Span
from qwench.plan.speed import Placement, Speed, place, predict
from qwench.plan.tables import ASSETS, read_table
from qwench.plan.wish import Wish

LADDER = (PLAIN, "q8", "q6", "q5", "q4", "q3", "q2")  # finest first
MONTH = 730  # hours
Verdict = Literal["yes", "perhaps", "unknown", "no"]
ORDER: Mapping[Verdict, int] = {"yes": 0, "perhaps": 1, "unknown": 2, "no": 3}


@dataclass(frozen=True)
class Offer:
    """One machine for one wish: how the model would be kept there, how fast it would be, and why the verdict."""

    machine: Machine
    subject: Subject
    placement: Placement
    speed: Speed
    monthly: Span | None  # dollars, always on
    verdict: Verdict
    reason: str


def offers(
    wish: Wish, machines: Iterable[Machine], terms: Terms, calibration: Calibration | None = None
) -> list[Offer]:
    """Every machine with its verdict; those that would do first, and among them the cheapest."""
    found = [_offer(wish, machine, terms, calibration) for machine in machines]
    return sorted(found, key=lambda each: (ORDER[each.verdict], each.monthly.low if each.monthly else float("inf")))


def _offer(wish: Wish, machine: Machine, terms: Terms, calibration: Calibration | None) -> Offer:
    """The finest precision that fits and is fast enough; else the fastest that fits; else why nothing does."""
    config = published(wish.model).config
    load = Load(wish.context, wish.users)
    wanted = [wish.precision] if wish.precision else LADDER
    measured = calibration if machine.name == "this" and machine.kind == "cpu" else None
    monthly = hourly(machine, terms, 1.0)
    best: Offer | None = None
    dear = _too_dear(wish, machine)
    for precision in wanted:
        subject = at(wish.model, config, precision)
        placement = place(subject, load, machine)
        speed = predict(subject, load, machine, measured)
        verdict, reason = _verdict(wish, subject, placement, speed)
        if dear and placement.fits:
            verdict, reason = "no", dear
        offer = Offer(machine, subject, placement, speed, monthly * MONTH if monthly else None, verdict, reason)
        if best is None or _better(offer, best):
            best = offer
        if verdict == "yes" or (dear and placement.fits):
            break
    assert best is not None
    return best


def _too_dear(wish: Wish, machine: Machine) -> str:
    """Why the machine is beyond the budget; nothing where it is not."""
    price, rent = machine["price_usd"], machine["rent_usd_hour"]
    if wish.price is not None and (price is None or price.low > wish.price):
        if price is None:
            return "for rent, not for sale" if rent is not None else "its price is unknown"
        return f"${price.low:,.0f} is more than ${wish.price:,.0f}"
    if wish.rent is not None and (rent is None or rent.low > wish.rent):
        return "not for rent" if rent is None else f"${rent.low:.2f} an hour is more than ${wish.rent:.2f}"
    return ""


def _better(offer: Offer, than: Offer) -> bool:
    """A better verdict; among machines that are too slow, the faster."""
    if ORDER[offer.verdict] != ORDER[than.verdict]:
        return ORDER[offer.verdict] < ORDER[than.verdict]
    return not than.placement.fits or (offer.verdict == "no" and _high(offer) > _high(than))


def _high(offer: Offer) -> float:
    return offer.speed.each.high if offer.speed.each else 0.0


def _verdict(wish: Wish, subject: Subject, placement: Placement, speed: Speed) -> tuple[Verdict, str]:
    if not placement.fits:
        need, there = placement.needed / 1e9, placement.there / 1e9
        return "no", f"needs {need:,.0f} GB at {subject.precision}, {there:,.0f} GB may be used"
    if not wish.rate:
        return "yes", f"fits at {subject.precision}"
    if speed.each is None:
        return "unknown", "; ".join(speed.missing)
    told = f"{speed.each.low:.0f} to {speed.each.high:.0f} tokens/s each"
    if speed.each.low >= wish.rate:
        return "yes", told
    return ("perhaps", told) if speed.each.high >= wish.rate else ("no", f"{told}, wanted {wish.rate:g}")


def nearest_yes(wish: Wish, machines: Iterable[Machine], terms: Terms) -> tuple[str, Offer] | None:
    """The least that has to be given up for some machine to do, in this order: budget, users, context, speed, model."""
    machines = list(machines)
    for told, easier in _easier(wish):
        found = next((each for each in offers(easier, machines, terms) if each.verdict == "yes"), None)
        if found is not None:
            return told, found
    return None


def _easier(wish: Wish) -> Iterable[tuple[str, Wish]]:
    if wish.price is not None or wish.rent is not None:
        yield "without the limit of the price", replace(wish, price=None, rent=None)
    free = replace(wish, price=None, rent=None)
    if wish.precision is not None:
        yield "with fewer bits", replace(free, precision=None)
    for users in (wish.users // 2, wish.users // 4, 1):
        if 0 < users < wish.users:
            yield f"for {users} users", replace(free, precision=None, users=users)
    for part in (2, 4, 16):
        if wish.context // part >= 1024:
            yield f"with {wish.context // part:,} tokens of context", replace(free, context=wish.context // part)
    for slower in (1.5, 2.0, 4.0):
        if wish.rate:
            yield f"at {wish.rate / slower:.0f} tokens/s each", replace(free, rate=wish.rate / slower)
    smaller = sorted(
        (shape for shape in SHAPES if shape.short_name in scores()), key=lambda each: -quality(each.short_name)
    )
    for shape in smaller:
        if quality(shape.short_name) < quality(wish.model):
            yield f"with {shape.short_name}", replace(free, model=shape.short_name)


@cache
def scores() -> dict[str, dict[str, float]]:
    """Published scores by model."""
    found: dict[str, dict[str, float]] = read_table(ASSETS / "scores.toml").content["score"]
    return found


def quality(model: str) -> float:
    """MMLU-Pro, which every card has; 0 where there is none."""
    return scores().get(model, {}).get("MMLU-Pro", 0.0)


def _finest(shape: Shape, load: Load, machine: Machine) -> tuple[Subject, Placement]:
    """The finest precision that fits, else the coarsest there is."""
    rungs = (at(shape.short_name, shape.config, precision) for precision in LADDER)
    placed = ((subject, place(subject, load, machine)) for subject in rungs)
    last = None
    for last in placed:
        if last[1].fits:
            break
    assert last is not None
    return last


def runs(machine: Machine, load: Load, calibration: Calibration | None = None) -> list[Offer]:
    """Every published model at the finest precision that fits, best scores first; then those that do not fit."""
    measured = calibration if machine.name == "this" and machine.kind == "cpu" else None
    found = []
    for shape in SHAPES:
        subject, placement = _finest(shape, load, machine)
        speed = predict(subject, load, machine, measured)
        need, there = placement.needed / 1e9, placement.there / 1e9
        reason = f"{need:,.1f} of {there:,.1f} GB" if placement.fits else f"needs {need:,.0f} GB at {subject.precision}"
        verdict: Verdict = "yes" if placement.fits else "no"
        found.append(Offer(machine, subject, placement, speed, None, verdict, reason))
    return sorted(found, key=lambda each: (ORDER[each.verdict], -quality(each.subject.name)))
