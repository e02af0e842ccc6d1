"""``/metrics``: the engine's counters and gauges in Prometheus' text format. Knows no engine beyond its stats."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from qwench.engine.client import EngineStats
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
}


def exposition(stats: EngineStats) -> str:
    """Every metric with its help, type and value."""
    lines: list[str] = []
    for field, (name, told) in METRICS.items():
        kind = "counter" if name.endswith("_total") else "gauge"
        lines += (f"# HELP qwench_{name} {told}", f"# TYPE qwench_{name} {kind}")
        lines.append(f"qwench_{name} {getattr(stats, field)}")
    return "\n".join(lines) + "\n"


def metrics_routes(service: Service) -> APIRouter:
    """``/metrics``."""
    router = APIRouter()

    @router.get("/metrics")
    async def metrics() -> Response:
        """Counters and gauges for Prometheus."""
        return PlainTextResponse(exposition(service.client.stats()), media_type="text/plain; version=0.0.4")

    return router
