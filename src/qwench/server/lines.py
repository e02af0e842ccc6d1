"""The lines of a batch: OpenAI's format for requests and results, every mistake named by its line.

Knows neither where lines come from nor who answers them, and loads nothing heavy: the command line reads it too.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from qwench.errors import RequestError
from qwench.server.depth import is_deep

CHAT, COMPLETIONS, RESPONSES = URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
FIELDS = ("custom_id", "method", "url", "body")


@dataclass(frozen=True)
class Line:
    """One request."""

    number: int
    custom_id: str
    url: str
    body: dict[str, Any]


def parse_line(raw: bytes, number: int) -> dict[str, Any]:
    """A line as a JSON object. Raises RequestError."""
    try:
        record = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RequestError(f"line {number} is not UTF-8 at byte {error.start}; write it in UTF-8.") from None
    except RecursionError:
        raise RequestError(f"line {number} is nested too deeply; write flatter JSON.") from None
    except ValueError as error:
        raise RequestError(f"line {number} is not JSON ({error}); mend that line.") from None
    if not isinstance(record, dict):
        raise RequestError(f"line {number} is not a JSON object; write {{...}}.")
    if is_deep(record):
        raise RequestError(f"line {number} is nested too deeply; write flatter JSON.")
    return record


def custom_id_of(record: Mapping[str, Any], number: int, ids: dict[str, int]) -> str:
    """The line's name, which no line before it may have; ``ids`` are theirs, with their numbers."""
    custom_id = record.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        raise RequestError(f"line {number} has no custom_id; give each line a text of its own.", param="custom_id")
    first = ids.setdefault(custom_id, number)
    if first != number:
        raise RequestError(
            f"line {number} has the custom_id {custom_id!r} of line {first}; give each line its own.", param="custom_id"
        )
    return custom_id


def read_line(record: Mapping[str, Any], custom_id: str, number: int) -> Line:
    """What a line asks. Raises RequestError."""
    for name in record:
        if name not in FIELDS:
            raise RequestError(f"line {number} has the unknown field {name!r}{nearest(name, FIELDS)}", param=name)
    if record.get("method", "POST") != "POST":
        raise RequestError(f"line {number} has the method {record['method']!r}; only POST is possible.", param="method")
    url = record.get("url")
    if url not in URLS:
        raise RequestError(f"line {number} has the url {url!r}{nearest(str(url), URLS)}", param="url")
    body = record.get("body")
    if not isinstance(body, dict):
        raise RequestError(f"line {number} has no body; give the request as a JSON object.", param="body")
    return Line(number, custom_id, url, body)


def whole_body(line: Line) -> dict[str, Any]:
    """The body of a line whose answer comes whole. Raises RequestError."""
    if line.body.get("stream"):
        raise RequestError("stream is true, but a batch has whole answers; leave it out.", param="stream")
    return line.body


def result(custom_id: str, status: int, body: Mapping[str, object]) -> dict[str, object]:
    """What came of a request: the answer it would have had by itself."""
    return _result(custom_id, {"status_code": status, "request_id": f"req_{uuid.uuid4().hex}", "body": body}, None)


def refusal(custom_id: str | None, code: str, message: str) -> dict[str, object]:
    """What came of a line that was never asked."""
    return _result(custom_id, None, {"code": code, "message": message})


def nearest(word: str, known: tuple[str, ...]) -> str:
    found = get_close_matches(word, known, n=1)
    return f"; did you mean {found[0]}?" if found else f"; known are {', '.join(known)}."


def _result(custom_id: str | None, response: object, error: object) -> dict[str, object]:
    return {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id, "response": response, "error": error}
