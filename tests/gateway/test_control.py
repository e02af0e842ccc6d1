"""Who may ask, what it may cost, the stop button, and that offline means offline."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwench.gateway.budgets import ALL, Budgets, Purse
from tests.gateway.conftest import Running, Start, tiers
from tests.gateway.standin import Exchange, openai_events, saying, standing_in, well

ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "What is one and one?"}]}


def keys(*names: str, **more: str) -> str:
    """Settings of keys whose secret is their name."""
    return "".join(
        f'[keys.{name}]\ndigest = "sha256:{hashlib.sha256(name.encode()).hexdigest()}"\n{more.get(name, "")}\n'
        for name in names
    )


def ask(running: Running, key: str = "", **headers: str) -> httpx.Response:
    told = {**({"authorization": f"Bearer {key}"} if key else {}), **headers}
    return httpx.post(f"{running.url}/v1/chat/completions", json=ASKED, headers=told)


def test_the_stop_button_ends_what_runs_and_lets_nothing_begin(start: Start) -> None:
    async def endless(exchange: Exchange) -> None:
        events = openai_events("small")
        await exchange.events([events[0], *events[1:2] * 10_000], pause=0.02)

    with standing_in(endless) as own:
        running = start(tiers(own.url))
        ends: list[str] = []

        def listen() -> None:
            url = f"{running.url}/v1/chat/completions"
            with httpx.stream("POST", url, json={**ASKED, "stream": True}) as answer:
                ends.append([line for line in answer.iter_lines() if line][-1])

        threads = [threading.Thread(target=listen) for _ in range(4)]
        for thread in threads:
            thread.start()
        while len(own.seen) < 4 or running.house.halt.running < 4:
            time.sleep(0.01)
        began = time.monotonic()
        assert httpx.post(f"{running.url}/admin/halt").json() == {"state": "halted", "stopped": 4}
        for thread in threads:
            thread.join(5)
        assert time.monotonic() - began < 2
        refused, health = ask(running), httpx.get(f"{running.url}/health")
        assert httpx.post(f"{running.url}/admin/resume").json() == {"state": "open"}
        assert httpx.get(f"{running.url}/health").status_code == 200
    assert [json.loads(end.removeprefix("data: "))["error"]["code"] for end in ends] == ["halted"] * 4
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "halted")
    assert (health.status_code, health.json()["reason"]) == (503, "an operator halted it")
    assert [row["status"] for row in running.rows()] == ["cancelled"] * 4
    assert own.left == 4


def test_a_key_is_asked_for_and_its_data_class_and_rights_hold(start: Start) -> None:
    with standing_in(well) as own, standing_in(well) as other:
        text = tiers(own.url, other.url, more=keys("ann", "root", ann='data = "internal"', root="admin = true"))
        running = start(text)
        assert ask(running).status_code == 401
        assert ask(running, "ann").headers["x-qwench-data"] == "internal"
        pinned = httpx.post(
            f"{running.url}/v1/chat/completions",
            json={**ASKED, "model": "premium"},
            headers={"authorization": "Bearer ann"},
        )
        assert pinned.status_code == 403
        assert "premium may not see internal data, and the key ann is for it" in pinned.json()["error"]["message"]
        lowered = ask(running, "ann", **{"x-qwench-data": "public"})
        assert lowered.headers["x-qwench-data"] == "internal", "a header cannot make data less confidential"
        halts = [httpx.post(f"{running.url}/admin/halt", headers={"x-api-key": key}) for key in ("ann", "root")]
        assert [halt.status_code for halt in halts] == [403, 200]
        httpx.post(f"{running.url}/admin/resume", headers={"x-api-key": "root"})
        task = ask(running, "root", **{"x-qwench-task": "mine"}).headers["x-qwench-task"]
        assert task == "root:mine"
        outcome = {"task": task, "verdict": "rejected"}
        theirs = [
            httpx.post(f"{running.url}/v1/outcomes", json=outcome, headers={"x-api-key": key})
            for key in ("ann", "root")
        ]
        assert [answer.status_code for answer in theirs] == [403, 200]
        assert not other.seen


def test_a_budget_ends_what_costs_and_leaves_what_is_cheap(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """Premium costs about 0.00035 a time, own next to nothing."""
    with standing_in(well) as own, standing_in(well) as other:
        more = keys("ann", ann="budget = 0.002")
        running = start(tiers(other.url, own.url, gateway='default = "premium/large"', more=more))
        tier = [ask(running, "ann").headers["x-qwench-tier"] for _ in range(8)]
        purse = running.house.books.budgets.purses()["ann"]
    assert tier[0] == "premium"
    assert tier[-1] == "own"
    assert tier == sorted(tier, reverse=True), "once it is spent it stays spent"
    assert 0 < purse.spent <= 0.002
    with standing_in(well) as own:
        only = start(tiers(own.url, more=keys("bob", bob="budget = 0.0")))
        refused = ask(only, "bob")
    assert refused.status_code == 402
    assert refused.json()["error"]["code"] == "budget_exhausted"
    assert "the key bob has left" in refused.json()["error"]["message"]


def test_alerts_are_told_once_each_and_days_only_move_forward() -> None:
    now, told = [86_400.0 * 10], list[tuple[str, float]]()
    budgets = Budgets(
        {ALL: 10.0, "ann": 1.0}, [0.5, 0.8, 1.0], lambda: now[0], lambda name, share, _: told.append((name, share))
    )
    for _ in range(6):
        budgets.spend("ann", 0.2)
    assert told == [("ann", 0.5), ("ann", 0.8), ("ann", 1.0)]
    assert budgets.left("ann") == (0.0, "the key ann")
    now[0] -= 86_400
    assert budgets.left("ann")[0] == 0.0
    now[0] += 2 * 86_400
    assert budgets.left("ann") == (1.0, "the key ann")
    with budgets.reserved("ann", 0.7):
        assert budgets.left("ann")[0] == pytest.approx(0.3)
    budgets.spend("ann", None)
    assert budgets.purses()["ann"] == Purse(1.0, unknown=1)


def test_what_was_spent_today_is_known_after_a_restart(start: Start, tmp_path: Path) -> None:
    shared = tmp_path / "shared.sqlite"
    with standing_in(well) as own:
        text = tiers(own.url, gateway="budget = 0.5").replace('"ledger.sqlite"', f'"{shared}"')
        first = start(text)
        ask(first)
        spent = first.house.books.budgets.purses()[ALL].spent
        second = start(text)
    assert spent > 0
    assert second.house.books.budgets.purses()[ALL].spent == pytest.approx(spent)


OFFLINE = """
import json, socket, sys
outside = []
def watch(name, arguments):
    if name == "socket.connect":
        address = arguments[1]
        if isinstance(address, tuple) and not (address[0].startswith("127.") or address[0] == "::1"):
            outside.append(address[0])
    elif name in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
        if host not in (None, "127.0.0.1", "::1", b"127.0.0.1"):
            outside.append(host.decode() if isinstance(host, bytes) else host)
