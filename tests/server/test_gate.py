"""Who is let in: hosts, origins, named keys, and how much each may ask; and what the log says of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from starlette.routing import Route

from qwench import log
from qwench.errors import Overloaded, UsageError
from qwench.server.connection import Gathered
from qwench.server.gate import Behind, Gate
from qwench.server.keys import Key, owner_of, read_keys
from qwench.server.limits import Limits
from qwench.server.service import ServerSettings
from tests.server.conftest import Start
from tests.server.scripted import answering

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "a secret thought"}]}


def code(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    return str(answer.json()["error"]["code"])


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "localhost.evil.example"]
)
def test_a_name_that_was_made_to_lead_here_is_refused(scripted: Start, host: str) -> None:
    engine, http = scripted(answering("Hello"))
    assert code(http.post(CHAT, json=BODY, headers={"host": host}), 403) == "unknown_host"
    assert not engine.submitted


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:80", "127.0.0.1:8000", "[::1]:8000", "192.168.1.4", "box.lan:1"]
)
def test_addresses_and_allowed_names_are_let_in(scripted: Start, host: str) -> None:
    _, http = scripted(answering("Hello"), hosts=frozenset({"box.lan"}))
    assert http.post(CHAT, json=BODY, headers={"host": host}).status_code == 200


def test_with_a_key_any_name_will_do(scripted: Start) -> None:
    _, http = scripted(answering("Hello"), keys=(Key.of("k"),))
    headers = {"host": "chat.example", "authorization": "Bearer k"}
    assert http.post(CHAT, json=BODY, headers=headers).status_code == 200


def test_pages_of_other_origins_may_not_use_the_server(scripted: Start) -> None:
    engine, http = scripted(answering("Hello"))
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        assert code(http.post(CHAT, json=BODY, headers={"origin": origin}), 403) == "foreign_origin"
    assert not engine.submitted
    own = str(http.base_url).rstrip("/")
    answer = http.post(CHAT, json=BODY, headers={"origin": own})
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers


def test_an_allowed_origin_is_told_so_also_before_it_has_a_key(scripted: Start) -> None:
    page = "https://chat.example"
    _, http = scripted(answering("Hello"), keys=(Key.of("k"),), origins=frozenset({page}))
    asked = {"origin": page, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    before = http.options(CHAT, headers=asked)
    assert (before.status_code, before.headers["access-control-allow-origin"]) == (200, page)
    answer = http.post(CHAT, json=BODY, headers={"origin": page, "authorization": "Bearer k"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, page)
    assert code(http.post(CHAT, json=BODY, headers={"origin": "https://evil.example"}), 403) == "foreign_origin"


def test_keys_of_a_file_have_names_and_are_not_in_it(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    digest = hashlib.sha256(b"open sesame").hexdigest()
    file.write_text(f"# who\nalice sha256:{digest}  # on the laptop\n\nbob@lab sha256:{'0' * 64}\n")
    keys = read_keys(file)
    assert [key.name for key in keys] == ["alice", "bob@lab"]
    assert owner_of(keys, "open sesame") == "alice"
    assert owner_of(keys, "open") == owner_of(keys, "") == ""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no key"),
        ("alice open-sesame", "line 1 is no key"),
        ("\nalice sha256:abc", "line 2 is no key"),
        (f"a b sha256:{'0' * 64}", "line 1 is no key"),
        (f"alice sha256:{'0' * 64}\nalice sha256:{'1' * 64}", "line 2: the name must be new"),
        (f"al/ice sha256:{'0' * 64}", "line 1: the name"),
    ],
)
def test_a_bad_file_of_keys_is_named_by_line_and_never_quoted(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(UsageError, match=told) as failure:
        read_keys(file)
    assert "open-sesame" not in failure.value.message
    with pytest.raises(UsageError, match="cannot be read"):
        read_keys(tmp_path / "none")


def test_a_key_may_send_so_many_requests_a_minute() -> None:
    now = 0.0
    limits = Limits(2, None, clock=lambda: now)
    for _ in range(2):
        with limits.request("alice"):
            pass
    with pytest.raises(Overloaded, match="2 requests a minute") as refused, limits.request("alice"):
        pass
    assert refused.value.retry_after == 30
    with limits.request("bob"):  # each has its own
        pass
    now = 30.0
    with limits.request("alice"):
        pass


def test_a_key_may_have_so_many_requests_at_a_time(scripted: Start) -> None:
    limits = Limits(None, 1)
    with limits.request("alice"), pytest.raises(Overloaded, match="1 requests running"), limits.request("alice"):
        pass
    with limits.request("alice"):
        pass
    all_of_them = Limits(None, None, 1)
    with all_of_them.request("alice"), pytest.raises(Overloaded, match="1 requests at a time"):  # noqa: SIM117
        with all_of_them.request("bob"):
            pass
    with all_of_them.request("bob"):
        pass
    _, http = scripted(answering("Hello"), keys=(Key.of("k"),), key_rate=1)
    headers = {"authorization": "Bearer k"}
    assert http.post(CHAT, json=BODY, headers=headers).status_code == 200
    late = http.post(CHAT, json=BODY, headers=headers)
    assert code(late, 429) == "rate_limit_exceeded"
    assert 2 <= int(late.headers["retry-after"]) <= 60


def test_every_request_leaves_a_line_without_prompt_or_key(scripted: Start, capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(form="json")
    _, http = scripted(answering("Hello"), keys=(Key("alice", Key.of("open-sesame").digest),))
    headers = {"authorization": "Bearer open-sesame", "x-request-id": "mine"}
    assert http.post(CHAT, json=BODY, headers=headers).status_code == 200
    assert http.post(CHAT, json=BODY).status_code == 401
    assert http.get("/health", headers=headers).status_code == 200
    logging.getLogger("qwench").handlers[0].flush()
    told = capsys.readouterr().err
    lines = [json.loads(line) for line in told.splitlines()]
    first, second = (line for line in lines if "status" in line)
    expected = {"method": "POST", "path": CHAT, "status": 200, "owner": "alice", "request": "mine", "level": "info"}
    assert expected.items() <= first.items()
    assert (second["status"], second["owner"]) == (401, "")
    assert all(line["request"] == "mine" for line in lines if "reused" in line["message"])
    assert "secret thought" not in told
    assert "sesame" not in told


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/v1/chat/completions", ("error", "code")),
        ("/v1/messages", ("error", "type")),
        ("/api/chat", ("error",)),
    ],
)
def test_a_bug_is_told_in_the_words_of_the_api(
    path: str, place: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """By the gate alone: no framework behind it answers first."""

    async def broken(_request: object) -> None:
        raise ZeroDivisionError("a secret")

    app = Gate(Behind(routes=[Route(path, broken, methods=["POST"])]), ServerSettings(names=("x",)))

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.post(path)

    answer = asyncio.run(ask())
    told = answer.json()
    for name in place:
        told = told[name]
    assert (answer.status_code, "secret" in answer.text) == (500, False)
    assert told in {"internal_error", "api_error"} or told.startswith("The server failed on request req_")
    assert "ZeroDivisionError" in caplog.text


def test_what_is_written_in_one_turn_goes_out_as_one_piece() -> None:
    class Line:
        sent: ClassVar[list[bytes]] = []

        def write(self, data: bytes) -> None:
            self.sent.append(data)

        def close(self) -> None:
            self.sent.append(b"closed")

        def get_write_buffer_size(self) -> int:
            return 5

    async def speak() -> None:
        line: Any = Line()
        gathered = Gathered(line, asyncio.get_running_loop())
        for piece in (b"head", b"", b"body"):
            gathered.write(piece)
        assert (line.sent, gathered.get_write_buffer_size()) == ([], 13)
        await asyncio.sleep(0)
        assert (line.sent, gathered.get_write_buffer_size()) == ([b"headbody"], 5)
        gathered.write(b"last")
        gathered.close()  # what was written before is not lost
        await asyncio.sleep(0)
        assert line.sent == [b"headbody", b"last", b"closed"]

    asyncio.run(speak())
