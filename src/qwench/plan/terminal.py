"""Plans in a terminal: tables, colours and bars. Colour only where there is a terminal; nothing is computed here."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from qwench.plan import words
from qwench.plan.choose import Offer, scores
from qwench.plan.document import Plan, Point
from qwench.plan.hardware import Machine
from qwench.plan.memory import Footprint
from qwench.plan.span import Span
from qwench.plan.trends import DENSING
from qwench.plan.wish import Wish

WIDTH = 100
BAR = 26
COLOURS = ("cyan", "blue", "magenta", "green", "yellow", "bright_black", "red", "bright_blue", "bright_magenta")
MARKS = {
    "yes": "[green]yes[/]",
    "perhaps": "[yellow]perhaps[/]",
    "unknown": "[bright_black]unknown[/]",
    "no": "[red]no[/]",
}


def console() -> Console:
    """As wide as the terminal, at most ``WIDTH``; plain text where the output is a file."""
    plain = Console(highlight=False)
    return Console(
        highlight=False,
        width=min(plain.width, WIDTH) if plain.is_terminal else WIDTH,
        no_color="NO_COLOR" in os.environ or None,
    )


def ruled(*columns: str, text: Sequence[int] = (), names: int = 1) -> Table:
    """The first ``names`` columns are names; those at ``text`` are words, which may wrap, the others numbers. Names and
    numbers may not."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        left = index < names or index in text
        table.add_column(column, justify="left" if left else "right", no_wrap=index not in text, overflow="fold")
    return table


def show_table(out: Console, table: Table) -> None:
    """All of it: words wrap, but where numbers and names need more than the width, lines are longer. None is cut."""
    needed = sum(_least(column) + 3 for column in table.columns)  # a space on either side and one for the rule
    usual = out.width
    out.width = max(usual, needed)
    out.print(table)
    out.width = usual


def _least(column: Column) -> int:
    """How narrow a column may be: of one that does not wrap its longest line, else its longest word."""
    texts = [Text.from_markup(str(each)).plain for each in (column.header, *column.cells)]
    pieces = [piece for text in texts for piece in (text.splitlines() if column.no_wrap else text.split())]
    return max(map(cell_len, pieces), default=0)


def show_plan(out: Console, plan: Plan) -> None:
    title = f"{plan.subject.name} at {plan.subject.precision} on {plan.machine.title}"
    out.print(f"[bold]{escape(title)}[/]  [dim]{escape(plan.subject.source)}[/]")
    where = f"{words.size(plan.placement.needed)} needed, {words.size(plan.placement.there)} may be used"
    verdict = "[green]It fits[/]" if plan.placement.fits else "[red]It does not fit[/]"
    asked = f"{plan.load.sequences} × {words.tokens(plan.load.context)} tokens"
    out.print(f"{verdict}: {where} ({asked}).")
    _memory(out, plan.memory)
    _ladder(out, plan)
    if plan.placement.fits:
        _speed(out, plan)
        _costs(out, plan)
    if plan.waiting is not None:
        _waiting(out, plan)
    for note in plan.notes:
        out.print(f"[dim]· {escape(note)}[/]")


def _memory(out: Console, memory: Footprint) -> None:
    widths = [round(BAR * line.bytes / memory.total) for line in memory.lines]
    table = ruled("memory", "GB", "", "of what", text=(2, 3))
    table.columns[2].no_wrap = True
    for index, (line, width) in enumerate(zip(memory.lines, widths, strict=True)):
        colour = COLOURS[index % len(COLOURS)]
        bar = f"[{colour}]{'█' * width or '▏'}[/]"
        table.add_row(line.name, f"{line.bytes / 1e9:.2f}", bar, f"[dim]{escape(line.detail)}[/]")
    table.add_row("[bold]together[/]", f"[bold]{memory.total / 1e9:.2f}[/]", "", "")
    show_table(out, table)