sys.addaudithook(watch)
from pathlib import Path
import httpx
from tests.gateway.conftest import gateway
from tests.gateway.standin import standing_in, well
with standing_in(well) as own:
    text = Path(sys.argv[1]).read_text().replace("OWN", own.url.replace("127.0.0.1", "localhost"))
    for mode in ("offline", "online"):
        with gateway(Path(sys.argv[2]) / mode, text, offline=mode == "offline") as running:
            asked = {"messages": [{"role": "user", "content": "Hi"}]}
            answers = [httpx.post(running.url + "/v1/chat/completions", json={**asked, "model": model}, trust_env=False)
                       for model in ("auto", "own", "far")]
        print(json.dumps({"status": [each.status_code for each in answers], "outside": outside}))
"""


def test_offline_opens_no_socket_but_loopback(tmp_path: Path) -> None:
    """Watched from inside by Python's own audit hook; online, the same test sees the attempt, so it can see."""
    far = '[tiers.far]\nkind = "openai"\nurl = "http://far.invalid"\ndata = ["public"]\n'
    text = tiers("OWN", gateway='default = "far/large"', more=f'{far}[[models]]\ntier = "far"\nmodel = "large"\n')
    (tmp_path / "settings").write_text(text, encoding="utf-8")
    words = [sys.executable, "-c", OFFLINE, str(tmp_path / "settings"), str(tmp_path / "run")]
    environment = {"PYTHONPATH": "src:.", "HTTP_PROXY": "http://proxy.invalid:3128", "PATH": ""}
    done = subprocess.run(
        words, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=True
    )
    offline, online = map(json.loads, done.stdout.splitlines()[-2:])
    assert offline == {"status": [200, 200, 403], "outside": []}
    assert "far.invalid" in online["outside"]


def test_a_cascade_pays_for_the_strong_only_where_the_check_refuses(start: Start) -> None:
    more = (
        '[classes.json]\nvalue = 1.0\nwords = ["json"]\n'
        '[[cascades]]\nfirst = "own/small"\nthen = "premium/large"\ncheck = "json"\nright = 1.0\nwrong = 0.0\n'
    )
    said = ["{}", "no"]

    async def first(exchange: Exchange) -> None:
        await saying(said.pop(0))(exchange)

    with standing_in(first) as own, standing_in(saying('{"a": 1}')) as other:
        text = tiers(own.url, other.url, gateway="enough = 0", more=more)
        text = text.replace('model = "small"', 'model = "small"\nprior = 0.7').replace(
            'model = "large"', 'model = "large"\nprior = 0.9'
        )
        running = start(text)
        body = {"messages": [{"role": "user", "content": "Give me json."}]}
        answers = [httpx.post(f"{running.url}/v1/chat/completions", json=body) for _ in range(2)]
    assert [answer.headers["x-qwench-tier"] for answer in answers] == ["own", "premium"]
    assert [answer.json()["usage"]["qwench"]["attempts"] for answer in answers] == [1, 2]
    assert len(other.seen) == 1
    assert [row["tier"] for row in running.rows()] == ["own", "own", "premium"]
    told = {each.tier: (each.accepted, each.rejected) for each in running.ledger.tallies()}
    assert told == {"own": (1, 1), "premium": (1, 0)}, "what the check found of each answer is known of each option"


def test_the_report_is_live_for_operators_alone(start: Start) -> None:
    with standing_in(well) as own:
        text = tiers(own.url, gateway="budget = 2.0")
        running = start(text)
        httpx.post(f"{running.url}/v1/chat/completions", json=ASKED)
        page = httpx.get(running.url)
        keyed = start(text + keys("ann"))
        shut = httpx.get(keyed.url, headers={"authorization": "Bearer ann"})
        nobody = httpx.get(keyed.url)
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for told in ("The last 24 hours", "1 tasks", "tier own", "of 2 spent today", 'http-equiv="refresh"'):
        assert told in page.text
    assert (shut.status_code, nobody.status_code) == (403, 401)
