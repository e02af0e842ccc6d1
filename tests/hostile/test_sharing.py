"""What one client does is nobody else's: keys, ids, pictures after a refusal, logs and metrics."""

from __future__ import annotations

import base64
import json
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from qwench import log
from qwench.engine.client import EngineClient
from qwench.server.keys import Key
from qwench.server.service import ServerSettings
from qwench.text.model import ModelText
from tests.hostile.cases_outside import message, picture
from tests.hostile.target import CHAT, HELLO, NORMAL, Target
from tests.media.files import data_uri, encoded, noise
from tests.server.conftest import NAME, Start, running
from tests.server.test_failures import pausing

ALICE, BOB = "sk-alice-0123456789", "sk-bob-0123456789"


@contextmanager
def keyed(nano: EngineClient, nano_text: ModelText) -> Iterator[str]:
    keys = (Key("alice", Key.of(ALICE).digest), Key("bob", Key.of(BOB).digest))
    with running(nano, nano_text, ServerSettings(names=("nano",), keys=keys)) as address:
        yield address


WRONG = (
    "", " ", "x", ALICE[:-1], f"{ALICE}x", ALICE.upper(), f" {ALICE}", f'"{ALICE}"', f"{ALICE}\t{BOB}", f"{ALICE},{BOB}", ALICE[:20], "null", "None", "undefined",
    "' OR '1'='1", "x'; DROP TABLE keys; --", "1 UNION SELECT name FROM keys", "%", "*", ".*", "../../etc/passwd", "{}", "[]", "true", "0", "a" * 8_000, "alice",
    Key.of(ALICE).digest, f"sha256:{Key.of(ALICE).digest}", base64.b64encode(b'{"alg":"none"}').decode() + ".e30.", "é".encode().decode("latin-1"),
)  # fmt: skip


def test_wrong_keys_open_nothing(nano: EngineClient, nano_text: ModelText) -> None:
    with keyed(nano, nano_text) as address, httpx.Client(base_url=address, timeout=20) as http:
        for key in WRONG:
            value = key.encode("latin-1")
            for header, sent in (
                (b"authorization", b"Bearer " + value),
                (b"x-api-key", value),
                (b"authorization", b"Basic " + value),
            ):
                for path in ("/v1/models", "/metrics", "/docs"):
                    answer = http.get(path, headers=[(header, sent.strip())])  # values have no space around them
                    hers = key.strip() == ALICE and not sent.startswith(b"Basic")
                    assert answer.status_code == (200 if hers else 401), (header, key, path)
                    assert ALICE not in answer.text
                    assert hers or answer.json()["error"]["code"] == "invalid_api_key"
        assert http.get("/v1/models?api_key=" + ALICE).status_code == 401
        assert http.get("/v1/models", headers={"cookie": f"api_key={ALICE}"}).status_code == 401


def test_every_route_but_health_asks_for_a_key(nano: EngineClient, nano_text: ModelText) -> None:
    with keyed(nano, nano_text) as address, httpx.Client(base_url=address, timeout=20) as http:
        document = http.get("/openapi.json", headers={"x-api-key": ALICE}).json()
        for path, operations in document["paths"].items():
            for method in operations:
                answer = http.request(method, path.replace("{", "").replace("}", ""))
                assert answer.status_code == (200 if path == "/health" else 401), (method, path)


