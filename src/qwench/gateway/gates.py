"""What may not happen, whatever it would be worth: data class, modality, context, deadline, budget, offline.

Every gate stands before the router and fails closed: what is not known to be allowed is not done, and the reason names
what is missing. Pure: settings and signals in, reasons out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from qwench.errors import QwenchError, RequestError
from qwench.gateway.signals import Signals
from qwench.gateway.tiers import DATA, DataClass, DataRule, Option, Settings


class NothingAllowed(QwenchError):
    """The gates close every option there is."""

    status, type, code = 403, "invalid_request_error", "no_tier_allowed"


class BudgetExhausted(QwenchError):
    """Only money stands between the request and an option."""

    status, type, code = 402, "insufficient_quota", "budget_exhausted"


@dataclass(frozen=True)
class DataFinding:
    """The class a request's data has, and who said so."""

    data: DataClass
    because: str


@dataclass(frozen=True)
class Limits:
    """What a request may take: seconds, and money (None: nobody set a limit). ``purse`` says whose budget it is."""

    deadline: float | None = None
    money: float | None = None
    purse: str = ""


@dataclass(frozen=True)
class Estimate:
    """What an option is expected to take; None is unknown."""

    cost: float | None
    seconds: float | None


@dataclass(frozen=True)
class Closed:
    """An option that may not be used, and the first gate that says so: data, offline, modality, thinking and so on."""

    option: Option
    gate: str
    reason: str


def data_class(settings: Settings, owner: str, told: str | None, text: str) -> DataFinding:
    """The strictest of what the key, the header and the rules say; what nobody says anything of has the default.

    Raises RequestError if the header names no class.
    """
    found: list[DataFinding] = []
    if told is not None:
        if told.strip().lower() not in DATA:
            named = ", ".join(DATA)
            raise RequestError(f"x-qwench-data is {ascii(told)[:60]}; send one of {named}.", param="x-qwench-data")
        found.append(DataFinding(DATA[told.strip().lower()], "the header says so"))
    key = settings.owners.get(owner)
    if key is not None and key.data is not None:
        found.append(DataFinding(key.data, f"the key {owner} is for it"))
    if not found:
        found.append(DataFinding(settings.data, "nobody said what it is"))
    found += [_by_rule(rule) for rule in settings.rules if rule.pattern.search(text)]
    return max(found, key=lambda finding: finding.data)


def _by_rule(rule: DataRule) -> DataFinding:
    return DataFinding(rule.data, f"the rule {rule.name} found something")


def closed(
    options: Iterable[Option],
    signals: Signals,
    data: DataFinding,
    limits: Limits,
    estimate: Callable[[Option], Estimate],
    *,
    offline: bool,
) -> Iterator[Closed]:
    """The options that may not be used, each with the first reason against it."""
    for option in options:
        reasons = _reasons(option, signals, data, limits, estimate, offline=offline)
        first = next(reasons, None)
        if first is not None:
            yield Closed(option, *first)


def _reasons(
    option: Option,
    signals: Signals,
    data: DataFinding,
    limits: Limits,
    estimate: Callable[[Option], Estimate],
    *,
    offline: bool,
) -> Iterator[tuple[str, str]]:
    tier = option.tier
    if data.data not in tier.data:
        yield "data", f"{tier.name} may not see {data.data} data, and {data.because}"
    if offline and not tier.local:
        yield "offline", f"{tier.name} is not on this machine"
    missing = sorted(signals.modalities - option.modalities)
    if missing:
        yield "modality", f"{option.model} takes no {' and no '.join(missing)}"
    if signals.asked is not None and option.thinking != "" and (option.thinking == "off") != (signals.asked == "off"):
        yield "thinking", f"the request wants thinking {'off' if signals.asked == 'off' else 'on'}"
    if signals.narrow and tier.kind == "anthropic":
        yield "dialect", f"it speaks Anthropic's dialect, which has no {' and no '.join(signals.narrow)}"
    needed = signals.prompt + (signals.limit or 0)
    if option.context is not None and needed > option.context:
        yield "context", f"about {needed} tokens do not fit its {option.context}"
    if limits.deadline is None and limits.money is None:
        return
    expected = estimate(option)
    if limits.deadline is not None:
        if expected.seconds is None:
            yield "deadline", "how long it takes is not known; give its model seconds"
        elif expected.seconds > limits.deadline:
            yield "deadline", f"it takes about {expected.seconds:.1f} s, and {limits.deadline:g} s are left"
    if limits.money is not None:
        if expected.cost is None:
            yield "budget", f"what it costs is not known, and {limits.purse} has a limit"
        elif expected.cost > limits.money:
            yield "budget", f"about {expected.cost:.6f} is more than {limits.purse} has left ({limits.money:.6f})"


def refusal(shut: Iterable[Closed]) -> QwenchError:
    """The sentence for a client none of whose options is open."""
    shut = list(shut)
    told = "; ".join(f"{each.option.name}: {each.reason}" for each in shut[:6])
    if any(each.gate == "budget" for each in shut):
        return BudgetExhausted(f"No tier within the budget may answer this. {told}.")
    return NothingAllowed(f"No tier may answer this. {told}.")
