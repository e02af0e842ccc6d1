"""``qwench chat`` and ``qwench generate`` with something to look at."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from qwench import cli
from qwench.errors import UsageError
from tests.media.files import NANO, data_uri, document, encoded, noise, video
from tests.server.scripted import Seeing, install
from tests.server.test_media import seeing

Capsys = pytest.CaptureFixture[str]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Seeing:
    found = seeing(NANO)
    install(monkeypatch, lambda _config: found)
    return found


def test_files_are_looked_at_with_the_first_question(engine: Seeing, tmp_path: Path, capsys: Capsys) -> None:
    picture, film, paper = tmp_path / "a.png", tmp_path / "b.mp4", tmp_path / "c.pdf"
    picture.write_bytes(encoded(noise(300, 200)))
    film.write_bytes(video([noise(64, 64)] * 8, 4))
    paper.write_bytes(document(3))
    flags = ["--image", str(picture), "--video", str(film), "--document", str(paper), "--pages", "2-3"]
    assert cli.main(["chat", "nano", *flags, "--max-pixels", "40000", "-p", "What is it?"]) == 0
    told = capsys.readouterr()
    assert told.out == "I see.\n"
    assert f"{picture}: 300 by 200 seen as " in told.err
    assert f"{paper}, picture 2: " in told.err
    (spans,) = engine.shown
    assert [span.media.kind for span in spans] == ["image", "video", "image", "image"]
    assert all(span.media.size[0] * span.media.size[1] <= 40_000 for span in spans)
    assert engine.prompts[0].index("<|image_pad|>") < engine.prompts[0].index("What is it?")


@pytest.mark.parametrize(
    ("content", "flags", "sentence"),
    [
        (None, ["--image"], "cannot be opened (No such file or directory)"),
        (b"hello", ["--image"], "is not a picture in a format known here"),
        (encoded(noise(64, 64)), ["--video"], "is not a video in a container known here"),
        (document(3), ["--pages", "9", "--document"], "has 3 pages, and page 9 is asked for"),
    ],
)
def test_a_file_that_cannot_be_seen_is_told_before_the_model_is_loaded(
    engine: Seeing, tmp_path: Path, capsys: Capsys, content: bytes | None, flags: list[str], sentence: str
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    assert cli.main(["chat", "nano", *flags, str(path), "-p", "x"]) == UsageError.exit_code
    told = capsys.readouterr()
    assert f"{flags[-1]} {path} {sentence}" in told.err
    assert not engine.submitted


def test_web_addresses_are_fetched_only_with_the_flag(engine: Seeing, capsys: Capsys) -> None:
    for flags, sentence in (
        ([], "not fetched without --allow-media-url"),
        (["--allow-media-url"], "that is not fetched"),
    ):
        arguments = ["chat", "nano", *flags, "--image", "http://127.0.0.1/x.png", "-p", "x"]
        assert cli.main(arguments) == UsageError.exit_code
        assert sentence in capsys.readouterr().err


def test_a_batch_looks_at_its_lines(engine: Seeing, tmp_path: Path) -> None:
    def line(number: int, url: str) -> str:
        parts: list[Any] = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
        body = {"messages": [{"role": "user", "content": parts}]}
        return json.dumps({"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body})

    source, results = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(noise(64, 64)))
    urls = [data_uri(encoded(noise(64, 64))), str(secret), "http://127.0.0.1/x.png"]
    source.write_text("\n".join(line(number, url) for number, url in enumerate(urls)), encoding="utf-8")
    cli.main(["generate", "nano", str(source), "-o", str(results)])
    found = {each["custom_id"]: each["response"] for each in map(json.loads, results.read_text().splitlines())}
    assert [found[str(number)]["status_code"] for number in range(3)] == [200, 400, 400]
    assert found["0"]["body"]["usage"]["prompt_tokens_details"]["image_tokens"] == 9


def test_the_embedded_model_reads_the_picture_of_the_docs(capsys: Capsys) -> None:
    """What docs/vision.md shows is what comes."""
    docs = Path(__file__).parents[2] / "docs"
    shown = re.search(
        r"\$ qwench (chat --image docs/(\S+) -p \"([^\"]+)\")\n(.+)\n", (docs / "vision.md").read_text(encoding="utf-8")
    )
    assert shown is not None
    assert cli.main(["chat", "--image", str(docs / shown[2]), "-p", shown[3], "--temperature", "0"]) == 0
    assert capsys.readouterr().out == f"{shown[4]}\n"
