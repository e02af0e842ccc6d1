"""What an answer says, in a form in which two answers can be compared: marked, or a number, or JSON, or its text.

Pure. Two answers with the same key count as one opinion; None is no opinion. Rather two keys for one meaning than one
key for two meanings: the first costs a vote, the second changes the answer.
"""

from __future__ import annotations

import json
import re
from fractions import Fraction
from typing import Literal, get_args

AnswerKind = Literal["auto", "number", "json", "text"]
ANSWER_KINDS: tuple[AnswerKind, ...] = get_args(AnswerKind)
MAX_DIGITS = 400  # a longer number is text

NUMBER = re.compile(r"[-−+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?")
MARKS = re.compile(
    r"(?:####|\b(?:final )?answer(?: is)?\s*:|\b(?:the )?(?:final )?answer is)\s*(.+?)\s*$",
    re.IGNORECASE | re.MULTILINE,
)
AROUND = " \t\n*_`\"'$=.!"


def answer_key(text: str, kind: AnswerKind = "auto") -> str | None:
    """The opinion in ``text``. ``number`` takes the last one in it; ``json`` the whole text; ``auto`` a marked answer
    (a box, "the answer is", ####), else JSON, else a lone number, else the words."""
    if kind == "number":
        found = NUMBER.findall(text)
        return as_number(found[-1]) if found else None
    if kind == "json":
        return as_json(text)
    if kind == "auto":
        marked = marked_answer(text)
        text = text if marked is None else marked
        return as_json(text, compound=True) or as_number(text.strip(AROUND)) or as_words(text)
    return as_words(text)


def marked_answer(text: str) -> str | None:
    """What ``text`` itself calls its answer; the last such place counts."""
    start = text.rfind("\\boxed{")
    if start >= 0:
        depth, begin = 1, start + len("\\boxed{")
        for at in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if not depth:
                return text[begin:at]
    marks = MARKS.findall(text)
    return str(marks[-1]) if marks else None


def as_number(text: str) -> str | None:
    """``text`` as an exact number, if it is nothing but one: "1,200", "1200.0" and "2400/2" are the same."""
    if len(text) > MAX_DIGITS or not NUMBER.fullmatch(text):
        return None
    try:
        return str(Fraction(text.replace(",", "").replace("−", "-").lstrip("+")))
    except (ValueError, ZeroDivisionError):  # a decimal over a whole number, or over zero
        return None


def as_json(text: str, *, compound: bool = False) -> str | None:
    """``text`` as JSON with sorted keys, if it is JSON; with ``compound`` only objects and lists count."""
    if compound and text.strip()[:1] not in {"{", "["}:
        return None
    try:
        return json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    except (ValueError, RecursionError):
        return None


def as_words(text: str) -> str | None:
    """``text`` without case, spacing and what surrounds it."""
    return " ".join(text.split()).strip(AROUND).casefold() or None
