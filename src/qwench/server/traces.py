"""Traces: one span for each answer that is over, with the names of OpenTelemetry's conventions for generative AI.

A span holds sizes, times and settings; what was asked and answered only where the operator says so. Without an endpoint
nothing of OpenTelemetry is imported and nothing is sent anywhere.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qwench import __version__
from qwench.errors import QwenchError, UsageError
from qwench.server.prepare import Prepared

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

    from qwench.server.answer import Answer

logger = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
CONTENT = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
OFF = "OTEL_SDK_DISABLED"
# The fields of SamplingParams that a span tells, by their names there.
SETTINGS = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "max_tokens": "gen_ai.request.max_tokens",
    "seed": "gen_ai.request.seed",
}


def read_traces(endpoint: str | None, environment: Mapping[str, str], model: str) -> Traces | None:
    """Traces to the ``endpoint`` of a flag or of OpenTelemetry's own variables, over OTLP; None where there is neither.

    Raises UsageError where the flag asks for what is not installed.
    """
    named = next((name for name in ENDPOINTS if environment.get(name)), None)
    if endpoint is None and (named is None or _is_true(environment, OFF)):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        if endpoint is None:  # a variable may be meant for other programs
            logger.warning("%s is set, but no traces are sent: they need pip install 'qwench[otel]'", named)
            return None
        told = "--otlp-endpoint needs the extra otel: pip install 'qwench[otel]', or leave the flag out."
        raise UsageError(told, param="otlp_endpoint") from None
    address = None if endpoint is None else f"{endpoint.rstrip('/').removesuffix('/v1/traces')}/v1/traces"
    if address is not None and not address.startswith(("http://", "https://")):
        raise UsageError(f"--otlp-endpoint is {endpoint}; give an address such as http://localhost:4318.")
    processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=address))
    return Traces(processor, model, content=_is_true(environment, CONTENT))


class Traces:
    """``content``: spans hold what was asked and answered too."""

    def __init__(self, processor: SpanProcessor, model: str, *, content: bool = False) -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider

        own = {SERVICE_NAME: "qwench", SERVICE_VERSION: __version__}
        resource = Resource.create(own).merge(OTELResourceDetector().detect())  # what its variables say wins
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("qwench", __version__)
        self._model = model
        self._content = content

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

    def note(self, answer: Answer, failure: BaseException | None) -> None:
        """``answer`` is over, with a ``failure`` or without."""
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        ended = time.time_ns()
        began = ended - int(1e9 * (answer.clock() - answer.trail.arrived))
        operation = "text_completion" if answer.prepared.thinking is None else "chat"
        parent = TraceContextTextMapPropagator().extract({"traceparent": answer.trail.traceparent})
        span = self._tracer.start_span(f"{operation} {self._model}", parent, SpanKind.SERVER, start_time=began)
        if span.is_recording():
            span.set_attributes({"gen_ai.operation.name": operation, **self._attributes(answer)})
            if failure is None:
                span.set_attributes(_usage(answer.usage()))
            if isinstance(failure, QwenchError):
                span.set_attribute("error.type", failure.code or failure.type)
                span.set_status(StatusCode.ERROR, failure.message)
            elif failure is not None:
                span.set_attribute("error.type", "cancelled")
        span.end(ended)

    def _attributes(self, answer: Answer) -> dict[str, Any]:
        prepared, choices = answer.prepared, answer.choices
        told: dict[str, Any] = {
            "gen_ai.provider.name": "qwench",
            "gen_ai.request.model": self._model,
            "gen_ai.response.model": self._model,
            "gen_ai.response.id": answer.trail.id,
            "gen_ai.output.type": "text" if prepared.guide is None else "json",
            "gen_ai.response.finish_reasons": [choice.reading.finish_reason or "error" for choice in choices],
            **_settings(prepared),
        }
        begun = [choice.begun for choice in choices if choice.begun is not None]
        if begun:
            told["qwench.queue_seconds"] = min(begun) - answer.trail.arrived
        if answer.first_token is not None:
            told["gen_ai.response.time_to_first_chunk"] = answer.first_token - answer.trail.arrived
        return {**told, **(_content(answer) if self._content else {})}


def _usage(usage: Mapping[str, Any]) -> dict[str, int]:
    return {
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "gen_ai.usage.cache_read.input_tokens": usage["prompt_tokens_details"]["cached_tokens"],
        "gen_ai.usage.reasoning.output_tokens": usage["completion_tokens_details"]["reasoning_tokens"],
    }


def _settings(prepared: Prepared) -> dict[str, Any]:
    sampling = prepared.sampling
    found = {name: getattr(sampling, field) for field, name in SETTINGS.items()}
    told = {name: value for name, value in found.items() if value is not None}
    if sampling.n > 1:
        told["gen_ai.request.choice.count"] = sampling.n
    if sampling.stop_strings:
        told["gen_ai.request.stop_sequences"] = list(sampling.stop_strings)
    return told


def _content(answer: Answer) -> dict[str, str]:
    """The rendered prompts as what was asked, and each choice as a message."""
    firsts = answer.choices[:: answer.prepared.sampling.n]
    asked = [_message("user", [("text", choice.prompt_text)]) for choice in firsts]
    said = [
        {
            **_message("assistant", [("reasoning", choice.reading.reasoning), ("text", choice.reading.content)]),
            "finish_reason": choice.reading.finish_reason or "error",
        }
        for choice in answer.choices
    ]
    return {"gen_ai.input.messages": json.dumps(asked), "gen_ai.output.messages": json.dumps(said)}


def _message(role: str, parts: list[tuple[str, str]]) -> dict[str, object]:
    return {"role": role, "parts": [{"type": kind, "content": text} for kind, text in parts if text]}


def _is_true(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").strip().lower() in ("true", "1")
