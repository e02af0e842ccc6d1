"""Logs of other programs, into the ledger and out of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from qwench.errors import UsageError
from qwench.gateway.exports import comma_separated, json_lines, spans
from qwench.gateway.imports import Entry, Setting, read_log
from qwench.gateway.ledger import Ledger
from qwench.gateway.prices import Price, Prices
from qwench.gateway.records import Kind, Outcome, Status, Task
from qwench.gateway.store import connect
from qwench.gateway.usage import Unknown
from tests.gateway.books import NOVEMBER, attempt, checked, ending, fill, rows_of

PRICES = Prices([Price("openai", "gpt-x", 2.0, 10.0, "USD", "its list", "2026-10")])
CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": int(NOVEMBER),
    "model": "gpt-x",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "words of a user"}}],
    "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "completion_tokens_details": {"reasoning_tokens": 40}},
}
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": int(NOVEMBER),
    "model": "gpt-x",
    "output": [],
    "usage": {"input_tokens": 1000, "output_tokens": 100, "input_tokens_details": {"cached_tokens": 10}},
}
BATCH = {"id": "batch_req_1", "custom_id": "mine", "response": {"status_code": 200, "body": CHAT}, "error": None}
REFUSED = {
    "custom_id": "other",
    "response": {
        "status_code": 429,
        "body": {"error": {"message": "key sk-123 is out of quota"}, "model": "gpt-x", "created": 1.7e9},
    },
}
EMBEDDING = {
    "object": "list",
    "model": "gpt-x",
    "created": NOVEMBER,
    "data": [],
    "usage": {"prompt_tokens": 8, "total_tokens": 8},
}
SPEND = {
    "request_id": "chatcmpl-2",
    "call_type": "acompletion",
    "api_key": "88dc28d0f030c55ed4ab77ed8faf098196cb1c05df778539800c9f1243fe6b4b",
    "spend": 0.0125,
    "total_tokens": 30,
    "prompt_tokens": 20,
    "completion_tokens": 10,
    "startTime": "2026-11-01T00:00:00.000Z",
    "endTime": "2026-11-01T00:00:02.500Z",
    "model": "claude-x",
    "custom_llm_provider": "anthropic",
    "session_id": "conversation",
    "messages": {"words": "of a user"},
}
PAYLOAD = {
    "id": "x",
    "trace_id": "conversation",
    "call_type": "completion",
    "status": "success",
    "response_cost": 0.5,
    "prompt_tokens": 20,
    "completion_tokens": 10,
    "startTime": NOVEMBER,
    "endTime": NOVEMBER + 2.0,
    "completionStartTime": NOVEMBER + 0.5,
    "model": "claude-x",
    "custom_llm_provider": "anthropic",
    "metadata": {
        "usage_object": {"prompt_tokens": 20, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 5}}
    },
}


def read(*lines: Any) -> list[Entry]:
    found, wrong = read_log("\n".join(json.dumps(line) for line in lines), "log", Setting(prices=PRICES, name="chat"))
    assert not wrong
    return [entry for entry in found if isinstance(entry, Entry)]


@pytest.mark.parametrize("line", [CHAT, RESPONSE, BATCH, {"request": {"model": "gpt-x"}, "response": CHAT}])
def test_an_answer_of_openais_form_is_an_attempt_at_the_price_of_its_day(line: dict[str, Any]) -> None:
    (entry,) = read(line)
    assert (entry.attempt.provider, entry.attempt.model, entry.started) == ("openai", "gpt-x", NOVEMBER)
    assert (entry.ending.usage.input, entry.ending.usage.output) == (1000, 100)
    assert entry.ending.cost.amount == pytest.approx(0.003)
    assert entry.task.name == "chat"
    assert "words" not in repr(entry)


def test_a_refusal_reached_nobody_and_its_text_stays_outside() -> None:
    (entry,) = read(REFUSED)
    assert (entry.ending.status, entry.ending.error, entry.ending.cost.amount) == (Status.FAILED, "http_429", 0.0)
    assert "sk-123" not in repr(entry)


def test_an_embedding_is_no_generation() -> None:
    (entry,) = read(EMBEDDING)
    assert (entry.attempt.kind, entry.ending.usage.output) == (Kind.EMBED, 0)


def test_litellms_logs_bring_their_cost_and_their_conversations() -> None:
    spend, payload = read(SPEND, PAYLOAD)
    assert (spend.ending.cost.amount, spend.ending.cost.currency, spend.ending.cost.basis) == (0.0125, "USD", "log")
    assert (spend.ending.took, spend.started) == (2.5, NOVEMBER)
    assert (payload.ending.usage.cached, payload.ending.first, payload.ending.took) == (5, 0.5, 2.0)
    assert spend.task.id == payload.task.id
    assert spend.attempt.id != payload.attempt.id
    assert "words" not in repr(spend)
    assert str(SPEND["api_key"]) not in repr(spend)


@pytest.mark.parametrize(
    ("change", "amount"),
    [
        ({"spend": 0.0}, Unknown.NOT_PRICED),  # LiteLLM's zero is a price that it does not know
        ({"spend": 0.0, "cache_hit": "True"}, 0.0),
        ({"spend": 0.0, "status": "failure"}, 0.0),
        ({"spend": None}, Unknown.NOT_REPORTED),
        ({"spend": -1.0}, Unknown.NOT_REPORTED),
        ({"spend": float("nan")}, Unknown.NOT_REPORTED),
    ],
)
def test_a_zero_of_litellm_is_not_believed_where_something_was_made(
    change: dict[str, Any], amount: float | Unknown
) -> None:
    (entry,) = read({**SPEND, **change})
    assert entry.ending.cost.amount == amount


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("nonsense", "log, line 2: is no JSON object."),
        ('{"half": ', "log, line 2: is no JSON object."),
        (
            '{"a": 1}',
            "log, line 2: names no model; OpenAI's and LiteLLM's logs and exports of a ledger are understood.",
        ),
        ('{"model": "m", "usage": {}}', "log, line 2: has no created; prices change, so a call without its time"),
        (
            '{"request_id": 1, "spend": 1, "model": "m", "startTime": "noon"}',
            "log, line 2: has startTime 'noon', which is no time.",
        ),
        ('{"table": "attempt", "id": 1}', "log, line 2: is no row of a ledger"),
    ],
)
def test_a_line_that_is_not_understood_is_named(line: str, sentence: str) -> None:
    found, wrong = read_log(json.dumps(CHAT) + "\n" + line, "log", Setting())
    assert len(found) == 1
    assert wrong[0].startswith(sentence)


def test_an_array_is_read_too_and_an_empty_log_is_told() -> None:
    found, wrong = read_log(json.dumps([CHAT, 5]), "log", Setting())
    assert (len(found), wrong) == (1, ["log, entry 2: is no JSON object."])
    with pytest.raises(UsageError, match="log is empty"):
        read_log("\n", "log", Setting())
    with pytest.raises(UsageError, match="as a whole: is no JSON"):
        read_log("[", "log", Setting())


def test_reading_a_log_twice_adds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    found, _ = read_log("\n".join(map(json.dumps, (CHAT, SPEND, PAYLOAD))), "log", Setting(prices=PRICES))
    with Ledger.open(str(path)) as ledger:
        assert ledger.take(found, "log") == (3, 0)
        assert ledger.take(found, "log") == (0, 3)
        assert ledger.spent().amounts["USD"] == pytest.approx(0.5155)
    assert rows_of(path, "SELECT count(*) FROM attempt") == [(3,)]
    assert checked(path).whole


def lines(path: Path, write: Any) -> list[str]:
    store = connect(str(path), make=False)
    try:
        with store.reading() as connection:
            return list(write(connection))
    finally:
        store.close()


def test_an_export_is_another_ledgers_import(tmp_path: Path) -> None:
    one, other = tmp_path / "one.db", tmp_path / "other.db"
    fill(one)
    found, wrong = read_log("\n".join(lines(one, json_lines)), "export", Setting())
    assert not wrong
    with Ledger.open(str(other)) as ledger:
        assert ledger.take(found, "export") == (9 + 3, 0)
        assert ledger.take(found, "export") == (0, 9 + 3)
    columns = "id, task, kind, status, started, took, input, cached, amount, unknown, price_over, decision"
    for query in (
        f"SELECT {columns} FROM attempt ORDER BY id",
        "SELECT id, name, key FROM task ORDER BY id",
        "SELECT task, verdict FROM outcome ORDER BY task",
    ):
        assert rows_of(one, query) == rows_of(other, query)
    assert any(isinstance(each, Outcome) for each in found)


def test_a_table_of_attempts_has_empty_cells_for_unknowns_and_no_formulas(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger.open(str(path)) as ledger:
        ledger.record(Task(name="=1+1"), attempt(), ending(Unknown.NOT_PRICED))
    (row,) = csv.DictReader(lines(path, comma_separated))
    assert (row["class"], row["amount"], row["input"]) == ("'=1+1", "", "1000")
    assert json.loads(row["unknown"])["amount"] == "not priced"


def test_spans_are_of_the_genai_conventions(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    fill(path, 1)
    with Ledger.open(str(path)) as ledger:
        ledger.record(Task("ab" * 16), attempt(id="cd" * 16), ending(0.5), started=NOVEMBER).result()
    (document,) = map(json.loads, lines(path, spans))
    found = document["resourceSpans"][0]["scopeSpans"][0]["spans"]
    told = [{each["key"]: next(iter(each["value"].values())) for each in span["attributes"]} for span in found]
    assert len(found) == 4
    last, said = found[-1], told[-1]
    assert (last["traceId"], last["spanId"], last["name"]) == ("ab" * 16, "cd" * 8, "chat big")
    assert int(last["endTimeUnixNano"]) - int(last["startTimeUnixNano"]) == 1_500_000_000
    assert last["startTimeUnixNano"] == str(int(NOVEMBER)) + "0" * 9
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.cache_read.input_tokens"]) == ("1000", "100")
    assert (said["gen_ai.provider.name"], said["qwench.cost.amount"], said["qwench.cost.currency"]) == (
        "shop",
        0.5,
        "USD",
    )
    failed = told[0]
    assert failed["error.type"] == "half_a_stream"
    assert "qwench.cost.amount" not in failed
    assert len({span["traceId"] for span in found[:3]}) == 1
    assert found[1]["parentSpanId"] == found[0]["spanId"]
    assert all(len(span["traceId"]) == 32 and len(span["spanId"]) == 16 for span in found)
    assert "What is" not in json.dumps(document)
