"""``/metrics`` in Prometheus' text format: the engine's counters and gauges, and how long answers took.

Every label has a few known values, so that no request can add a series. Knows no engine beyond its stats.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from qwench.engine.client import EngineStats
from qwench.errors import QwenchError

if TYPE_CHECKING:
    from qwench.server.answer import Answer
    from qwench.server.service import Service

# field of EngineStats: what it is; a name that ends in _total is a counter
METRICS = {
    "running": ("requests_running", "Requests that hold pages and a state."),
    "waiting": ("requests_waiting", "Requests in the queue."),
    "finished": ("requests_finished_total", "Answers that came to their end."),
    "aborted": (
        "requests_aborted_total",
        "Answers that were ended from outside, by a stop string or a disconnect too.",
    ),
    "failed": ("requests_failed_total", "Answers that ended with an error."),
    "steps": ("steps_total", "Steps of the model."),
    "preemptions": ("preemptions_total", "Requests that gave their memory back to go on later."),
    "prompt_tokens": ("prompt_tokens_computed_total", "Prompt tokens that were computed."),
    "cached_tokens": ("prompt_tokens_reused_total", "Prompt tokens that were not computed because they were known."),
    "disk_tokens": ("prompt_tokens_from_disk_total", "Prompt tokens whose states were read from the cache folder."),
    "disk_entries": ("cache_disk_entries", "Beginnings of sequences in the cache folder."),
    "disk_bytes": ("cache_disk_bytes", "Bytes in the cache folder."),
    "generated_tokens": ("generated_tokens_total", "Tokens that were drawn."),
    "pages_used": ("cache_pages_used", "Pages of keys and values that requests and snapshots hold."),
    "pages_total": ("cache_pages", "Pages of keys and values there are."),
    "slots_used": ("cache_states_used", "States that requests and snapshots hold."),
    "slots_total": ("cache_states", "States there is room for."),
    "snapshots": ("cache_snapshots_used", "Beginnings of sequences that are kept."),
    "snapshots_total": ("cache_snapshots", "Beginnings of sequences there is room for."),
    "evictions": ("cache_evictions_total", "Kept beginnings that made room for others."),
    "resident_bytes": ("resident_memory_bytes", "Main memory that the server holds."),
}

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0)
STEPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
TOKENS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0)
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
# what is observed: its buckets, and what it is
HISTOGRAMS: Mapping[str, tuple[tuple[float, ...], str]] = MappingProxyType(
    {
        "time_to_first_token_seconds": (SECONDS, "From a request's arrival to its first token."),
        "time_per_token_seconds": (STEPS, "Between two tokens of an answer, on average."),
        "request_seconds": (SECONDS, "From a request's arrival to the end of its answer."),
        "queue_seconds": (SECONDS, "From a request's arrival until the first of its prompt is read."),
        "prompt_tokens": (TOKENS, "Tokens of a prompt."),
        "answer_tokens": (TOKENS, "Tokens of an answer, its thinking included."),
        "reused_share": (SHARES, "Share of a prompt's tokens that was known already."),
        "thinking_share": (SHARES, "Share of an answer's tokens that is thinking."),
    }
)
WORK = ("interactive", "background")  # somebody waits for it, or nobody does: batches, service_tier flex
ENDS = ("stop", "length", "tool_calls", "error", "left")  # left: the client did


class Histogram:
    """How many of the values that were observed are at most each of ``bounds``."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, label: str) -> Iterator[str]:
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{{label},le="{bound}"}} {total}'
        yield f"{name}_sum{{{label}}} {self._sum}"
        yield f"{name}_count{{{label}}} {total}"


class Metrics:
    """What answers were like. Noted and read on the server's event loop alone."""

    def __init__(self) -> None:
        self._histograms = {(name, work): Histogram(HISTOGRAMS[name][0]) for name in HISTOGRAMS for work in WORK}
        self._ends = Counter({(end, work): 0 for end in ENDS for work in WORK})
        self._thinking = dict.fromkeys(WORK, 0)

    def note(self, answer: Answer, failure: BaseException | None) -> None:
        """``answer`` is over, with a ``failure`` or without."""
        work, arrived, first = WORK[answer.prepared.background], answer.trail.arrived, answer.first_token

        def observe(name: str, value: float) -> None:
            self._histograms[name, work].observe(value)

        if first is not None:
            observe("time_to_first_token_seconds", first - arrived)
        if failure is None:
            observe("request_seconds", answer.clock() - arrived)
        for choice in answer.choices:
            reading, prompt = choice.reading, len(choice.prompt.token_ids)
            if choice.begun is not None and choice.index % answer.prepared.sampling.n == 0:
                observe("queue_seconds", choice.begun - arrived)
                observe("prompt_tokens", prompt)
                observe("reused_share", reading.cached_tokens / prompt)
            if reading.num_tokens:
                observe("answer_tokens", reading.num_tokens)
                observe("thinking_share", reading.reasoning_tokens / reading.num_tokens)
                self._thinking[work] += reading.reasoning_tokens
            if choice.first is not None and choice.last is not None and reading.num_tokens > 1:
                observe("time_per_token_seconds", (choice.last - choice.first) / (reading.num_tokens - 1))
            self._ends[reading.finish_reason or ("error" if isinstance(failure, QwenchError) else "left"), work] += 1

    def lines(self) -> Iterator[str]:
        """Every metric with its help and type."""
        yield from _head("answers_total", "Answers by how they ended.")
        for (end, work), count in self._ends.items():
            yield f'qwench_answers_total{{end="{end}",work="{work}"}} {count}'
        yield from _head("thinking_tokens_total", "Tokens of thinking.")
        for work, count in self._thinking.items():
            yield f'qwench_thinking_tokens_total{{work="{work}"}} {count}'
        for name, (_, told) in HISTOGRAMS.items():
            yield from _head(name, told, "histogram")
            for work in WORK:
                yield from self._histograms[name, work].lines(f"qwench_{name}", f'work="{work}"')


def exposition(stats: EngineStats, metrics: Metrics) -> str:
    """Every metric with its help, type and value."""
    lines: list[str] = []
    for field, (name, told) in METRICS.items():
        lines += (*_head(name, told), f"qwench_{name} {getattr(stats, field)}")
    return "\n".join([*lines, *metrics.lines()]) + "\n"


def _head(name: str, told: str, kind: str = "") -> tuple[str, str]:
    kind = kind or ("counter" if name.endswith("_total") else "gauge")
    return f"# HELP qwench_{name} {told}", f"# TYPE qwench_{name} {kind}"


def metrics_routes(service: Service) -> APIRouter:
    """``/metrics``."""
    router = APIRouter()

    @router.get("/metrics")
    async def metrics() -> Response:
        """Counters, gauges and histograms for Prometheus."""
        told = exposition(service.client.stats(), service.metrics)
        return PlainTextResponse(told, media_type="text/plain; version=0.0.4")

    return router
