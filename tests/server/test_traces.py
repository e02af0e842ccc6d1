"""Traces: the conventions' names, no words unless asked, the caller's trace, and a real collector on this machine."""

from __future__ import annotations

import gzip
import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import SpanKind, StatusCode

from qwench.engine.request import TokenEvent
from qwench.errors import UsageError
from qwench.server.traces import CONTENT, ENDPOINTS, Traces, read_traces
from tests.server.conftest import NAME, Start, wait_until
from tests.server.scripted import ScriptedEngine, answering

CHAT = "/v1/chat/completions"
SECRET = "the password is swordfish"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": SECRET}], "temperature": 0.5, "seed": 3, "stop": ["x"]}
# Younger than the newest package of the conventions.
NEW = {"gen_ai.response.time_to_first_chunk", "gen_ai.usage.reasoning.output_tokens"}


class Watched:
    """Traces into memory."""

    def __init__(self, *, content: bool = False) -> None:
        self._exporter = InMemorySpanExporter()
        self.traces = Traces(SimpleSpanProcessor(self._exporter), NAME, content=content)

    def span(self) -> ReadableSpan:
        wait_until(lambda: bool(self._exporter.get_finished_spans()))
        (span,) = self._exporter.get_finished_spans()
        return span


def test_an_answer_is_a_span_with_the_conventions_names(scripted: Start) -> None:
    watched = Watched()
    _, http = scripted(answering("so</think>\n\nYes."), watches=(watched.traces.note,))
    answer = http.post(CHAT, json={**BODY, "enable_thinking": True, "max_tokens": 64}).json()
    span = watched.span()
    told: dict[str, Any] = dict(span.attributes or {})
    assert (span.name, span.kind, span.status.status_code) == (f"chat {NAME}", SpanKind.SERVER, StatusCode.UNSET)
    usage = answer["usage"]
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "qwench",
        "gen_ai.request.model": NAME,
        "gen_ai.response.model": NAME,
        "gen_ai.response.id": answer["id"],
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.output.type": "text",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 3,
        "gen_ai.request.stop_sequences": ("x",),
        "gen_ai.request.max_tokens": 64,
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.reasoning.output_tokens": usage["completion_tokens_details"]["reasoning_tokens"],
        **{
            name: told[name]
            for name in told
            if name.startswith("gen_ai.request.") and name.endswith(("_p", "_k", "_penalty"))
        },
        "gen_ai.response.time_to_first_chunk": told["gen_ai.response.time_to_first_chunk"],
    }
    known = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")} | NEW
    assert {name for name in told if name.startswith("gen_ai.")} <= known
    assert span.start_time is not None
    assert span.end_time is not None
    assert 0 < told["gen_ai.response.time_to_first_chunk"] * 1e9 <= span.end_time - span.start_time
    assert span.resource.attributes["service.name"] == "qwench"


def test_no_words_are_told_unless_asked_for(scripted: Start) -> None:
    quiet, open_ = Watched(), Watched(content=True)
    _, http = scripted(answering("It is marmalade."), watches=(quiet.traces.note, open_.traces.note))
    assert http.post(CHAT, json=BODY).status_code == 200
    told = json.dumps(
        [dict(quiet.span().attributes or {}), quiet.span().name, [event.name for event in quiet.span().events]]
    )
    assert "swordfish" not in told
    assert "marmalade" not in told
    attributes = dict(open_.span().attributes or {})
    asked, said = (json.loads(str(attributes[f"gen_ai.{way}.messages"])) for way in ("input", "output"))
    assert SECRET in asked[0]["parts"][0]["content"]
    assert said == [
        {"role": "assistant", "parts": [{"type": "text", "content": "It is marmalade."}], "finish_reason": "stop"}
    ]


def test_a_span_belongs_to_the_callers_trace(scripted: Start) -> None:
    watched = Watched()
    _, http = scripted(answering("Yes."), watches=(watched.traces.note,))
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    http.post("/v1/completions", json={"prompt": "Hello"}, headers={"traceparent": f"00-{trace}-{parent}-01"})
    span = watched.span()
    assert span.name == f"text_completion {NAME}"
    assert (f"{span.context.trace_id:032x}", span.parent and f"{span.parent.span_id:016x}") == (trace, parent)


@pytest.mark.parametrize("header", ["nonsense", "00-0-0-01", "x" * 5000])
def test_a_header_that_is_none_begins_a_trace(scripted: Start, header: str) -> None:
    watched = Watched()
    _, http = scripted(answering("Yes."), watches=(watched.traces.note,))
    assert http.post(CHAT, json=BODY, headers={"traceparent": header}).status_code == 200
    assert watched.span().parent is None


def test_a_failure_is_an_error_and_a_client_that_left_is_none(scripted: Start) -> None:
    for event, kind, status in (
        (TokenEvent(finish_reason="error", error="planned"), "server_error", StatusCode.ERROR),
        (threading.Event(), "cancelled", StatusCode.UNSET),
    ):
        watched = Watched()
        engine, http = scripted(playing(event), watches=(watched.traces.note,))
        with http.stream("POST", CHAT, json={**BODY, "stream": True}) as answer:
            told = answer.iter_lines()
            next(told)
            wait_until(lambda: bool(engine.submitted))  # noqa: B023 - waited for at once
        span = watched.span()
        assert (span.attributes or {})["error.type"] == kind
        assert span.status.status_code is status
        assert "planned" not in str(span.status.description)


def playing(event: Any) -> Callable[[Any], ScriptedEngine]:
    return lambda folder: ScriptedEngine(folder, lambda _prompt, _sampling: [event])


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """The address of a collector on this machine, and the spans it was sent."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            raw = gzip.decompress(raw) if self.headers.get("content-encoding") == "gzip" else raw
            sent = ExportTraceServiceRequest.FromString(raw)
            spans.extend(
                (self.path, span) for each in sent.resource_spans for scope in each.scope_spans for span in scope.spans
            )
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", spans
        server.shutdown()


def test_a_collector_gets_the_spans(scripted: Start, collector: tuple[str, list[Any]]) -> None:
    address, spans = collector
    traces = read_traces(address, {}, NAME)
    assert traces is not None
    _, http = scripted(answering("Yes."), watches=(traces.note,))
    assert http.post(CHAT, json=BODY).status_code == 200
    traces.close()  # sends what is left
    ((path, span),) = spans
    assert (path, span.name) == ("/v1/traces", f"chat {NAME}")


def test_without_an_endpoint_there_are_none() -> None:
    assert read_traces(None, {}, NAME) is None
    assert read_traces(None, {ENDPOINTS[1]: "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}, NAME) is None


def test_opentelemetrys_variables_are_obeyed(monkeypatch: pytest.MonkeyPatch, collector: tuple[str, list[Any]]) -> None:
    address, _ = collector
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    traces = read_traces(None, {ENDPOINTS[1]: address, CONTENT: "true"}, NAME)
    assert traces is not None
    assert traces._content
    assert traces._provider.resource.attributes["service.name"] == "mine"
    traces.close()


def test_without_the_extra_the_flag_is_refused_and_a_variable_only_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(UsageError, match=r"pip install 'qwench\[otel\]'"):
        read_traces("http://127.0.0.1:4318", {}, NAME)
    assert read_traces(None, {ENDPOINTS[0]: "http://127.0.0.1:4318"}, NAME) is None
    assert "no traces are sent" in caplog.text


def test_an_endpoint_that_is_none_is_one_sentence() -> None:
    with pytest.raises(UsageError, match="--otlp-endpoint is localhost:4318; give an address such as"):
        read_traces("localhost:4318", {}, NAME)
