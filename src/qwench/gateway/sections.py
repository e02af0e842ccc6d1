"""One section of the gateway's TOML file, read key by key; a mistake is told with file, line, key and what to write.

Knows no key by itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

from qwench.errors import UsageError
from qwench.plan.tables import Table

Value = TypeVar("Value")
SHOWN = 60  # characters of a wrong value that a sentence repeats


class Section:
    """The keys of one table named ``place`` as it stands in the file; the ``index``-th of that name."""

    def __init__(self, table: Table, values: object, place: str, index: int = 0) -> None:
        self.table, self.place, self.index = table, place, index
        if not isinstance(values, Mapping):
            head, _, key = place.rpartition(".")
            raise table.error(head, key, f"is {_shown(values)}; it must be a table, [{place}]")
        self.values: Mapping[str, Any] = values

    def error(self, key: str, reason: str) -> UsageError:
        return self.table.error(self.place, key, reason, self.index)

    def only(self, *known: str) -> None:
        """Raises UsageError at a key that is not among ``known``."""
        self.table.only(self.values, known, self.place, self.index)

    def wrong(self, key: str, wanted: str) -> UsageError:
        value = self.values.get(key)
        return self.error(key, f"is missing; give {wanted}" if value is None else f"is {_shown(value)}; give {wanted}")

    def text(self, key: str, default: str | None = None, wanted: str = "a text") -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(key, wanted)
        return value

    def maybe_text(self, key: str, wanted: str = "a text") -> str | None:
        return self.text(key, wanted=wanted) if key in self.values else None

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def number(self, key: str, default: float, low: float = 0.0, high: float = math.inf) -> float:
        """From ``low`` to ``high``."""
        value = self.maybe_number(key, low, high)
        return default if value is None else value

    def maybe_number(self, key: str, low: float = 0.0, high: float = math.inf) -> float | None:
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.wrong(key, f"a number from {low:g}" + (f" to {high:g}" if high < math.inf else " on"))
        return float(value)

    def maybe_whole(self, key: str, low: int = 1, high: int = 2**31 - 1) -> int | None:
        value = self.values.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high):
            raise self.wrong(key, f"a whole number from {low} to {high}")
        return value

    def one_of(self, key: str, known: Mapping[str, Value], default: str | None = None) -> Value:
        value = self.values.get(key, default)
        if not isinstance(value, str) or value not in known:
            raise self.wrong(key, f"one of {', '.join(known)}{_nearest(value, known)}")
        return known[value]

    def some_of(self, key: str, known: Mapping[str, Value], default: Sequence[str] | None = None) -> tuple[Value, ...]:
        """The values of a list of names, each of which is ``known``."""
        names = self.values.get(key, default)
        listed = isinstance(names, Sequence) and not isinstance(names, str) and all(isinstance(n, str) for n in names)
        if names is None or not listed:
            raise self.wrong(key, f"a list of some of {', '.join(known)}")
        for name in names:
            if name not in known:
                raise self.error(key, f"holds {_shown(name)}; known are {', '.join(known)}{_nearest(name, known)}")
        return tuple(known[name] for name in names)

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(each, str) and each.strip() for each in value):
            raise self.wrong(key, "a list of texts")
        return tuple(value)

    def pattern(self, key: str) -> re.Pattern[str] | None:
        """A regular expression that is searched for, in upper and lower case alike."""
        told = self.maybe_text(key, "a regular expression")
        if told is None:
            return None
        try:
            return re.compile(told, re.IGNORECASE)
        except re.error as error:
            raise self.error(key, f"is no regular expression: {error}") from None


def sections(table: Table, name: str) -> Iterator[Section]:
    """Every ``[[name]]`` of the file."""
    found = table.content.get(name, [])
    if not isinstance(found, list):
        raise table.error("", name, f"is {_shown(found)}; write [[{name}]] over each of them")
    for index, values in enumerate(found):
        yield Section(table, values, name, index)


def named_sections(table: Table, name: str) -> Iterator[tuple[str, Section]]:
    """Every ``[name.X]`` of the file, with X."""
    found = table.content.get(name, {})
    if not isinstance(found, Mapping):
        raise table.error("", name, f"is {_shown(found)}; write [{name}.NAME] over each of them")
    for key, values in found.items():
        yield key, Section(table, values, f"{name}.{key}")


def _shown(value: object) -> str:
    told = ascii(value)
    return told if len(told) <= SHOWN else f"{told[: SHOWN - 3]}..."


def _nearest(value: object, known: Iterable[str]) -> str:
    near = get_close_matches(str(value), list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
