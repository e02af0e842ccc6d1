"""A wish in words, such as "35b-a3b at 32k, 8 users, 20 tok/s": every word that says nothing is refused by name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qwench.errors import ModelNotFound, UsageError
from qwench.plan.model import PRECISIONS, published

FILLERS = frozenset("at with for and in on a an each per of under below up to least context tokens the".split())
UNITS = {"": 1, "k": 1024, "m": 1024 * 1024}
EXAMPLE = "'35b-a3b at 32k, 8 users, 20 tok/s, under $5000'"
LOST = re.compile(r"\d*k?(?:/\s*h(?:our)?)?")  # what is left of a price between double quotes, to a shell
NUMBER = r"(\d+(?:\.\d+)?)"
PATTERNS = {
    "rate": rf"{NUMBER}\s*(?:tok(?:ens?)?\s*/\s*s(?:ec(?:ond)?)?|tps|t/s|tokens per second)",
    "users": rf"{NUMBER}\s*(?:users?|streams?|sequences?)",
    "rent": rf"\$\s*{NUMBER}\s*(?:/\s*h(?:our)?|an hour|per hour)",
    "price": rf"\$\s*{NUMBER}\s*(k?)\b",
    "bits": rf"{NUMBER}[\s-]*bits?",
    "context": rf"{NUMBER}\s*([km])\b(?:\s*(?:tokens|context))?",
}


@dataclass(frozen=True)
class Wish:
    """``rate``: tokens per second for each user; ``price`` and ``rent``: most dollars, and dollars an hour."""

    model: str
    context: int = 8192
    users: int = 1
    rate: float = 0.0
    precision: str | None = None
    price: float | None = None
    rent: float | None = None


def read_wish(text: str) -> Wish:
    """Raises UsageError naming the words that say nothing, or ModelNotFound."""
    rest, found = re.sub(rf"{NUMBER}\s*(k?)\s*(?:usd|dollars?)\b", r"$\1\2", text.lower()), {}
    for name, pattern in PATTERNS.items():
        match = re.search(pattern, rest)
        if match:
            found[name] = match.groups()
            rest = f"{rest[: match.start()]} , {rest[match.end() :]}"
    words = [word for word in re.split(r"[\s,;]+", rest) if word and word not in FILLERS]
    precision = next((word for word in words if word in PRECISIONS), None)
    if "bits" in found:
        precision = _precision(found["bits"][0])
    names = [word for word in words if word not in PRECISIONS]
    model = _model(names, text)
    context = _whole(found, "context", 8192, UNITS[found["context"][1]] if "context" in found else 1)
    price = float(found["price"][0]) * (1000 if found["price"][1] else 1) if "price" in found else None
    return Wish(
        model,
        context,
        _whole(found, "users", 1, 1),
        float(found["rate"][0]) if "rate" in found else 0.0,
        precision,
        price,
        float(found["rent"][0]) if "rent" in found else None,
    )


def _whole(found: dict[str, tuple[str, ...]], name: str, otherwise: int, unit: int) -> int:
    value = round(float(found[name][0]) * unit) if name in found else otherwise
    if value < 1:
        raise UsageError(f"--for asks for {value} {name}; give at least 1.", param="for")
    return value


def _precision(bits: str) -> str:
    name = {"16": "bf16"}.get(bits, f"q{bits}")
    if name not in PRECISIONS:
        raise UsageError(f"--for asks for {bits} bits; there are 16, 8, 6, 5, 4, 3 and 2.", param="for")
    return name


def _model(names: list[str], text: str) -> str:
    if not names:
        raise UsageError(f"--for {text!r} names no model; write it like {EXAMPLE}.", param="for")
    for name in names:
        try:
            model = published(name).short_name
        except ModelNotFound:
            continue
        others = [each for each in names if each != name]
        if others and "$" not in text and all(LOST.fullmatch(each) for each in others):
            told = "lost its price: between double quotes a shell reads $5 as a name. Use single quotes, or 5000 USD"
            raise UsageError(f"--for {told}: {EXAMPLE}.", param="for")
        if others:
            raise UsageError(f"--for: {' '.join(others)!r} is not understood; write it like {EXAMPLE}.", param="for")
        return model
    return published(names[0]).short_name  # raises with the nearest names
