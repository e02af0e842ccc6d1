"""TOML tables read strictly: whoever wrote one is told file, line and key of a mistake, and the nearest right key."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from qwench.errors import UsageError
from qwench.plan.span import Span

HEADING = re.compile(r"\s*\[[^\]]*\]\]?\s*(#.*)?$")
ASSETS = Path(__file__).resolve().parent.parent / "assets" / "plan"


@dataclass(frozen=True)
class Table:
    """One file: its text for finding lines, its content for reading."""

    path: Path
    text: str
    content: Mapping[str, Any]

    def error(self, place: str, key: str, reason: str, index: int = 0) -> UsageError:
        """A sentence about ``key`` in the ``index``-th table named ``place``."""
        line = self._line(place, key, index)
        where = f"{self.path}, line {line}" if line else str(self.path)
        told = f"{where}: {place}.{key} {reason}" if place else f"{where}: {key} {reason}"
        return UsageError(told if told.endswith("?") else f"{told}.", param=key)

    def only(self, row: Mapping[str, Any], known: Iterable[str], place: str, index: int = 0) -> None:
        """Raises UsageError at the first key of ``row`` that is not ``known``."""
        known = list(known)
        for key in row:
            if key not in known:
                near = get_close_matches(key, known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
                raise self.error(place, key, f"is not known; {hint}", index)

    def _line(self, place: str, key: str, index: int) -> int | None:
        """Where ``key`` stands in its table, or where that begins if it does not have it."""
        lines = self.text.splitlines()
        heading = re.compile(rf"\s*\[\[?\s*{re.escape(place)}\s*\]\]?")
        starts = [number for number, line in enumerate(lines) if heading.match(line)] if place else []
        first, last = starts[index] if index < len(starts) else 0, len(lines)
        if index < len(starts):
            last = next((number for number in range(first + 1, last) if HEADING.match(lines[number])), last)
        found = re.compile(rf"\s*\"?{re.escape(key)}\"?\s*=|\s*\[+\s*{re.escape(key)}\s*\]")
        begun = first + 1 if index < len(starts) else None
        return next((number + 1 for number in range(first, last) if found.match(lines[number])), begun)


def read_table(path: Path) -> Table:
    """Raises UsageError where the file is missing or is no TOML."""
    try:
        text = path.read_text(encoding="utf-8")
        return Table(path, text, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        told = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", str(error))
        reason = told.group(1) if told else str(error)
        line = f", line {told.group(2)}" if told and told.group(2) else ", at its end"
        raise UsageError(f"{path}{line}: {reason[0].lower()}{reason[1:]}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text; save it so.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {str(error.strerror).lower()}.") from None


def span_of(value: object) -> Span | None:
    """A number, or a pair of them, low before high; None for anything else."""
    ends: list[Any] = value if isinstance(value, list) else [value, value]
    if len(ends) != 2 or not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends):
        return None
    low, high = (float(end) for end in ends)
    return Span(low, high) if 0 <= low <= high < float("inf") else None
