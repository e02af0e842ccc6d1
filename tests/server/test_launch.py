"""``qwench launch``: settings an agent can use, and a rehearsal that says what a server lacks."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from qwench.cli import main
from qwench.cli.agents import AGENTS, NO_KEY, Served
from qwench.cli.launch import start
from qwench.cli.rehearsal import CHAT, MESSAGES, RESPONSES, Check, Lacking, Wire, counts_tokens, fills_in
from qwench.errors import EngineUnavailable, UsageError
from qwench.server.keys import Key
from tests.server.conftest import Start
from tests.server.scripted import ScriptedEngine, answering
from tests.server.test_serve import SOURCE

CALL = "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>"
SERVED = Served("http://127.0.0.1:8000", "nano", 4096, NO_KEY)


def obliging(folder: Path) -> ScriptedEngine:
    """An engine that calls the tool where there is one, and greets elsewhere."""
    engine = ScriptedEngine(
        folder, lambda prompt, sampling: engine.spell(CALL if "get_weather" in prompt else "Hello!", sampling)
    )
    return engine


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key from outside; and no log of the command's own, into which the server of the test would write too."""
    monkeypatch.delenv("QWENCH_API_KEY", raising=False)
    monkeypatch.setattr("qwench.log.configure", lambda **_: None)


def url(http: httpx.Client) -> str:
    return str(http.base_url).rstrip("/")


def launch(http: httpx.Client, *arguments: str) -> int:
    return main(["launch", *arguments, "--url", url(http)])


