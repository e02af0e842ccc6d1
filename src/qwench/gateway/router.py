"""The router: among the options that the gates leave open, the one with the greatest ``p·V − c``.

``p`` is the chance that the task is completed (a posterior over the ledger's outcomes), ``V`` what that is worth, ``c``
what the attempt is expected to cost: the marginal price, with what an upstream still holds of the conversation at its
cached price. Where the class or the outcomes are not known well enough, the operator's default answers. A cascade is
taken only where its check pays for itself. Pure but for its generator: no clock, no network, no file.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatch

from qwench.errors import ModelNotFound
from qwench.gateway.classes import ClassFinding, Classifier
from qwench.gateway.conversations import Held
from qwench.gateway.gates import Closed, DataFinding, Estimate, Limits, closed, refusal
from qwench.gateway.posterior import Beta, Outcomes, mixed
from qwench.gateway.prices import Prices, shown
from qwench.gateway.signals import Signals
from qwench.gateway.tiers import AUTO, Cascade, Option, Settings, TaskClass

MILLION = 1e6


@dataclass(frozen=True)
class Ask:
    """One request as the router sees it. ``model``: what the client named; ``told``: the class it named;
    ``value``: what it says the task is worth; ``at``: seconds since 1970, for prices."""

    signals: Signals
    data: DataFinding
    limits: Limits = field(default_factory=Limits)
    model: str = AUTO
    told: str | None = None
    value: float | None = None
    held: Held = field(default_factory=Held)
    at: float = 0.0


@dataclass(frozen=True)
class Weighed:
    """One open option in numbers. ``gain`` is p·V − c; None where ``note`` says what is missing."""

    option: Option
    chance: Beta
    cost: float | None
    seconds: float | None
    cached: int
    gain: float | None
    note: str = ""


@dataclass(frozen=True)
class Checked:
    """One cascade in numbers. ``pays``: the share of first answers that must be accepted, ``accepted``: that will be.
    ``judge``: the option that checks, where a model does."""

    cascade: Cascade
    chance: float
    cost: float
    gain: float
    accepted: float
    pays: float
    judge: Option | None = None


@dataclass(frozen=True)
class Decision:
    """What is done and why. ``fallbacks``: who answers if it cannot, in this order. ``shadow``: what would have been
    chosen, where the router only looks on."""

    option: Option
    because: str
    task: ClassFinding
    data: DataFinding
    value: float
    weighed: tuple[Weighed, ...]
    checked: tuple[Checked, ...] = ()
    shut: tuple[Closed, ...] = ()
    cascade: Cascade | None = None
    fallbacks: tuple[Option, ...] = ()
    shadow: str = ""


class Router:
    """Decides. ``offline`` closes every tier that is not on this machine."""

    def __init__(
        self, settings: Settings, prices: Prices, outcomes: Outcomes, rng: random.Random, *, offline: bool = False
    ) -> None:
        self._settings, self._prices, self.outcomes, self._rng = settings, prices, outcomes, rng
        self._classifier = Classifier(settings.classes, settings.unknown, settings.routing.likeness)
        self._offline = offline

    def decide(self, ask: Ask, resting: Callable[[Option], bool] = lambda _option: False) -> Decision:
        """Raises ModelNotFound where the client named none of ours, and what ``refusal`` says where nothing is open.

        ``resting``: whether an option's upstream is left alone for now; it is used only where nothing else is open.
        """
        named = self.named(ask.model)
        task = self._class(ask)
        shares = task.shares or ((task.task, 1.0),)
        value = math.fsum(share * each.value for each, share in shares) if ask.value is None else ask.value

        def estimate(option: Option) -> Estimate:
            return self._estimate(option, task.task, ask)

        shut = tuple(closed(named, ask.signals, ask.data, ask.limits, estimate, offline=self._offline))
        barred = {each.option.name for each in shut}
        left = [option for option in named if option.name not in barred]
        if not left:
            raise refusal(shut)
        awake = [option for option in left if not resting(option)] or left
        weighed = tuple(self._weigh(option, shares, ask) for option in awake)
        checked = tuple(self._checked(weighed, value)) if not ask.signals.stream else ()
        best, because, cascade = self._choose(task, value, weighed, checked, ask)
        used, shadow = best, ""
        if self._settings.routing.shadow and ask.model == AUTO:
            shadow = cascade.name if cascade else best.name
            used, cascade = self._default(awake), None
            because = f"the router only looks on; it would take {shadow}: {because}"
        others = tuple(option for option in self._ranked(weighed) if option != used)
        return Decision(
            used, because, task, ask.data, value, weighed, checked, shut, cascade, others, shadow
        )  # fmt: skip

    def named(self, model: str) -> list[Option]:
        """The options a client's ``model`` stands for: all, one, those of a tier, or those with the model."""
        options = list(self._settings.options.values())
        if model == AUTO:
            return options
        found = [option for option in options if option.name == model] or [
            option
            for option in options
            if model in (f"{option.tier.name}/{option.model}", option.tier.name, option.model)
        ]
        meant = [name for pattern, name in self._settings.aliases.items() if fnmatch(model, pattern)]
        if not found and meant:
            return self.named(meant[0])
        if not found:
            known = [AUTO, *self._settings.options]
            near = get_close_matches(model, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"send {AUTO}, or one of {', '.join(known[1:6])}."
            raise ModelNotFound(f"The model {ascii(model)[1:-1][:100]} is not served here; {hint}", param="model")
        return found

    def _class(self, ask: Ask) -> ClassFinding:
        """A conversation whose latest words say nothing is of the class it began with."""
        found = self._classifier.find(ask.signals, ask.told)
        before = self._settings.classes.get(ask.held.task)
        if found.task is self._settings.unknown and before is not None and ask.told is None:
            return ClassFinding(before, "the conversation began so", found.likeness)
        return found

    def _estimate(self, option: Option, task: TaskClass, ask: Ask) -> Estimate:
        seconds = self.outcomes.seconds(task.name, option)
        price = self._prices.find(option.tier.provider, option.model, ask.at, ask.signals.prompt)
        output = self.outcomes.output(task.name, option)
        output = ask.signals.limit if output is None else min(output, ask.signals.limit or output)
        if price is None or output is None or price.currency != self._settings.routing.currency:
            return Estimate(self.outcomes.cost(task.name, option), seconds)
        into, out = price.marginal or (price.input, price.output)
        cached = min(ask.held.cached.get(option.name, 0), ask.signals.prompt)
        kept = into if price.cached is None else min(price.cached, into)
        prompt = (ask.signals.prompt - cached) * into + cached * kept
        return Estimate((prompt + option.samples * output * out) / MILLION, seconds)

    def _weigh(self, option: Option, shares: Sequence[tuple[TaskClass, float]], ask: Ask) -> Weighed:
        """Over the classes that the task may be of, each as far as it is likely."""
        chances = [self.outcomes.posterior(task.name, option) for task, _ in shares]
        expected = [self._estimate(option, task, ask) for task, _ in shares]
        chance = (
            chances[0] if len(shares) == 1 else mixed([(s, each) for (_, s), each in zip(shares, chances, strict=True)])
        )
        costs = [each.cost for each in expected if each.cost is not None]
        cost = None if len(costs) < len(shares) else math.fsum(s * c for (_, s), c in zip(shares, costs, strict=True))
        enough, gain, note = self._settings.routing.enough, None, ""
        if chance.seen < enough:
            note = f"{chance.seen} of the {enough} outcomes it takes"
        elif cost is None:
            note = "its cost is not known"
        else:
            values = [task.value if ask.value is None else ask.value for task, _ in shares]
            worth = (s * each.mean * v for (_, s), each, v in zip(shares, chances, values, strict=True))
            gain = math.fsum(worth) - cost
        return Weighed(option, chance, cost, expected[0].seconds, ask.held.cached.get(option.name, 0), gain, note)

    def _checked(self, weighed: Sequence[Weighed], value: float) -> list[Checked]:
        by_name = {each.option.name: each for each in weighed}
        found = []
        for cascade in self._settings.cascades:
            first, then = by_name.get(cascade.first.name), by_name.get(cascade.then.name)
            if first is None or then is None or first.gain is None or then.gain is None:
                continue
            judge = by_name.get(cascade.check.partition(":")[2]) if cascade.check.startswith("judge:") else None
            if cascade.check.startswith("judge:") and (judge is None or judge.cost is None):
                continue
            found.append(check(cascade, first, then, value, judge))
        return found

    def _choose(
        self, task: ClassFinding, value: float, weighed: Sequence[Weighed], checked: Sequence[Checked], ask: Ask
    ) -> tuple[Option, str, Cascade | None]:
        """The option, the reason, and the cascade it begins."""
        options = [each.option for each in weighed]
        last = next((each for each in weighed if each.option.name == ask.held.last), None)
        if len(options) == 1:
            return options[0], "nothing else is open", None
        if self._rng.random() < self._settings.routing.explore:
            least = min(weighed, key=lambda each: each.chance.seen)
            return least.option, f"to learn about it: {least.chance.seen} outcomes so far", None
        if task.task is self._settings.unknown and not task.shares:
            if last is not None:
                return last.option, "the class is not known, and it has the conversation", None
            return self._default(options), f"the class is not known ({task.because})", None
        known = [each for each in weighed if each.gain is not None]
        if not known:
            if last is not None:
                return last.option, f"too little is known of {task.task.name}, and it has the conversation", None
            return self._default(options), f"too little is known of {task.task.name}", None
        best = max(known, key=lambda each: each.gain or 0.0)
        assert best.gain is not None
        margin = self._settings.routing.stay * value
        if last is not None and last.gain is not None and best.gain - last.gain <= margin and last is not best:
            return (
                last.option,
                f"it has the conversation, and {best.option.name} gains less than {shown(margin)} more",
                None,
            )
        paying = [each for each in checked if each.accepted > each.pays and each.gain > best.gain]
        if paying:
            top = max(paying, key=lambda each: each.gain)
            because = f"its check accepts {top.accepted:.0%}, and pays from {top.pays:.0%} on"
            return top.cascade.first, because, top.cascade
        because = f"{best.chance.mean:.2f} × {value:g} − {shown(best.cost or 0.0)} is the most"
        return best.option, because if best.gain >= 0 else f"{because}, though nothing pays", None

    def _default(self, options: Sequence[Option]) -> Option:
        return self._settings.default if self._settings.default in options else options[0]

    def _ranked(self, weighed: Sequence[Weighed]) -> list[Option]:
        """Who may stand in, the best first: by gain, then the default, then as the file lists them."""

        def place(each: Weighed) -> tuple[bool, float, bool]:
            return each.gain is None, -(each.gain or 0.0), each.option != self._settings.default

        return [each.option for each in sorted(weighed, key=place)]


def check(cascade: Cascade, first: Weighed, then: Weighed, value: float, judge: Weighed | None) -> Checked:
    """A cascade in numbers, on the careful assumption that what the first option can do the second can too: then the
    second adds only where it is better, and wrong answers that the check accepts lose their part of that."""
    assert first.cost is not None
    assert then.cost is not None
    one, two = first.chance.mean, then.chance.mean
    accepted = one * cascade.right + (1 - one) * cascade.wrong
    chance = one + (1 - cascade.wrong) * max(0.0, two - one)
    checking = (judge.cost or 0.0) if judge else 0.0  # of each of the two answers
    cost = first.cost + checking + (1 - accepted) * (then.cost + checking)
    pays = (first.cost + 2 * checking) / (then.cost + checking) if then.cost > 0 else float("inf")
    return Checked(cascade, chance, cost, chance * value - cost, accepted, pays, judge.option if judge else None)
