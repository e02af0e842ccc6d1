"""Pictures, videos and documents over HTTP: seen, counted, bounded, and refused in one sentence."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from qwench.config import EngineConfig
from qwench.engine.client import EngineClient
from qwench.media.pool import Decoders
from qwench.media.settings import Caps
from qwench.server.service import ServerSettings
from qwench.text.model import ModelText
from tests.media.files import NANO, SMALL, bomb, data_uri, document, encoded, noise, video
from tests.server.conftest import NAME, Client, Start, running
from tests.server.scripted import Seeing, answering

CHAT = "/v1/chat/completions"
LEAKS = re.compile(
    r"0x[0-9a-f]{4,}|Traceback|/usr|/work|/tmp|\.py\b|PIL|av\.|Errno|Pdfium|127\.0\.0|localhost", re.IGNORECASE
)


def seeing(_folder: Path) -> Seeing:
    engine = Seeing(NANO, lambda _prompt, sampling: engine.spell("I see.", sampling))
    return engine


def image(data: bytes, kind: str = "image/png", **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_uri(data, kind)}, **more}


def film(data: bytes, **more: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": data_uri(data, "video/mp4")}, **more}


def pdf(data: bytes, **more: Any) -> dict[str, Any]:
    return {"type": "file", "file": {"filename": "a.pdf", "file_data": data_uri(data, "application/pdf")}, **more}


def body(*parts: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "Look: "}, *parts]}], **more}


def test_what_is_shown_reaches_the_engine_and_is_told(scripted: Start) -> None:
    engine, http = scripted(seeing)
    with OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0) as client:
        parts: Any = [image(encoded(noise(640, 480))), film(video([noise(64, 64)] * 8, 4)), pdf(document(2))]
        answer = client.chat.completions.create(model="tiny", messages=body(*parts)["messages"])
    assert answer.choices[0].message.content == "I see."
    (spans,) = engine.shown
    assert [span.media.kind for span in spans] == ["image", "video", "image", "image"]
    told = answer.model_dump()
    details = told["usage"]["prompt_tokens_details"]
    assert details["image_tokens"] == sum(span.media.tokens for span in spans if span.media.kind == "image")
    assert details["video_tokens"] == spans[1].media.tokens
    assert told["media"][0] == {
        "kind": "image",
        "tokens": spans[0].media.tokens,
        "original_size": [640, 480],
        "seen_size": list(spans[0].media.size),
    }
    assert told["media"][1]["seconds"] == list(spans[1].media.seconds)
    assert told["usage"]["prompt_tokens"] > details["image_tokens"] + details["video_tokens"]


def test_a_stream_tells_the_same(scripted: Start) -> None:
    _, http = scripted(seeing)
    asked = body(image(encoded(noise(64, 64))), stream=True, stream_options={"include_usage": True})
    with http.stream("POST", CHAT, json=asked) as answer:
        said = "".join(answer.iter_text())
    assert '"image_tokens":9' in said
    assert '"seen_size":[96,96]' in said


def test_text_alone_says_nothing_of_pictures(scripted: Start) -> None:
    _, http = scripted(seeing)
    told = http.post(CHAT, json={"messages": [{"role": "user", "content": "Hi"}]}).json()
    assert "media" not in told
    assert set(told["usage"]["prompt_tokens_details"]) == {"cached_tokens"}


def test_a_model_without_eyes_names_the_part(scripted: Start) -> None:
    _, http = scripted(answering("Hello."))
    for part in (image(encoded(noise(40, 40))), film(b""), pdf(b"")):
        answer = http.post(CHAT, json=body(part))
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "messages[0].content[1]"
        assert "reads text only" in answer.json()["error"]["message"]


def test_limits_of_request_and_operator(scripted: Start) -> None:
    engine, http = scripted(seeing, media=Caps(max_pixels=50_000, max_frames=8))
    engine.text.vision = SMALL  # nano's own bounds leave nothing to be limited
    big, long = image(encoded(noise(800, 800))), film(video([noise(64, 64)] * 40, 4))

    def told(*parts: Any, **more: Any) -> Any:
        return http.post(CHAT, json=body(*parts, **more)).json()["media"][0]

    def area(told: Any) -> int:
        return int(told["seen_size"][0] * told["seen_size"][1])

    assert 30_000 <= area(told(big)) <= 50_000
    assert area(told(big, max_pixels=10_000)) <= 10_000
    assert area(told({**big, "max_pixels": 10_000})) <= 10_000
    assert area(told(big, mm_processor_kwargs={"max_pixels": 10_000})) <= 10_000
    assert len(told(long)["seconds"]) == 4
    assert len(told(long, max_frames=4)["seconds"]) == 2
    assert len(told(long, media_io_kwargs={"video": {"num_frames": 4}})["seconds"]) == 2
    assert len(told(long, fps=0.5)["seconds"]) == 3


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_pixels": 60_000}, "max_pixels"),
        ({"max_frames": 10**9}, "max_frames"),
        ({"fps": -1.0}, "fps"),
        ({"min_pixels": 0}, "min_pixels"),
        ({"media_io_kwargs": {"video": {"num_frames": 10**9}}}, "media_io_kwargs.video.max_frames"),
        ({"media_io_kwargs": {"video": 3}}, "media_io_kwargs.video"),
        ({"mm_processor_kwargs": {"max_pixels": 10**12}}, "mm_processor_kwargs.max_pixels"),
        ({"mm_processor_kwargs": {"videos_kwargs": {}}}, "mm_processor_kwargs"),
    ],
)
def test_a_limit_that_goes_too_far_is_named(fields: dict[str, Any], param: str, scripted: Start) -> None:
    _, http = scripted(seeing, media=Caps(max_pixels=50_000))
    answer = http.post(CHAT, json=body(image(encoded(noise(64, 64))), **fields))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


FILM = video([noise(64, 64)] * 8, 4)
HOSTILE: dict[str, tuple[dict[str, Any], int]] = {
    "zero bytes": (image(b""), 400),
    "one byte": (image(b"x"), 400),
    "text": (image(b"hello world"), 400),
    "half a PNG": (image(encoded(noise(64, 64))[:2000]), 400),
    "a bomb": (image(bomb(50_000, 50_000)), 413),
    "a smaller bomb": (image(bomb(11_000, 11_000)), 413),
    "a bomb that lies": (image(bomb(9_000, 9_000)), 400),
    "1 by 20000": (image(encoded(noise(1, 20_000))), 400),
    "wrong type": (image(encoded(noise(64, 64)), "text/html"), 400),
    "garbage": ({"type": "image_url", "image_url": {"url": "data:image/png;base64,!!!"}}, 400),
    "a web address": ({"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}, 400),
    "a metadata address": ({"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}, 400),
    "a file": ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, 400),
    "a path": ({"type": "video_url", "video_url": {"url": "/etc/passwd"}}, 400),
    "ftp": ({"type": "image_url", "image_url": {"url": "ftp://127.0.0.1/x"}}, 400),
    "an object": ({"type": "image_url", "image_url": {"url": {"a": 1}}}, 400),
    "half a video": (film(FILM[: len(FILM) // 2]), 400),
    "a playlist": (film(b"#EXTM3U\nhttp://127.0.0.1/x\n"), 400),
    "AVI": (film(b"RIFF\x00\x01\x00\x00AVI LIST" + bytes(500)), 400),
    "no frames": ({"type": "video", "video": []}, 400),
    "5,000 frames": ({"type": "video", "video": [data_uri(b"x")] * 5000}, 413),
    "100,000 commas": ({"type": "video_url", "video_url": {"url": "data:video/jpeg;base64," + "," * 100_000}}, 413),
    "10,000 pages": (pdf(document(10_000)), 413),
    "half a document": (pdf(document(3)[:150]), 400),
    "not a document": (pdf(b"MZ" + bytes(100)), 400),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_seen_is_one_sentence_and_the_server_lives(name: str, watched: httpx.Client) -> None:
    part, status = HOSTILE[name]
    answer = watched.post(CHAT, json=body(part))
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert error["param"] == "messages[0].content[1]"
    assert error["message"].startswith("messages[0].content[1] ")
    assert error["message"].endswith(".")
    assert not LEAKS.search(error["message"])
    assert watched.post(CHAT, json=body(image(encoded(noise(64, 64))))).status_code == 200


@pytest.fixture(scope="module")
def watched() -> Iterator[httpx.Client]:
    """One server for all that is hostile."""
    engine = seeing(NANO)
    settings = ServerSettings(names=(NAME,))
    with running(engine, engine.text, settings) as address, Client(base_url=address, timeout=60) as client:
        yield client


def test_base64_may_have_line_breaks(watched: httpx.Client) -> None:
    url = data_uri(encoded(noise(64, 64)))
    head, _, packed = url.partition(",")
    lines = "\r\n".join(packed[at : at + 76] for at in range(0, len(packed), 76))
    part = {"type": "image_url", "image_url": {"url": f"{head},\n{lines}\n"}}
    assert watched.post(CHAT, json=body(part)).status_code == 200


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (27, 29), (31, 6000)])
def test_small_and_thin_pictures_are_seen(size: tuple[int, int], watched: httpx.Client) -> None:
    assert watched.post(CHAT, json=body(image(encoded(noise(*size))))).status_code == 200


def test_tokens_can_be_counted_beforehand(watched: httpx.Client) -> None:
    asked = body(image(encoded(noise(128, 128))))
    counted = watched.post("/tokenize", json=asked).json()["count"]
    assert counted == watched.post(CHAT, json=asked).json()["usage"]["prompt_tokens"]


@contextmanager
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Decoding that takes until the event is set."""
    go = threading.Event()
    plain = Decoders.decode

    def waits(self: Decoders, *given: Any, **more: Any) -> Any:
        assert go.wait(20)
        return plain(self, *given, **more)

    monkeypatch.setattr(Decoders, "decode", waits)
    yield go
    go.set()