def test_settings_are_lines_a_shell_takes_over(scripted: Start, capsys: pytest.CaptureFixture[str]) -> None:
    _, http = scripted(obliging)
    launch(http, "claude", "--no-check")
    lines = capsys.readouterr().out
    shown = subprocess.run(
        ["sh", "-c", f"{lines}\nenv"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert f"ANTHROPIC_BASE_URL={url(http)}" in shown
    assert {"ANTHROPIC_MODEL=tiny", "ANTHROPIC_DEFAULT_HAIKU_MODEL=tiny", "ANTHROPIC_AUTH_TOKEN=none"} <= set(shown)
    assert "unset ANTHROPIC_API_KEY" in lines  # it would be sent beside the token


def test_a_chat_agent_is_rehearsed(scripted: Start, capsys: pytest.CaptureFixture[str]) -> None:
    _, http = scripted(obliging)
    assert launch(http, "open-webui") == 1
    told = capsys.readouterr().err
    assert "no  window: 512 tokens, but the first prompt of Open WebUI alone takes about 1,000" in told
    assert "ok  models: tiny" in told
    assert re.search(r"ok  streaming: \d+ pieces, the first after [\d.]+ s", told)
    assert 'ok  tools: get_weather({"city": "Paris"})' in told


def test_what_a_server_lacks_is_said_and_nothing_is_started(
    scripted: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    _, http = scripted(answering("No."))
    assert launch(http, "qwen-code", "--run") == 1
    told = capsys.readouterr().err
    assert "no  tools: /v1/chat/completions" in told
    assert told.endswith("Qwen Code was not started; --no-check starts it all the same.\n")


def test_a_document_has_settings_and_checks(scripted: Start, capsys: pytest.CaptureFixture[str]) -> None:
    _, http = scripted(obliging)
    launch(http, "qwen-code", "--json")
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["environment"]["OPENAI_BASE_URL"] == f"{url(http)}/v1"
    assert document["command"] == ["qwen", "--auth-type", "openai"]
    assert [check["name"] for check in document["checks"]] == ["window", "streaming", "tools"]


def test_words_behind_two_dashes_are_the_agents(scripted: Start, capsys: pytest.CaptureFixture[str]) -> None:
    _, http = scripted(obliging)
    assert main(["launch", "codex", "--url", url(http), "--no-check", "--", "exec", "--config", "it's one word"]) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("# then: "))
    assert words[-3:] == ["exec", "--config", "it's one word"]
    assert (
        main(["launch", "continue", "--url", url(http), "--no-check", "--", "x"]) == 0
    )  # shows a file, starts nothing


def test_a_key_is_asked_for_sent_and_not_shown(scripted: Start, capsys: pytest.CaptureFixture[str]) -> None:
    _, http = scripted(obliging, keys=(Key.of("open-sesame"),))
    assert launch(http, "codex", "--no-check") == 2
    assert "asks for a key; give it with --api-key or QWENCH_API_KEY." in capsys.readouterr().err
    assert launch(http, "claude", "--no-check", "--api-key", "open-sesame") == 0
    shown = capsys.readouterr().out
    assert 'export ANTHROPIC_AUTH_TOKEN="$QWENCH_API_KEY"' in shown
    assert launch(http, "continue", "--no-check", "--api-key", "open-sesame") == 0
    shown += capsys.readouterr().out
    assert "open-sesame" not in shown


@pytest.mark.parametrize(
    ("arguments", "sentence", "code"),
    [
        (["claud"], "there is no agent 'claud'; known are claude, codex,", 2),
        (["claude", "--url", "localhost:8000"], "--url is 'localhost:8000'; give an address", 2),
        (["claude", "--url", "http://127.0.0.1:9"], "No server answers at http://127.0.0.1:9", 9),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], sentence: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", *arguments]) == code
    assert capsys.readouterr().err.startswith(f"qwench: {sentence}")


def test_a_model_that_is_not_served_is_named(scripted: Start, capsys: pytest.CaptureFixture[str]) -> None:
    _, http = scripted(obliging)
    assert launch(http, "claude", "--model", "huge") == 2
    assert "does not serve 'huge'; it serves tiny." in capsys.readouterr().err


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_gets_the_address_the_model_and_the_key(name: str) -> None:
    setup = AGENTS[name].setup(SERVED)
    assert setup.saying(("-p", "hi")).command == ((*setup.command, "-p", "hi") if setup.command else ())
    whole = json.dumps([dict(setup.environment), setup.command, setup.file])
    assert "http://127.0.0.1:8000" in whole
    assert NO_KEY in whole
    assert "nano" in whole or name == "open-webui"  # which offers all that is served
    assert bool(setup.command) != bool(setup.file)


def test_codex_takes_its_settings_from_its_command() -> None:
    command = AGENTS["codex"].setup(SERVED).command
    given = dict(word.split("=", 1) for word in command[2::2])
    assert set(command[1::2]) == {"-c"}
    assert given["model_providers.qwench.wire_api"] == '"responses"'
    assert given["model_context_window"] == "4096"


def test_an_agent_that_is_not_installed_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="claude is not installed; `npm install -g"):
        start(AGENTS["claude"], AGENTS["claude"].setup(SERVED))
    with pytest.raises(UsageError, match=r"into ~/\.continue/config\.yaml"):
        start(AGENTS["continue"], AGENTS["continue"].setup(SERVED))


def test_the_agent_is_started_with_its_settings_and_without_what_is_in_the_way(tmp_path: Path) -> None:
    program = tmp_path / "agent"
    program.write_text("#!/bin/sh\nenv > told\n")
    program.chmod(0o700)
    code = (
        "from qwench.cli.agents import Agent, Setup; from qwench.cli.launch import start; "
        "start(Agent('It', lambda _: Setup(), {}, 0, ''), Setup({'MODEL': 'nano'}, ('IN_THE_WAY',), ('agent',)))"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(SOURCE),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "IN_THE_WAY": "1",
    }
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    told = (tmp_path / "told").read_text().splitlines()
    assert "MODEL=nano" in told
    assert "IN_THE_WAY=1" not in told


@pytest.fixture
def stub() -> Iterator[tuple[Wire, dict[str, Any]]]:
    """A server that answers each path with what stands in the dictionary: a document, or the events of a stream."""
    answers: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            found = answers[self.path]
            if body.get("stream"):
                data = b"".join(b": wait\n\nevent: x\ndata: " + json.dumps(event).encode() + b"\n\n" for event in found)
            else:
                data = json.dumps(found).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield Wire(f"http://127.0.0.1:{server.server_port}", NO_KEY), answers
        server.shutdown()


ANTHROPIC = [{"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hi"}}, {"type": "message_stop"}]
OPENAI = [{"type": "response.output_text.delta", "delta": "Hi"}, {"type": "response.completed", "response": {}}]
BROKEN = [{"type": "error", "error": {"message": "it broke"}}]
TOOL_USE = {"content": [{"type": "tool_use", "name": "get_weather", "input": {"city": "Paris"}}]}
FUNCTION_CALL = {"output": [{"type": "function_call", "name": "get_weather", "arguments": '{"city": 1}'}]}


@pytest.mark.parametrize(
    ("check", "path", "answer", "told"),
    [
        (MESSAGES.streams, "/v1/messages", ANTHROPIC, "1 pieces"),
        (RESPONSES.streams, "/v1/responses", OPENAI, "1 pieces"),
        (MESSAGES.calls, "/v1/messages", TOOL_USE, "get_weather"),
        (counts_tokens, "/v1/messages/count_tokens", {"input_tokens": 9}, "9 tokens"),
        (fills_in, "/v1/completions", {"choices": [{"text": " a + b"}]}, "6 characters"),
    ],
)
def test_what_a_server_does_is_told(
    stub: tuple[Wire, dict[str, Any]], check: Check, path: str, answer: Any, told: str
) -> None:
    wire, answers = stub
    answers[path] = answer
    assert check(wire, "nano").startswith(told)


@pytest.mark.parametrize(
    ("check", "path", "answer", "told"),
    [
        (MESSAGES.streams, "/v1/messages", ANTHROPIC[:1], "does not say that it is over"),
        (MESSAGES.streams, "/v1/messages", ANTHROPIC[1:], "streamed no text"),
        (RESPONSES.streams, "/v1/responses", BROKEN, "broke off: it broke"),
        (RESPONSES.calls, "/v1/responses", FUNCTION_CALL, "which its schema refuses"),
        (RESPONSES.calls, "/v1/responses", {"output": []}, "called no tool although it had to"),
        (CHAT.calls, "/v1/chat/completions", {"choices": [{"message": {}}]}, "called no tool"),
        (counts_tokens, "/v1/messages/count_tokens", {}, "gives no input_tokens"),
    ],
)
def test_what_a_server_lacks_is_told(
    stub: tuple[Wire, dict[str, Any]], check: Check, path: str, answer: Any, told: str
) -> None:
    wire, answers = stub
    answers[path] = answer
    with pytest.raises(Lacking, match=told):
        check(wire, "nano")


def test_a_server_that_is_gone_is_one_sentence() -> None:
    with pytest.raises(EngineUnavailable, match="start one with `qwench serve`"):
        counts_tokens(Wire("http://127.0.0.1:9", NO_KEY), "nano")


def test_commands_are_shown_as_a_shell_reads_them(scripted: Start, capsys: pytest.CaptureFixture[str]) -> None:
    _, http = scripted(obliging)
    launch(http, "codex", "--no-check")
    last = capsys.readouterr().out.splitlines()[-1].removeprefix("# then: ")
    assert shlex.split(last)[:3] == ["codex", "-c", 'model="tiny"']
