"""A plan as one HTML page with charts: no script, nothing from elsewhere. Every number is the plan's."""

from __future__ import annotations

from html import escape

from qwench import __version__
from qwench.plan import words
from qwench.plan.charts import Series, bands, stack
from qwench.plan.document import Plan
from qwench.plan.sheet import sheet, table
from qwench.plan.trends import DENSING


def page(plan: Plan) -> str:
    title = f"{plan.subject.name} at {plan.subject.precision} on {plan.machine.title}"
    verdict = '<span class="yes">It fits</span>' if plan.placement.fits else '<span class="no">It does not fit</span>'
    needed = f"{words.size(plan.placement.needed)} needed, {words.size(plan.placement.there)} may be used"
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{verdict}: {needed} for {plan.load.sequences} × {words.tokens(plan.load.context)} tokens.</p>",
        *_memory(plan),
        *(_speed(plan) if plan.placement.fits else ()),
        *(_costs(plan) if plan.placement.fits else ()),
        *_waiting(plan),
        *_sources(plan),
    ]
    return sheet(title, body)


def _memory(plan: Plan) -> list[str]:
    parts = [(line.name, line.bytes) for line in plan.memory.lines]
    rungs = [
        (
            rung.precision,
            words.size(rung.weights),
            words.size(rung.total),
            "yes" if rung.fits else "no",
            words.span(rung.decode) if rung.fits else "",
        )
        for rung in plan.ladder
    ]
    return [
        "<h2>Memory</h2>",
        stack(parts, plan.placement.there, words.GB, "GB"),
        table(
            ("of what", "bytes"),
            ((f"{line.name}: {line.detail}", words.size(line.bytes)) for line in plan.memory.lines),
        ),
        "<h2>Precisions</h2>",
        table(("precision", "weights", "together", "fits", "one sequence, tokens/s"), rungs),
    ]


def _speed(plan: Plan) -> list[str]:
    points = [point for point in plan.depths if point.speed.each and not point.note.startswith("beyond")]
    generated = Series("generates, tokens/s", [(point.at, point.speed.each) for point in points if point.speed.each])
    read = Series(
        "reads a prompt, tokens/s", [(point.at, point.speed.prefill) for point in points if point.speed.prefill]
    )
    ticks = [(float(point.at), words.tokens(point.at)) for point in plan.depths]
    users = [point for point in plan.users if point.speed.total]
    each = Series("each", [(point.at, point.speed.each) for point in users if point.speed.each])
    total = Series("all together", [(point.at, point.speed.total) for point in users if point.speed.total])
    return [
        "<h2>Speed over depth</h2>",
        bands([generated], "tokens known", "tokens per second", ticks),
        bands([read], "tokens of the prompt", "tokens per second", ticks)
        if read.points
        else "<p>Reading prompts: unknown.</p>",
        f"<h2>Speed over users, {words.tokens(plan.load.context)} tokens each</h2>",
        bands(
            [each, total],
            "users",
            "tokens per second",
            [(float(point.at), str(point.at)) for point in plan.users],
            log_y=True,
        ),
    ]


def _costs(plan: Plan) -> list[str]:
    costs = plan.costs
    if costs.hourly is None or not costs.uses:
        return ["<h2>Cost</h2>", f"<p>Unknown: {escape(costs.missing)}.</p>"]
    uses = sorted(costs.uses, key=lambda use: use.share)
    own = Series("own, average", [(use.share, use.average) for use in uses])
    others = [
        Series(f"{rival.price.offer}, {rival.price.date}", [(use.share, rival.price.output) for use in uses])
        for rival in costs.rivals
    ]
    ticks = [(use.share, f"{use.share:.0%}") for use in uses]
    rows = [
        (
            f"{rival.price.offer} ({rival.price.date}; {rival.price.source})",
            words.dollars(rival.price.output),
            words.dollars(rival.attempt),
            words.dollars(rival.completed) if rival.completed else "",
            words.share(rival.break_even),
        )
        for rival in costs.rivals
    ]
    attempt = words.dollars(costs.attempt)
    done = f"; per completed task {words.dollars(costs.completed)}" if costs.completed else ""
    told = (
        f"{words.dollars(costs.hourly)} an hour at full use, {costs.users} streams busy. One more million while there "
        f"is slack: {words.slack(costs.marginal)}. One attempt ({plan.task.prompt:,} in, {plan.task.answer:,} "
        f"out): {attempt}{done}."
    )
    return [
        "<h2>Cost of a million generated tokens over use</h2>",
        f"<p>{told}</p>",
        bands([own, *others], "share of the time at work", "dollars per million", ticks, log_y=True),
        table(("others ask", "out per million", "one attempt", "per completed", "own is cheaper from"), rows)
        if rows
        else "",
    ]


def _waiting(plan: Plan) -> list[str]:
    waiting = plan.waiting
    if waiting is None:
        return []
    fewer, parameters = words.span(waiting.fewer), waiting.parameters
    told = (
        f"After {waiting.months:g} months the same quality would take {fewer} times fewer parameters "
        f"({parameters.low / 1e9:.3g} to {parameters.high / 1e9:.3g} billion)."
    )
    return ["<h2>Wait or buy</h2>", f"<p>{told}</p>", f"<p><small>{escape(DENSING)}</small></p>"]


def _sources(plan: Plan) -> list[str]:
    cells = [(name, words.span(cell.value), f"{cell.source}, {cell.date}") for name, cell in plan.machine.cells.items()]
    notes = [
        f"<li>{escape(note)}</li>"
        for note in (*plan.notes, *(f"Share of the peak: {each}." for each in plan.shares.sources))
    ]
    return [
        "<h2>Where the figures come from</h2>",
        table(("figure", "value", "source"), cells),
        f"<ul>{''.join(notes)}</ul>",
        f"<p><small>qwench {__version__}; weights: {escape(plan.subject.source)}.</small></p>",
    ]
