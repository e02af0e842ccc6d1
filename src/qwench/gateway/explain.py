"""A decision in words: every signal, every number, every closed gate, and what came of it. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qwench.gateway.courier import brief
from qwench.gateway.prices import shown
from qwench.gateway.router import Ask, Checked, Decision, Weighed

OPEN = "open options"
LOW, HIGH = 0.05, 0.95  # the interval that is shown


def lines(ask: Ask, decision: Decision, currency: str) -> Iterator[str]:
    signals = ask.signals
    modalities = ", ".join(sorted(signals.modalities))
    limit = "no limit" if signals.limit is None else f"at most {signals.limit} more"
    yield f"request    about {signals.prompt} tokens, {limit}; {modalities}; {_flags(ask)}"
    yield f"data       {decision.data.data}: {decision.data.because}"
    yield f"class      {decision.task.task.name}: {decision.task.because}"
    for name, cosine in decision.task.likeness:
        yield f"             like {name}: {cosine:.3f}"
    if decision.task.shares:
        yield "             " + ", ".join(f"{share:.0%} {task.name}" for task, share in decision.task.shares)
    yield f"value      V = {decision.value:g} {currency} for a completed task"
    yield f"limits     {_limits(ask)}"
    yield ""
    options = [each.option for each in decision.weighed] + [each.option for each in decision.shut]
    width = max(len(name) for name in (OPEN, *(option.name for option in options)))
    head = f"{OPEN:{width}}  p     90 % interval  outcomes  c ({currency})     p·V − c"
    yield head
    for weighed in decision.weighed:
        yield f"{weighed.option.name:{width}}  {_numbers(weighed)}"
    for checked in decision.checked:
        yield _cascade(checked)
    if decision.shut:
        yield ""
        yield "closed"
        for shut in decision.shut:
            yield f"{shut.option.name:{width}}  {shut.gate}: {shut.reason}"
    yield ""
    yield f"decision   {decision.cascade.name if decision.cascade else decision.option.name}: {decision.because}"
    if decision.fallbacks:
        yield f"otherwise  {', '.join(option.name for option in decision.fallbacks)}"


def document(ask: Ask, decision: Decision) -> dict[str, Any]:
    """The same as data."""
    return {
        **brief(decision),
        "signals": {
            "prompt_tokens": ask.signals.prompt,
            "limit": ask.signals.limit,
            "modalities": sorted(ask.signals.modalities),
            "tools": ask.signals.tools,
            "json": ask.signals.json,
            "thinking": ask.signals.asked,
        },
        "class_because": decision.task.because,
        "likeness": dict(decision.task.likeness),
        "shares": {task.name: share for task, share in decision.task.shares},
        "data_because": decision.data.because,
        "closed": {each.option.name: each.reason for each in decision.shut},
        "fallbacks": [option.name for option in decision.fallbacks],
    }


def _flags(ask: Ask) -> str:
    signals = ask.signals
    told = [name for name, there in (("tools", signals.tools), ("JSON wanted", signals.json)) if there]
    thinking = "as the model likes" if signals.asked is None else f"{signals.asked}"
    return ", ".join([*told, f"thinking {thinking}"])


def _limits(ask: Ask) -> str:
    limits = ask.limits
    told = [f"{limits.deadline:g} s"] if limits.deadline is not None else []
    told += [f"{limits.money:g} left in {limits.purse}"] if limits.money is not None else []
    return ", ".join(told) or "none"


def _numbers(weighed: Weighed) -> str:
    chance = weighed.chance
    interval = f"{chance.quantile(LOW):.2f} to {chance.quantile(HIGH):.2f}"
    cost = "unknown" if weighed.cost is None else shown(weighed.cost)
    gain = f"{weighed.gain:+.6f}" if weighed.gain is not None else f"- ({weighed.note})"
    cached = f"  ({weighed.cached} tokens held)" if weighed.cached else ""
    return f"{chance.mean:.2f}  {interval:13}  {chance.seen:8}  {cost:>11}  {gain}{cached}"


def _cascade(checked: Checked) -> str:
    cascade = checked.cascade
    verdict = "pays" if checked.accepted > checked.pays else "does not pay"
    return (
        f"{cascade.name} with the check {cascade.check}: p {checked.chance:.2f}, c {shown(checked.cost)}, "
        f"p·V − c {checked.gain:+.6f}; accepted {checked.accepted:.0%}, needed {checked.pays:.0%}: {verdict}"
    )
