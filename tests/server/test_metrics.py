"""What Prometheus reads, by its own parser: every answer counted once, every series known beforehand."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from qwench.engine.request import TokenEvent
from qwench.server.metrics import ENDS, HISTOGRAMS, METRICS, WORK, Histogram
from tests.meta.tree import ROOT
from tests.server.conftest import Start, wait_until
from tests.server.scripted import ScriptedEngine, answering

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "Hello"}]}
DASHBOARD = ROOT / "docs" / "grafana.json"


def samples(http: httpx.Client) -> dict[tuple[str, str], float]:
    """Every sample by its name and labels."""
    families = list(text_string_to_metric_families(http.get("/metrics").text))
    assert all(family.documentation and family.type in ("counter", "gauge", "histogram") for family in families)
    return {(one.name, json.dumps(one.labels, sort_keys=True)): one.value for each in families for one in each.samples}


def count(found: dict[tuple[str, str], float], name: str, **labels: str) -> float:
    return found[f"qwench_{name}", json.dumps(labels, sort_keys=True)]


def test_a_histogram_counts_what_is_at_most_each_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    told = dict(line.rsplit(" ", 1) for line in histogram.lines("x", 'a="b"'))
    buckets = [told[f'x_bucket{{a="b",le="{bound}"}}'] for bound in ("1.0", "2.0", "+Inf")]
    assert buckets == ["2", "3", "4"]
    assert (told['x_sum{a="b"}'], told['x_count{a="b"}']) == ("12.0", "4")


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_measured_once(http: httpx.Client, stream: bool) -> None:
    before = samples(http)
    answer = http.post(CHAT, json={**BODY, "max_tokens": 8, "stream": stream, "temperature": 0, "ignore_eos": True})
    assert answer.status_code == 200
    after = samples(http)

    def grown(name: str, **labels: str) -> float:
        return count(after, name, **labels) - count(before, name, **labels)

    for name in HISTOGRAMS:
        assert grown(f"{name}_count", work="interactive") == 1, name
        assert grown(f"{name}_count", work="background") == 0, name
    assert grown("answer_tokens_sum", work="interactive") == 8
    assert grown("answers_total", end="length", work="interactive") == 1
    assert (
        0
        < grown("time_to_first_token_seconds_sum", work="interactive")
        <= grown("request_seconds_sum", work="interactive")
    )
    assert grown("queue_seconds_sum", work="interactive") > 0
    assert count(after, "resident_memory_bytes") > 10e6


def test_each_prompt_and_each_choice_counts_for_itself(http: httpx.Client) -> None:
    before = samples(http)
    body = {"prompt": ["a b", "c d e"], "n": 2, "max_tokens": 3, "ignore_eos": True, "service_tier": "flex"}
    assert http.post("/v1/completions", json=body).status_code == 200
    after = samples(http)
    grown = {
        name: count(after, f"{name}_count", work="background") - count(before, f"{name}_count", work="background")
        for name in HISTOGRAMS
    }
    assert grown["prompt_tokens"] == grown["queue_seconds"] == grown["reused_share"] == 2
    assert grown["answer_tokens"] == grown["thinking_share"] == grown["time_per_token_seconds"] == 4
    assert grown["time_to_first_token_seconds"] == grown["request_seconds"] == 1


def test_thinking_is_counted_apart(scripted: Start) -> None:
    _, http = scripted(answering("so it is</think>\n\nYes."))
    assert http.post(CHAT, json={**BODY, "enable_thinking": True}).status_code == 200
    found = samples(http)
    share = count(found, "thinking_share_sum", work="interactive")
    assert 0 < share < 1
    tokens = count(found, "answer_tokens_sum", work="interactive")
    assert count(found, "thinking_tokens_total", work="interactive") == pytest.approx(share * tokens)


def test_an_answer_that_failed_or_was_left_is_told_apart(scripted: Start) -> None:
    def make(folder: Path) -> ScriptedEngine:
        engine = ScriptedEngine(folder, lambda prompt, _: fails() if "fail" in prompt else waits(engine.go))
        return engine

    engine, http = scripted(make)
    assert http.post(CHAT, json={"messages": [{"role": "user", "content": "fail"}]}).status_code == 500
    with http.stream("POST", CHAT, json={**BODY, "stream": True}) as answer:
        told = answer.iter_lines()
        next(told)
        wait_until(lambda: bool(engine.alive))
    wait_until(lambda: not engine.alive)
    wait_until(lambda: count(samples(http), "answers_total", end="left", work="interactive") == 1)
    assert count(samples(http), "answers_total", end="error", work="interactive") == 1
    assert count(samples(http), "request_seconds_count", work="interactive") == 0


def fails() -> list[TokenEvent]:
    return [TokenEvent(finish_reason="error", error="planned")]


def waits(go: threading.Event) -> list[TokenEvent | threading.Event]:
    return [go, TokenEvent(finish_reason="stop")]


def test_no_request_can_add_a_series(http: httpx.Client) -> None:
    known = samples(http).keys()
    for path in ("/nowhere", "/v1/models/unknown", "/metrics/x"):
        http.request("BREW", path)
    http.post(CHAT, json={**BODY, "model": "unknown"})
    http.post(CHAT, json={**BODY, "max_tokens": 2, "user": "somebody", "service_tier": "strange"})
    assert samples(http).keys() == known
    assert len(known) == len(METRICS) + (len(ENDS) + 1) * len(WORK) + sum(
        (len(bounds) + 3) * len(WORK) for bounds, _ in HISTOGRAMS.values()
    )


def test_every_metric_of_the_dashboard_is_told_and_every_told_one_is_known_to_it(http: httpx.Client) -> None:
    document = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in document["panels"] for target in panel.get("targets", ())]
    asked += [str(variable["query"]) for variable in document["templating"]["list"] if variable["type"] == "query"]
    named = set(re.findall(r"\bqwench_\w+", " ".join(asked)))
    told = {name for name, _ in samples(http)}
    assert named <= told, f"docs/grafana.json asks for what is not told: {named - told}"
    labels = {name: {"instance", *json.loads(labels)} for name, labels in samples(http)}  # Prometheus adds the instance
    for expression in asked:
        for name, within in re.findall(r"(qwench_\w+)\{(.*?)\}", expression):
            assert set(re.findall(r"(\w+)=~", within)) <= labels[name], expression
        for grouped in re.findall(r"by \((\w+)\)", expression):
            assert all(grouped in labels[name] for name in re.findall(r"qwench_\w+", expression)), expression
    stems = {re.sub(r"_(bucket|sum|count)$", "", name) for name in named}
    assert {f"qwench_{name}" for name in HISTOGRAMS} <= stems, "docs/grafana.json shows every histogram"
