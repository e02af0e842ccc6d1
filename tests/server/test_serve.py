"""``qwench serve``: who may connect, what is told, and how it ends."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

import qwench
from qwench.cli import main
from qwench.cli.engine import engine_config
from qwench.cli.serve import (
    EVERY_IPV4,
    add_arguments,
    bind,
    check_exposure,
    read_all_keys,
    read_max_body,
    served_names,
    url,
)
from qwench.errors import UsageError
from qwench.server.keys import Key
from tests.server.conftest import wait_until

SOURCE = Path(qwench.__file__).parents[1]


@contextmanager
def serve(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``qwench serve`` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "qwench", "serve", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    with process:
        try:
            yield process
        finally:
            process.kill()  # a test that failed would wait for it forever


def address_of(process: subprocess.Popen[str]) -> str:
    """Where it listens, once it says so."""
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"listens on (http://\S+)", line):
            return found[1]
    raise AssertionError("it ended before it listened")


def test_nano_is_served_by_default_and_a_newcomer_changes_only_the_address() -> None:
    with serve("--port", "0") as process:
        with OpenAI(base_url=f"{address_of(process)}/v1", api_key="none", max_retries=0) as client:
            hello: Any = [{"role": "user", "content": "Hello!"}]
            answer = client.chat.completions.create(model="nano", messages=hello, max_tokens=12)
            assert answer.choices[0].message.content
            events = client.chat.completions.create(model="nano", messages=hello, max_tokens=12, stream=True)
            assert "".join(event.choices[0].delta.content or "" for event in events)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 0
    assert stdout == ""
    assert "Traceback" not in stderr


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def test_a_served_name_a_key_and_the_end_by_control_c(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    seen: list[object] = []

    def use() -> None:
        try:
            wait_until(lambda: _is_ready(address), 60)
            asked = {"prompt": "Hello", "model": "mine", "max_tokens": 2}
            seen.append(httpx.post(f"{address}/v1/completions", json=asked).status_code)
            answer = httpx.post(f"{address}/v1/completions", json=asked, headers={"authorization": "Bearer k"})
            seen.append(answer.json()["usage"]["completion_tokens"])
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    user = threading.Thread(target=use)
    user.start()
    assert main(["serve", str(checkpoint), "--port", str(port), "--served-name", "mine", "--api-key", "k"]) == 0
    user.join()
    assert seen == [401, 2]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f'curl {address}/v1/chat/completions -H "Authorization: Bearer $QWENCH_API_KEY"' in captured.err


def _is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health").status_code == 200
    except httpx.ConnectError:
        return False


def test_a_model_that_cannot_be_loaded_ends_it_with_one_sentence(
    text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(text_folder, tmp_path / "damaged"))
    (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    assert main(["serve", str(folder), "--port", "0"]) == 4
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("qwench: ")
    assert "model.safetensors" in last


def test_a_port_in_use_is_told_before_the_model_is_looked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "no-such-model", "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert error == f"qwench: port {port} on 127.0.0.1 is in use; stop what listens there or choose another --port.\n"


@pytest.mark.parametrize(
    ("host", "port", "sentence"),
    [
        ("127.0.0.1", 70_000, "--port is 70000"),
        ("127.0.0.1", -1, "--port is -1"),
        ("no such host", 0, "--host no such host is no address"),
        ("192.0.2.1", 0, "cannot listen on 192.0.2.1"),
    ],
)
def test_an_address_that_cannot_be_had_is_one_sentence(host: str, port: int, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        bind(host, port)


@pytest.mark.parametrize("host", [EVERY_IPV4, "::", "192.168.1.5", "example.org", ""])
def test_other_machines_need_a_key_unless_told_otherwise(host: str) -> None:
    with pytest.raises(UsageError, match="--api-key KEY, or --allow-no-key"):
        check_exposure(host, (), allowed=False)
    check_exposure(host, (), allowed=True)
    check_exposure(host, (Key.of("key"),), allowed=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.9"])
def test_this_machine_needs_none(host: str) -> None:
    check_exposure(host, (), allowed=False)
    with pytest.raises(UsageError, match="key is empty"):
        read_all_keys(["key", " "], None)


def test_the_key_comes_from_the_environment_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QWENCH_API_KEY", "")
    assert main(["serve", "--host", EVERY_IPV4]) == 2
    assert "the API key is empty" in capsys.readouterr().err


def test_flags_become_the_engines_configuration() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    flags = "qwen3.5:4b --max-model-len 4096 --max-num-seqs 8 --memory 2GiB --device cpu --dtype float32 --offline"
    config = engine_config(parser.parse_args(flags.split()))
    assert (config.model, config.device, config.dtype, config.offline) == ("qwen3.5:4b", "cpu", "float32", True)
    assert (config.max_model_len, config.max_num_seqs, config.memory) == (4096, 8, 2 << 30)
    assert engine_config(parser.parse_args([])).model == "nano"


@pytest.mark.parametrize(("text", "found"), [("64MiB", 2**26), ("1k", 1024), ("5", None), ("much", None)])
def test_how_large_a_body_may_be(text: str, found: int | None) -> None:
    if found is not None:
        assert read_max_body(text) == found
        return
    with pytest.raises(UsageError, match="--max-body is"):
        read_max_body(text)


def test_the_served_names(tmp_path: Path) -> None:
    (tmp_path / "My-Model").mkdir()
    assert served_names("nano", None) == ("nano",)
    assert served_names("Qwen/Qwen3.5-4B", None) == ("Qwen/Qwen3.5-4B", "qwen3.5:4b")
    assert served_names("qwen3.5:4b", "mine") == ("mine", "qwen3.5:4b")
    assert served_names(str(tmp_path / "My-Model"), None) == ("My-Model",)
    assert served_names(f"{tmp_path}/My-Model/", None) == ("My-Model",)


def test_the_address_told_is_one_that_works_here() -> None:
    assert url(EVERY_IPV4, 1) == "http://127.0.0.1:1"
    assert url("::", 1) == "http://[::1]:1"
    assert url("::1", 1) == "http://[::1]:1"
    assert url("localhost", 1) == "http://localhost:1"


def test_the_server_and_its_schemas_load_no_torch() -> None:
    program = (
        "import sys, json, qwench.server.app; print(json.dumps([name for name in sys.modules if name == 'torch']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert json.loads(done.stdout) == []