def _ladder(out: Console, plan: Plan) -> None:
    table = ruled("precision", "weights", "together", "fits", "one sequence, tokens/s")
    for rung in plan.ladder:
        chosen = "bold" if rung.precision == plan.subject.precision else ""
        fits = MARKS["yes" if rung.fits else "no"]
        speed = words.span(rung.decode) if rung.fits else ""
        table.add_row(rung.precision, words.size(rung.weights), words.size(rung.total), fits, speed, style=chosen)
    show_table(out, table)


def _speed(out: Console, plan: Plan) -> None:
    depths = ruled("tokens known", "generates, tokens/s", "", "reads a prompt, tokens/s", "", text=(2, 4))
    most = max((point.speed.each.high for point in plan.depths if point.speed.each), default=0.0)
    for point in plan.depths:
        told = "; ".join(each for each in (point.note, _reason(plan, point)) if each)
        depths.add_row(
            words.tokens(point.at),
            _each(plan, point),
            _bar(point, most),
            words.span(point.speed.prefill) if _each(plan, point) else "",
            f"[dim]{escape(told)}[/]",
        )
    show_table(out, depths)
    users = ruled(f"users at {words.tokens(plan.load.context)}", "each, tokens/s", "all, tokens/s", "", text=(3,))
    for point in plan.users:
        told, reason = _each(plan, point), _reason(plan, point)
        users.add_row(f"{point.at}", told, words.span(point.speed.total) if told else "", f"[dim]{escape(reason)}[/]")
    show_table(out, users)
    for source in plan.shares.sources:
        out.print(f"[dim]  share of the peak: {escape(source)}[/]")
    for reason in plan.speed.missing:
        out.print(f"[yellow]  unknown: {escape(reason)}[/]")


def show_machines(out: Console, machines: Sequence[Machine]) -> None:
    table = ruled("name", "GB", "GB/s", "TFLOP/s", "watts", "to buy", "an hour")
    for machine in machines:
        plain = [machine[cell] for cell in ("memory_gb", "bandwidth_gbs", "bf16_tflops", "watts")]
        money = [machine[cell] for cell in ("price_usd", "rent_usd_hour")]
        shown = [words.span(cell) if cell else "" for cell in plain] + [
            words.dollars(cell) if cell else "" for cell in money
        ]
        table.add_row(machine.name, *shown)
    show_table(out, table)
    out.print("[dim]What no source says is left out. `--json` has source and date of every cell.[/]")


def _reason(plan: Plan, point: Point) -> str:
    """Why there is no figure, where that is not so of the whole plan, which tells it once."""
    missing = () if point.speed.each else point.speed.missing
    return next((reason for reason in missing if reason not in plan.speed.missing), "")


def _each(plan: Plan, point: Point) -> str:
    """Nothing where there is a reason to tell instead."""
    return "" if _reason(plan, point) or point.note.startswith("beyond") else words.span(point.speed.each)


def _bar(point: Point, most: float) -> str:
    """Solid to the low end, faint to the high one."""
    if point.speed.each is None or not most or point.note.startswith("beyond"):
        return ""
    low, high = (round(16 * end / most) for end in (point.speed.each.low, point.speed.each.high))
    return f"[green]{'█' * low}[/][green dim]{'░' * (high - low)}[/]"


def _costs(out: Console, plan: Plan) -> None:
    costs = plan.costs
    if costs.hourly is not None and costs.uses:
        terms = plan.terms
        told = f"{terms.years:g} years, {terms.residual:.0%} residual, ${terms.electricity:.2f}/kWh"
        out.print(
            f"\n[bold]Cost[/]  {words.dollars(costs.hourly)} an hour at full use ({told}), {costs.users} streams busy"
        )
        table = ruled("at work", *(f"{use.share:.0%}" for use in costs.uses))
        table.add_row("$ per million generated", *(words.dollars(use.average) for use in costs.uses))
        show_table(out, table)
        out.print(f"One more million while there is slack: {words.slack(costs.marginal)}.")
        out.print(
            f"One attempt ({plan.task.prompt:,} in, {plan.task.answer:,} out; {plan.task.source}): "
            f"{words.dollars(costs.attempt)}" + _completed(costs.completed)
        )
    elif costs.missing:
        out.print(f"\n[bold]Cost[/]  unknown: {escape(costs.missing)}.")
    if costs.rivals:
        table = ruled("others ask", "in / out, $/M", "attempt", "completed", "own wins from", text=(0,))
        for rival in costs.rivals:
            price = rival.price
            told = price.date if price.model else f"another model, {price.date}"
            name = f"{price.offer} [dim]({told})[/]"
            asked = f"{words.dollars(price.input)} / {words.dollars(price.output)}".replace("$", "")
            done = words.dollars(rival.completed) if rival.completed else ""
            table.add_row(name, asked, words.dollars(rival.attempt), done, f"{words.share(rival.break_even)}")
        show_table(out, table)