def test_health_tells_strangers_how_it_is_and_nothing_else(
    nano: EngineClient, nano_text: ModelText, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = [f"cache folder {tmp_path}/x (0 snapshots)", "device cpu"]
    monkeypatch.setattr(nano, "config", replace(nano.config, cache_dir=str(tmp_path)))
    monkeypatch.setattr(nano, "banner", lambda: told)
    with keyed(nano, nano_text) as address, httpx.Client(base_url=address, timeout=20) as http:
        for headers in ({}, {"x-api-key": "wrong"}):
            health = http.get("/health", headers=headers)
            assert (health.status_code, health.json()) == (200, {"status": "ready", "model": "nano", "progress": 1.0})
        health = http.get("/health", headers={"x-api-key": ALICE})
        assert health.json()["resolved"] == told[1:]
        assert health.json()["config"]["cache_dir"] == "set"
        assert str(tmp_path) not in health.text


def test_a_running_response_is_its_owners(scripted: Start) -> None:
    """Its id is random, and another key is told that there is none."""
    engine, http = scripted(
        pausing("<think>Hello world. The answer is", "x"),
        keys=(Key("alice", Key.of(ALICE).digest), Key("bob", Key.of(BOB).digest)),
    )
    body = {"model": NAME, "messages": HELLO, "stream": True}
    with http.stream("POST", CHAT, json=body, headers={"x-api-key": ALICE}) as answer:
        first = next(line for line in answer.iter_lines() if line.startswith("data: {"))
        asked = {"id": json.loads(first[6:])["id"], "action": "reasoning_end"}
        told = {
            key: http.post(f"{CHAT}/control", json=asked, headers={"x-api-key": key}).status_code
            for key in (BOB, ALICE)
        }
        assert told == {BOB: 404, ALICE: 200}
        engine.go.set()


def test_four_at_once_under_one_request_id_get_their_own_answers(target: Target) -> None:
    bodies = [{**NORMAL, "messages": [{"role": "user", "content": f"What is {n} + {n}?"}]} for n in (11, 22, 33, 44)]

    def ask(body: dict[str, Any]) -> str:
        with target.client() as client:
            return str(
                client.post(CHAT, json=body, headers={"x-request-id": "same"}).json()["choices"][0]["message"][
                    "content"
                ]
            )

    alone = [ask(body) for body in bodies]
    together: dict[int, str] = {}

    def keep(at: int) -> None:
        together[at] = ask(bodies[at])

    threads = [threading.Thread(target=keep, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[at] for at in range(4)] == alone


@pytest.mark.parametrize(
    "refused",
    [{"max_tokens": 10**6}, {"n": 10**6}, {"stop_token_ids": [10**9]}, {"guided_regex": "("}, {"tools": 5}],
    ids=lambda refused: next(iter(refused)),
)
def test_a_picture_after_a_refused_request_with_it_is_seen_as_ever(target: Target, refused: dict[str, Any]) -> None:
    """Neither half of a refused request is kept: what was decoded for it, or what was looked at."""
    seed = 1_000 + len(str(refused))
    fresh, other = (data_uri(encoded(noise(64, 64, seed)))), (data_uri(encoded(noise(64, 64, seed + 1))))

    def seen(client: httpx.Client, address: str) -> tuple[str, Any]:
        answer = client.post(CHAT, json=message(picture(address), max_tokens=8, temperature=0)).json()
        return answer["choices"][0]["message"]["content"], answer["usage"]["prompt_tokens_details"]["image_tokens"]

    with target.client() as client:
        expected = seen(client, other)
        for address in (fresh, other):
            assert client.post(CHAT, json=message(picture(address)) | refused).status_code == 400
        first = seen(client, fresh)
        assert seen(client, fresh) == first
        assert seen(client, other) == expected


def test_logs_hold_no_key_no_prompt_and_no_line_of_a_strangers(
    nano: EngineClient, nano_text: ModelText, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure("debug")
    secret = "a secret \n qwench: error: forged"
    with keyed(nano, nano_text) as address, httpx.Client(base_url=address, timeout=20) as http:
        for key in (ALICE, BOB, "sk-wrong-0123456789"):
            headers = {"authorization": f"Bearer {key}", "x-request-id": "x\tqwench: error: forged"}
            http.post(
                CHAT,
                json={**NORMAL, "user": secret, "messages": [{"role": "user", "content": secret}]},
                headers=headers,
            )
            http.post(CHAT, json={**NORMAL, secret: 1}, headers=headers)
            http.get("/a%0aqwench:%20error:%20forged", headers=headers)
    logging.getLogger("qwench").handlers[0].flush()
    told = capsys.readouterr().err
    assert told
    assert not [key for key in (ALICE, BOB, "sk-wrong", "a secret") if key in told]
    assert not re.search(r"^qwench: error: forged", told, re.MULTILINE)


def test_metrics_do_not_grow_with_what_strangers_ask(target: Target) -> None:
    def names(client: httpx.Client) -> list[str]:
        return sorted(
            line.split(" ")[0] for line in client.get("/metrics").text.splitlines() if not line.startswith("#")
        )

    with target.client() as client:
        client.post(CHAT, json=NORMAL)
        before = names(client)
        for number in range(30):
            client.request(f"MADEUP{number}", f"/made/up/{number}")
            client.post(CHAT, json={**NORMAL, "model": f"made-up-{number}", "user": f"u{number}"})
        assert names(client) == before
