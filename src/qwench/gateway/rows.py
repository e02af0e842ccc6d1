"""Records as rows of the ledger, and back. Knows no connection; what the columns are is in tables.py."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from qwench.gateway.prices import Cost, Price
from qwench.gateway.records import Attempt, Ending, Event, Kind, Outcome, Status, Task
from qwench.gateway.tables import content_hash
from qwench.gateway.usage import Amount, Count, Unknown, Usage

LONGEST = 500  # characters of a label; who names a model in more is not helped by all of them
COUNTS = ("input", "cached", "written", "output", "reasoning")
MEASURES = ("queued", "first", "took")

Row = dict[str, Any]


def label(text: str) -> str:
    """A word of the accounts as every database takes it: valid UTF-8, no NUL, no essay."""
    return _storable(text)[:LONGEST]


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")


def as_json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def task_row(task: Task) -> Row:
    names = {name: label(getattr(task, name)) for name in ("id", "name", "data", "key")}
    return {**names, "value": _real(task.value)}


def attempt_row(task: str, attempt: Attempt, started: float, ending: Ending) -> tuple[Row, list[Row]]:
    """The attempt's row, and those of the texts that are kept of it."""
    unknown: dict[str, str] = {}

    def known(name: str, value: Count | Amount) -> int | float | None:
        if isinstance(value, Unknown):
            unknown[name] = value.value
            return None
        return value if isinstance(value, int) else _real(value)

    texts = [
        {"attempt": attempt.id, "part": label(part), "salt": secrets.token_hex(16), "text": _storable(text)}
        for part, text in sorted(ending.contents.items())
    ]
    words = {name: label(getattr(attempt, name)) for name in ATTEMPT_WORDS}
    row = {
        **words,
        "task": label(task),
        "decision": as_json(attempt.decision),
        "started": _real(started),
        **{name: label(getattr(ending, name)) for name in ENDING_WORDS},
        **{name: _real(getattr(ending, name)) for name in MEASURES},
        **{name: known(name, getattr(ending.usage, name)) for name in COUNTS},
        "reported": _storable(ending.usage.reported),
        **_price(ending.cost.price),
        "amount": known("amount", _float(ending.cost.amount)),
        "marginal": known("marginal", _float(ending.cost.marginal)),
        "currency": label(ending.cost.currency),
        "basis": label(ending.cost.basis),
    }
    row["unknown"] = as_json(unknown)
    row["contents"] = as_json({text["part"]: content_hash(text["salt"], text["text"]) for text in texts})
    return row, texts


ATTEMPT_WORDS = ("id", "parent", "kind", "tier", "provider", "model", "thinking", "recipe")
ENDING_WORDS = ("status", "stop", "error", "engine", "weights")


def outcome_row(outcome: Outcome) -> Row:
    return {name: label(value) for name, value in asdict(outcome).items()}


def event_row(event: Event) -> Row:
    return {"kind": label(event.kind), "task": label(event.task), "detail": as_json(event.detail)}


def pending_record(attempt: Attempt) -> str:
    return as_json(vars(attempt))


def pending_attempt(record: str) -> Attempt:
    """Of ``pending_record``."""
    return Attempt(**json.loads(record))


def read_attempt(row: Mapping[str, Any]) -> tuple[Attempt, float, Ending]:
    """Of ``attempt_row``, without kept texts. Raises KeyError or ValueError where it is no such row."""
    unknown = json.loads(row["unknown"])

    def value(name: str) -> Any:
        return row[name] if row[name] is not None else Unknown(unknown[name])

    attempt = Attempt(
        **{name: str(row[name]) for name in ATTEMPT_WORDS if name != "kind"},
        kind=Kind(row["kind"]),
        decision=json.loads(row["decision"]),
    )
    usage = Usage(**{name: value(name) for name in COUNTS}, reported=row["reported"])
    cost = Cost(value("amount"), value("marginal"), row["currency"], row["basis"], _read_price(row))
    said: dict[str, Any] = {name: row[name] for name in (*ENDING_WORDS, *MEASURES) if name != "status"}
    return attempt, float(row["started"]), Ending(Status(row["status"]), usage, cost, **said)


def _price(price: Price | None) -> Row:
    marginal = price.marginal if price is not None and price.marginal is not None else (None, None)
    return {
        **{f"price_{name}": _real(getattr(price, name, None)) for name in ("input", "cached", "written", "output")},
        "price_marginal_input": _real(marginal[0]),
        "price_marginal_output": _real(marginal[1]),
        "price_over": price.over if price is not None else None,
        "price_source": label(price.source) if price is not None else "",
        "price_date": price.date if price is not None else "",
    }


def _read_price(row: Mapping[str, Any]) -> Price | None:
    if row["price_input"] is None:
        return None
    marginal = (row["price_marginal_input"], row["price_marginal_output"])
    return Price(
        provider=row["provider"],
        model=row["model"],
        currency=row["currency"],
        **{name: row[f"price_{name}"] for name in ("input", "output", "cached", "written", "source", "date", "over")},
        marginal=None if None in marginal else marginal,
    )


def _float(value: Amount) -> Amount:
    return value if isinstance(value, Unknown) else float(value)


def _real(value: float | None) -> float | None:
    """As every database gives it back: no negative zero, nothing that is no number."""
    if value is None:
        return None
    value = float(value) + 0.0
    assert abs(value) < float("inf"), "a ledger holds numbers"
    return value
