"""The ledger for other programs: rows as JSON lines, attempts as a table, spans of OpenTelemetry's GenAI conventions.

Accounts only; kept texts stay where they are. Knows no HTTP: a collector takes the spans from a file.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from qwench import __version__
from qwench.gateway import tables
from qwench.gateway.chain import chained
from qwench.gateway.records import Kind, Status

SPANS_AT_ONCE = 500  # of one OTLP document, which is one line
OPERATIONS = {Kind.EMBED: "embeddings", Kind.TOOL: "execute_tool"}  # every other kind is a chat
SPAN_CLIENT, STATUS_ERROR = 3, 2


def json_lines(connection: sa.Connection) -> Iterator[str]:
    """Every row of the chain with its table; what `qwench ledger import` reads and anybody can verify."""
    for table, row in chained(connection):
        yield json.dumps({"table": table, **row}, sort_keys=True)


def comma_separated(connection: sa.Connection) -> Iterator[str]:
    """A line for each attempt, with class and key of its task. An empty number is unknown; ``unknown`` says why."""
    task = tables.TASK.c
    columns = [task.name.label("class"), task.key, task.data, *tables.ATTEMPT.c]
    wanted = sa.select(*columns).join(tables.TASK, task.id == tables.ATTEMPT.c.task, isouter=True)
    rows = connection.execute(wanted.order_by(tables.ATTEMPT.c.seq).execution_options(yield_per=1000))
    line = io.StringIO()
    out = csv.writer(line, lineterminator="")
    for cells in (list(rows.keys()), *rows):
        out.writerow([_cell(cell) for cell in cells])
        yield line.getvalue()
        line.seek(0)
        line.truncate()


def _cell(value: object) -> object:
    """No spreadsheet takes a name for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t") else value


def spans(connection: sa.Connection) -> Iterator[str]:
    """OTLP/JSON, one document a line: a span for each attempt, in the trace of its task."""
    found: list[dict[str, Any]] = []
    names = {row.id: row.name for row in connection.execute(sa.select(tables.TASK.c.id, tables.TASK.c.name))}
    for table, row in chained(connection):
        if table == "attempt":
            found.append(_span(row, names.get(row["task"], "")))
        if len(found) == SPANS_AT_ONCE:
            yield _document(found)
            found = []
    if found:
        yield _document(found)


def _span(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    operation = OPERATIONS.get(Kind(row["kind"]), "chat")
    start = int(row["started"] * 1e9)
    end = start + int((row["took"] or 0.0) * 1e9)
    failed = row["status"] != Status.COMPLETED
    values = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": row["provider"],
        "gen_ai.request.model": row["model"],
        "gen_ai.response.finish_reasons": [row["stop"]] if row["stop"] else None,
        "gen_ai.usage.input_tokens": row["input"],
        "gen_ai.usage.output_tokens": row["output"],
        "gen_ai.usage.cache_read.input_tokens": row["cached"],
        "gen_ai.usage.cache_creation.input_tokens": row["written"],
        "gen_ai.usage.reasoning.output_tokens": row["reasoning"],
        "error.type": (row["error"] or row["status"]) if failed else None,
        # The conventions have no word for these.
        "qwench.kind": row["kind"],
        "qwench.tier": row["tier"],
        "qwench.class": name,
        "qwench.thinking": row["thinking"],
        "qwench.cost.amount": row["amount"],
        "qwench.cost.currency": row["currency"],
        "qwench.cost.source": f"{row['price_source']}, {row['price_date']}" if row["price_source"] else row["basis"],
        "qwench.unknown": row["unknown"] if row["unknown"] != "{}" else None,
    }
    span = {
        "traceId": _hex(row["task"], 32),
        "spanId": _hex(row["id"], 16),
        "name": f"{operation} {row['model']}",
        "kind": SPAN_CLIENT,
        "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(end),
        "attributes": [{"key": name, "value": _value(each)} for name, each in values.items() if each not in (None, "")],
        "status": {"code": STATUS_ERROR} if failed else {},
    }
    return span | ({"parentSpanId": _hex(row["parent"], 16)} if row["parent"] else {})


def _document(found: list[dict[str, Any]]) -> str:
    resource = {"attributes": [{"key": "service.name", "value": _value("qwench-gateway")}]}
    scope = {"scope": {"name": "qwench.gateway", "version": __version__}, "spans": found}
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]})


def _value(value: object) -> dict[str, Any]:
    if isinstance(value, list):
        return {"arrayValue": {"values": [_value(each) for each in value]}}
    if isinstance(value, int):
        return {"intValue": str(value)}
    return {"doubleValue": value} if isinstance(value, float) else {"stringValue": value}


def _hex(name: str, digits: int) -> str:
    """Trace and span ids are hexadecimal; ours are, unless a client named its task itself."""
    if len(name) >= digits and all(digit in "0123456789abcdef" for digit in name[:digits]):
        return name[:digits]
    return tables.content_hash("", name)[:digits]
