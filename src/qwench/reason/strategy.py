"""Strategy: how many thoughts an answer may cost, and what is done with them. Read from a mapping, checked by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal, get_args

from qwench.errors import RequestError
from qwench.reason.answers import ANSWER_KINDS, AnswerKind
from qwench.reason.vote import MAX_VOTES

Method = Literal["vote", "best_of", "forest"]
METHODS: tuple[Method, ...] = get_args(Method)
MAX_BUDGET = 2**31


@dataclass(frozen=True)
class Strategy:
    """``vote``: samples until their leader would stay ahead with ``confidence``; the most confident share ``keep`` of
    them votes. ``best_of``: samples until one passes the check, half of the later ones shown what failed. ``forest``:
    ``samples`` trees that grow ``depth`` steps of ``step`` tokens; as many as there are trees stay alive, each
    branching into ``branches``; their answers vote.

    ``budget`` bounds the tokens of all samples together; None: what ``samples`` answers can come to. ``window`` is the
    stretch of tokens over which confidence is measured; ``answer`` says how answers are compared.
    """

    method: Method = "vote"
    samples: int = 8
    budget: int | None = None
    confidence: float = 0.95
    keep: float = 1.0
    window: int = 64
    answer: AnswerKind = "auto"
    depth: int = 2
    step: int = 64
    branches: int = 2

    def __post_init__(self) -> None:
        for name, known in (("method", METHODS), ("answer", ANSWER_KINDS)):
            if getattr(self, name) not in known:
                raise _wrong(name, getattr(self, name), f"one of {', '.join(known)}")
        whole = {"samples": (1, MAX_VOTES), "window": (1, 1 << 20), "depth": (1, 8), "step": (1, 1 << 20)}
        whole |= {"branches": (1, 4)} | ({} if self.budget is None else {"budget": (1, MAX_BUDGET)})
        for name, (low, high) in whole.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise _wrong(name, value, f"a whole number from {low} to {high}")
        for name, least in (("confidence", 0.5), ("keep", 0.0)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not least < value <= 1:
                raise _wrong(name, value, f"a number above {least:g} and at most 1")
        if self.method == "forest" and self.most_samples() > MAX_VOTES:
            raise _wrong("samples", self.samples, f"fewer trees, steps or branches: {MAX_VOTES} samples at most")

    def most_samples(self) -> int:
        """Generations at most."""
        if self.method != "forest":
            return self.samples
        grown = (self.depth - 1) * self.samples * self.branches
        return self.samples + grown + 2 * self.samples  # begun, grown, ended, corrected

    def at_most(self, limit: int) -> int:
        """Tokens at most, where one answer takes ``limit`` at most."""
        ends = 2 * self.samples if self.method == "forest" else self.samples
        whole = ends * limit + (self.most_samples() - ends) * min(self.step, limit)
        return whole if self.budget is None else min(self.budget, whole)


def read_strategy(given: object, name: str = "reasoning_strategy") -> tuple[Strategy, object]:
    """A strategy and what it says of a check (None: nothing). Raises RequestError naming the field within ``name``."""
    if isinstance(given, str):
        given = {"method": given}
    if not isinstance(given, Mapping):
        raise RequestError(f'{name} should be an object such as {{"method": "vote", "samples": 8}}.', param=name)
    known = [field.name for field in fields(Strategy)]
    values: dict[str, Any] = {str(key): each for key, each in given.items() if each is not None}
    check = values.pop("check", None)
    for key in values:
        if key not in known:
            nearest = get_close_matches(key, [*known, "check"], n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join([*known, 'check'])}."
            raise RequestError(f"{name} has no field {key!r:.60}; {hint}", param=name)
    try:
        strategy = Strategy(**values)
    except RequestError as error:
        raise RequestError(f"{name}.{error.message}", param=f"{name}.{error.param}") from None
    if strategy.method == "best_of" and check is None:
        raise RequestError(f"{name}: best_of needs a check; send check, or use vote.", param=f"{name}.check")
    return strategy, check


def _wrong(field: str, value: object, wanted: str) -> RequestError:
    return RequestError(f"{field} is {value!r:.60}; give {wanted}.", param=field)