def test_text_does_not_wait_for_pictures(scripted: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, http = scripted(seeing)
    with slow(monkeypatch) as go:
        asked = body(image(encoded(noise(64, 64))))
        threads = [threading.Thread(target=http.post, args=(CHAT,), kwargs={"json": asked}) for _ in range(12)]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        start = time.monotonic()
        assert http.post(CHAT, json={"messages": [{"role": "user", "content": "Hi"}]}).status_code == 200
        assert time.monotonic() - start < 3
        assert not any(engine.shown)
        go.set()
        for thread in threads:
            thread.join(20)
    assert sum(map(bool, engine.shown)) == 12


def test_too_many_pictures_at_once_are_told_to_come_again(scripted: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwench.server.service.LOOKING", 2)
    _, http = scripted(seeing)
    statuses: list[int] = []
    with slow(monkeypatch) as go:
        asked = body(image(encoded(noise(64, 64))))
        threads = [
            threading.Thread(target=lambda: statuses.append(http.post(CHAT, json=asked).status_code)) for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 10
        while len(statuses) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        go.set()
        for thread in threads:
            thread.join(20)
    assert sorted(statuses) == [200, 200, 429, 429, 429]


def test_the_embedded_model_reads_a_data_uri() -> None:
    client = EngineClient(EngineConfig(model="nano", device="cpu"))
    text = ModelText(client.files, client.model)
    client.start(text.vocabulary)
    picture = (Path(__file__).parents[2] / "docs" / "number.png").read_bytes()
    parts: Any = [image(picture), {"type": "text", "text": "What number is this?"}]
    try:
        client.wait_ready()
        with (
            running(client, text, ServerSettings(names=("nano",))) as address,
            OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as openai,
        ):
            messages: Any = [{"role": "user", "content": parts}]
            answer = openai.chat.completions.create(model="nano", messages=messages, temperature=0)
    finally:
        client.close()
    assert answer.choices[0].message.content == "4071"
