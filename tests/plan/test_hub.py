"""A model on the Hub is planned by its headers: a server that speaks as the Hub does, and counts what it sends."""

from __future__ import annotations

import json
import re
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from qwench import cli
from qwench.bench.random_gguf import write_random_gguf
from qwench.plan import hub
from qwench.plan.model import from_files
from tests.bench.test_random_gguf import small
from tests.meta.tree import ROOT

DENSE = ROOT / "src" / "qwench" / "assets" / "nano"
TREE, FILE = re.compile(r"/api/models/([\w.-]+/[\w.-]+)/tree/main"), re.compile(r"/([\w.-]+/[\w.-]+)/resolve/main/(.+)")


@dataclass
class Hub:
    """``files`` by repository and name; large ones are led to another host, as there. ``sent``: bytes of each."""

    url: str = ""
    elsewhere: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    keys: list[tuple[str, str | None]] = field(default_factory=list)
    ranges: bool = True
    status: int = 0


def handler(told: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers["host"]
            told.keys.append((host, self.headers["authorization"]))
            path, _, _ = self.path.partition("?")
            tree, file = TREE.fullmatch(path), FILE.fullmatch(path)
            if told.status:
                return self.answer(told.status, b"")
            if tree and tree[1] in told.files:
                listed = [
                    {"type": "file", "path": name, "size": len(data)} for name, data in told.files[tree[1]].items()
                ]
                return self.answer(200, json.dumps([*listed, {"type": "directory", "path": "more"}]).encode())
            if file is None or file[2] not in told.files.get(file[1], {}):
                return self.answer(404, b"")
            if not file[2].endswith(".json") and not host.startswith("localhost"):
                return self.answer(302, b"", location=f"{told.elsewhere}{path}")
            data, asked = told.files[file[1]][file[2]], re.fullmatch(r"bytes=0-(\d+)", self.headers["range"] or "")
            part = data[: int(asked[1]) + 1] if asked and told.ranges else data
            told.sent[file[2]] = told.sent.get(file[2], 0) + len(part)
            return self.answer(206 if asked and told.ranges else 200, part)

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(body)
            except ConnectionError:
                self.close_connection = True  # who asked has enough

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    told = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(told)) as server:
        port = server.server_address[1]
        told.url, told.elsewhere = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_ENDPOINT", told.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        yield told
        server.shutdown()


def test_a_gguf_file_is_counted_from_its_beginning(there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "small-Q4_K_M.gguf"
    write_random_gguf(path, small("qwen3.5:35b-a3b"), "Q4_K_M")
    there.files["ann/small-GGUF"] = {path.name: path.read_bytes()}
    monkeypatch.setattr(hub, "FIRST", 1024)  # a header that takes several questions, as one with a vocabulary does
    with hub.headers(f"ann/small-GGUF/{path.name}") as found:
        assert from_files("x", found, None) == from_files("x", path, None)
    assert 1024 < there.sent[path.name] < path.stat().st_size / 2
    assert "Bearer hf_secret" in {key for host, key in there.keys if not host.startswith("localhost")}
    assert {key for host, key in there.keys if host.startswith("localhost")} == {None}, "the token left the Hub"


def quantised(there: Hub) -> int:
    """A quantised checkpoint of two files. Returns the bytes of its tensors of text."""
    config = json.loads((DENSE / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
    files = {"config.json": json.dumps(config).encode()}
    for number, size in enumerate((3_000_000, 5_000_000)):
        tensors = {f"model.layers.{number}.x": {"dtype": "I8", "shape": [size], "data_offsets": [0, size]}}
        header = json.dumps({**tensors, "__metadata__": {"padding": " " * number * hub.FIRST}}).encode()
        files[f"model-{number}.safetensors"] = struct.pack("<Q", len(header)) + header + bytes(size)
    there.files["ann/quantised"] = files
    return 8_000_000


@pytest.mark.parametrize("ranges", [True, False])
def test_a_quantised_folder_is_counted_from_the_headers_of_its_files(there: Hub, *, ranges: bool) -> None:
    size, there.ranges = quantised(there), ranges
    with hub.headers("ann/quantised") as found:
        planned = from_files("x", found, None)
    assert planned.weight_bytes == pytest.approx(size)
    assert planned.source == "headers in quantised"
    if ranges:
        assert sum(there.sent.values()) < size / 2, "more than headers was asked for"


def test_a_plan_of_a_model_on_the_hub_is_a_plan(there: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    there.files["ann/plain"] = {"config.json": (DENSE / "config.json").read_bytes(), "model.safetensors": bytes(10**6)}
    assert cli.main(["plan", "ann/plain", "--hardware", "rtx-4090"]) == 0
    told = capsys.readouterr().out
    assert "ann/plain at bf16 on NVIDIA RTX 4090" in told
    assert "It fits:" in told
    assert set(there.sent) == {"config.json"}, "plain weights are what the configuration says"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("ann/none", "The Hub has no ann/none, or it is not open to you"),
        ("ann/files", "ann/files has no config.json on the Hub; name a file, such as ann/files/a.gguf"),
        ("ann/files/b.gguf", "ann/files has no b.gguf on the Hub; it has a.gguf"),
        ("ann/files/a.gguf", "ann/files on the Hub/a.gguf"),
        ("ann/short", "is no safetensors file"),
    ],
)
def test_what_the_hub_does_not_have_is_one_sentence(
    there: Hub, name: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    quantised(there)
    there.files["ann/files"] = {"a.gguf": b"GGUF no more"}
    there.files["ann/short"] = {"config.json": there.files["ann/quantised"]["config.json"], "x.safetensors": b"1"}
    assert cli.main(["plan", name]) != 0
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1


def test_a_hub_that_fails_or_is_gone_is_one_sentence(
    there: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "LARGEST", 1)
    quantised(there)
    assert cli.main(["plan", "ann/quantised"]) != 0
    assert "does not list the files of ann/quantised as the Hub does" in capsys.readouterr().err
    there.status = 503
    assert cli.main(["plan", "ann/plain"]) != 0
    assert "the Hub answered 503; try again later" in capsys.readouterr().err
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert cli.main(["plan", "ann/plain"]) != 0
    told = capsys.readouterr().err
    assert "and the Hub cannot be reached" in told
    assert told.count("\n") == 1