def _completed(value: Span | None) -> str:
    return f"; per completed task {words.dollars(value)}" if value is not None else ""


def _waiting(out: Console, plan: Plan) -> None:
    waiting = plan.waiting
    assert waiting is not None
    out.print(
        f"\n[bold]Waiting {waiting.months:g} months[/]  the same quality would take {words.span(waiting.fewer)} times "
        "fewer parameters:"
    )
    out.print(
        f"{waiting.parameters.low / 1e9:.3g} to {waiting.parameters.high / 1e9:.3g} billion instead of "
        f"{waiting.parameters.low * waiting.fewer.high / 1e9:.3g}. Hardware keeps its use, a choice of model does not."
    )
    out.print(f"[dim]{escape(DENSING)}[/]")


def show_offers(out: Console, wish: Wish, found: Sequence[Offer], nearest: tuple[str, Offer] | None) -> None:
    rate = f", {wish.rate:g} tokens/s each" if wish.rate else ""
    out.print(f"[bold]{wish.model}[/] for {wish.users} × {words.tokens(wish.context)} tokens{rate}")
    table = ruled("machine", "would do", "at", "$ a month", "why", text=(4,))
    for offer in found:
        month = words.dollars(offer.monthly) if offer.monthly else "[dim]unknown[/]"
        table.add_row(
            offer.machine.name, MARKS[offer.verdict], offer.subject.precision, month, f"[dim]{escape(offer.reason)}[/]"
        )
    show_table(out, table)
    if nearest is not None:
        told, offer = nearest
        out.print(
            f"[red]No machine of the table would do.[/] The nearest that would: {told}, {offer.machine.title} "
            f"({offer.reason})."
        )
    elif not any(offer.verdict == "yes" for offer in found):
        out.print("[red]No machine of the table would do, and nothing near it either.[/]")
    out.print(
        "[dim]A month always on: purchase over three years without a fifth, and power; boards are priced without the "
        "computer around them.[/]"
    )


def show_models(out: Console, machine: Machine, found: Sequence[Offer], context: int) -> None:
    out.print(
        f"[bold]{escape(machine.title)}[/]  {words.size(machine.usable_bytes)} may be used, one sequence of "
        f"{words.tokens(context)} tokens"
    )
    names = ("MMLU-Pro", "GPQA", "LiveCodeBench", "SWE-bench")
    table = ruled("model", "fits", "at", "GB", "tokens/s", *names)
    for offer in found:
        marks = scores().get(offer.subject.name, {})
        shown = [f"{marks[name]:g}" if name in marks else "" for name in names]
        precision = offer.subject.precision if offer.placement.fits else ""
        speed = words.span(offer.speed.each) if offer.placement.fits else ""
        table.add_row(
            offer.subject.name, MARKS[offer.verdict], precision, f"{offer.placement.needed / 1e9:.1f}", speed, *shown
        )
    show_table(out, table)
    out.print(
        "[dim]Scores are the model cards', with thinking, in BF16; fewer bits cost some of it (docs/accuracy.md).[/]"
    )
    for cell, known in machine.cells.items():
        out.print(f"[dim]  {cell} {words.span(known.value)}: {escape(known.source)}, {known.date}[/]")
