"""Hostile requests that try to reach out of the request: addresses, files, media, templates, tensors, administration."""

from __future__ import annotations

import base64
import gzip
import io
import pickle
from collections.abc import Iterator
from typing import Any

from tests.hostile.target import CHAT, COMPLETIONS, EITHER, HELLO, NAMED, Case
from tests.media.files import bomb, data_uri, document, encoded, noise, video

LOOPBACK = (
    "127.0.0.1", "localhost", "LOCALHOST.", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0.0.0.0",  # noqa: S104
    "[::1]", "[::]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "127.0.0.1.nip.io", "good@127.0.0.1",
)  # fmt: skip
NETWORK = (
    "169.254.169.254",
    "10.0.0.1",
    "192.168.0.1",
    "172.16.0.1",
    "[fe80::1]",
    "[fc00::1]",
    "metadata.google.internal",
)
SCHEMES = ("file:///etc/passwd", "/etc/passwd", "../../etc/passwd", "ftp://{}/x", "gopher://{}/_x", "dict://{}/x",
           "jar:http://{}!/x", "unix:///tmp/x", "\\\\{}\\share\\x", "//{}/x", "concat:http://{}/x", "data:,http://{}/x",
           "blob:http://{}/x", "javascript:0", "hTTp:/{}/x", "http:///{}/x", "http://{}\\@good.example/x",
           "http://good.example\\@{}/x", "http://good.example#@{}/x", "http://good.example?@{}/x", "http://{} /x",
           "http://{}\t/x", "http://{}\n/x", "\nhttp://{}/x", "http://{}%00/x", "http://%6c%6fcalhost/x")  # fmt: skip
ROUTES = (CHAT, "/tokenize", "/apply-template")
FIELDS_OF_ADDRESSES = ("api_base", "base_url", "proxy", "endpoint", "webhook", "callback_url", "server_url", "url")


def message(*parts: Any, **more: Any) -> dict[str, Any]:
    """A chat body that shows ``parts``."""
    content = [{"type": "text", "text": "Look: "}, *parts]
    return {**NAMED, "messages": [{"role": "user", "content": content}], "max_tokens": 1, **more}


def picture(address: object, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": address}, **more}


def ssrf(port: int) -> Iterator[Case]:
    """Wherever an address can stand. ``port``: of a listener on this machine that must not be visited."""
    part: Any
    for host in (*LOOPBACK, *NETWORK):
        yield Case(f"image at {host}", message(picture(f"http://{host}:{port}/x.png")))
    for scheme in SCHEMES:
        address = scheme.format(f"127.0.0.1:{port}")
        yield Case(f"image at {scheme!r}", message(picture(address)))
        yield Case(f"video at {scheme!r}", message({"type": "video_url", "video_url": {"url": address}}))
    there = f"http://127.0.0.1:{port}/x"
    for route in ROUTES:
        yield Case(f"image on {route}", message(picture(there)), route)
        yield Case(f"frames on {route}", message({"type": "video", "video": [there, there]}), route)
    for part in (
        {"type": "file", "file": {"file_url": there}},
        {"type": "file", "file": {"file_data": there}},
        {"type": "file", "file": {"file_id": there}},
        {"type": "input_file", "file_url": there},
        {"type": "document", "source": {"type": "url", "url": there}},
        {"type": "image", "source": {"type": "url", "url": there}},
        {"type": "image", "image": there},
        {"type": "input_image", "image_url": there},
        {"type": "input_audio", "input_audio": {"data": there, "format": "wav"}},
        {"type": "audio_url", "audio_url": {"url": there}},
    ):
        yield Case(f"part {part['type']}", message(part))
    svg = f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{there}"/></svg>'.encode()
    yield Case("svg that pulls an address", message(picture(data_uri(svg, "image/svg+xml"))))
    playlist = f"#EXTM3U\n#EXTINF:1,\n{there}\n".encode()
    yield Case("playlist", message({"type": "video_url", "video_url": {"url": data_uri(playlist, "video/mp4")}}))
    yield Case(
        "markdown image", {"messages": [{"role": "user", "content": f"![x]({there})"}], "max_tokens": 1}, allowed=EITHER
    )
    for name in FIELDS_OF_ADDRESSES:
        yield Case(f"field {name}", {"messages": HELLO, "max_tokens": 1, name: there}, allowed=EITHER)
    for header in ("x-direct-url", "x-forwarded-host", "x-original-url", "x-rewrite-url", "forwarded", "x-upstream"):
        body = {"messages": HELLO, "max_tokens": 1}
        yield Case(f"header {header}", body, headers={header: there}, allowed=EITHER)
    for reference in (there, "file:///etc/passwd", f"{there}#/x"):
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": reference}}}
        yield Case(f"$ref to {reference}", {"messages": HELLO, "response_format": form})
    tool = {"type": "mcp", "server_label": "x", "server_url": there, "require_approval": "never"}
    yield Case("tool with a server", {"messages": HELLO, "tools": [tool]})


FILM = video([noise(64, 64)] * 8, 4)
FORMATS = {
    "FITS": gzip.compress(b"SIMPLE  =                    T" + bytes(50_000)),
    "plain FITS": b"SIMPLE  =                    T" + bytes(2_880),
    "PSD": b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\xff\xff\0\0\xff\xff\0\x08\0\3",
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%BeginBinary: -5\n",
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(200),
    "DDS": b"DDS " + bytes(124),
    "TIFF": b"II*\0\x08\0\0\0" + bytes(200),
    "ICO": b"\0\0\1\0\1\0" + bytes(200),
    "WMF": b"\xd7\xcd\xc6\x9a" + bytes(200),
    "GIF of no size": b"GIF89a" + bytes(20),
    "BMP of -1": b"BM" + bytes(12) + b"\x28\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\1\0\x18\0" + bytes(24),
    "text": b"hello",
    "zip": b"PK\3\4" + bytes(100),
    "ELF": b"\x7fELF" + bytes(100),
}


def media() -> Iterator[Case]:
    """Files that lie, that grow, or that only rare decoders know."""
    fields: Any
    part: Any
    for name, data in FORMATS.items():
        for kind in ("image/png", "image/jpeg"):
            yield Case(f"{name} as {kind}", message(picture(data_uri(data, kind))))
        yield Case(
            f"{name} as a video", message({"type": "video_url", "video_url": {"url": data_uri(data, "video/mp4")}})
        )
    png = encoded(noise(64, 64))
    for length in (0, 1, 7, 8, 20, 33, 100, len(png) // 2, len(png) - 13):
        yield Case(f"PNG of {length} bytes", message(picture(data_uri(png[:length]))), allowed=EITHER)
    for width, height in ((0, 0), (1, 1 << 31), (60_000, 60_000), (1, 30_000), (10_000, 10_000)):
        yield Case(f"PNG that says {width} by {height}", message(picture(data_uri(bomb(width, height)))))
    for length in (10, 60, 300, len(FILM) // 2):
        part = {"type": "video_url", "video_url": {"url": data_uri(FILM[:length], "video/mp4")}}
        yield Case(f"film of {length} bytes", message(part))
    for size in ((1, 1), (2, 3), (27, 29)):
        yield Case(f"picture {size}", message(picture(data_uri(encoded(noise(*size))))), allowed=EITHER)
    good = data_uri(png)
    yield Case("5,000 frames", message({"type": "video", "video": [good[:40]] * 5_000}))
    yield Case(
        "100,000 commas",
        message({"type": "video_url", "video_url": {"url": "data:video/jpeg;base64," + "," * 100_000}}),
    )
    yield Case("2,000 pictures", message(*[picture(good[:60])] * 2_000))
    for fields in (
        {"media_io_kwargs": {"video": {"num_frames": 10**9}}},
        {"media_io_kwargs": {"video": {"fps": 1e9}}},
        {"mm_processor_kwargs": {"max_pixels": 10**12}},
        {"mm_processor_kwargs": {"code_revision": "main"}},
        {"max_frames": 10**9},
        {"max_pages": 10**9},
        {"fps": 1e308},
        {"min_pixels": -1},
    ):
        yield Case(f"{fields}", message(picture(good), **fields))
    vague = {"type": "image_url", "image_url": {"url": good, "detail": {}}}
    yield Case("detail of another type", message(vague), allowed=EITHER)
    yield Case("a uuid", message(picture(good, uuid="../../x")), allowed=EITHER)
    yield Case(
        "forged grid", message(picture(good, grid_thw=[1, 10**6, 10**6], image_grid_thw=[9, 9, 9])), allowed=EITHER
    )
    for part in (
        picture(None), picture(5), picture([good]), picture({"url": good}), {"type": "image_url"}, {"type": "image_url", "image_url": 5},
        {"type": "video", "video": []}, {"type": "video", "video": {}}, {"type": "video", "video": [[good]]}, {"type": "file"},
        {"type": "file", "file": {"file_data": "%"}}, {"type": "image", "source": {"type": "base64", "data": 5}},
        {"type": "image", "source": {"type": "base64"}}, {"type": ["image_url"]},
        {"type": "file", "file": {"file_data": data_uri(document(3)[:120], "application/pdf")}},
        {"type": "file", "file": {"file_data": data_uri(document(2), "application/pdf")}, "pages": "9-1"},
        {"type": "file", "file": {"file_data": data_uri(document(2), "application/pdf")}, "pages": "1-999999999999"},
    ):  # fmt: skip
        yield Case(f"part {str(part)[:60]}", message(part))


def templates() -> Iterator[Case]:
    """Code where a template is, or may be."""
    escapes = (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ lipsum.__globals__['os'].popen('true').read() }}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{{ 'x' * 1000000000 }}",
        "{{ ('{0.__class__}').format(messages) }}",
        "{{ messages|attr('__class__') }}",
        "{% include '/etc/passwd' %}",
    )
    for escape in escapes:
        for path in ROUTES:
            told = {"messages": HELLO, "max_tokens": 1, "chat_template": escape}
            yield Case(f"chat_template {escape[:20]} on {path}", told, path, allowed=EITHER)
        spoken = {"messages": [{"role": "user", "content": escape}], "max_tokens": 1}
        yield Case(f"said: {escape[:20]}", spoken, allowed=EITHER)
        yield Case(
            f"variable: {escape[:20]}",
            {"messages": HELLO, "max_tokens": 1, "chat_template_kwargs": {"x": escape}},
            allowed=EITHER,
        )
    for name in ("messages", "tools", "add_generation_prompt", "raise_exception", "strftime_now", "range", "namespace"):
        told = {"messages": HELLO, "chat_template_kwargs": {name: []}}
        yield Case(f"variable {name}", told, allowed=EITHER if name in ("range", "namespace") else Case.allowed)
    yield Case(
        "500 variables",
        {"messages": HELLO, "max_tokens": 1, "chat_template_kwargs": {f"v{n}": n for n in range(500)}},
        allowed=EITHER,
    )
    yield Case("template test route", {"template": "{{ 1 }}"}, "/prompts/test")


class Canary:
    """Would run where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("unpickled",))


def embeddings() -> Iterator[Case]:
    """Tensors and code in requests."""
    stream = io.BytesIO()
    pickle.dump(Canary(), stream)
    packed = base64.b64encode(stream.getvalue()).decode()
    for field in (
        "prompt_embeds",
        "image_embeds",
        "custom_logit_processor",
        "logits_processors",
        "kv_transfer_params",
        "lora_path",
    ):
        for value in (packed, [packed], {"data": packed}, 5):
            yield Case(
                f"{field} {str(value)[:12]} in chat", {"messages": HELLO, "max_tokens": 1, field: value}, allowed=EITHER
            )
            yield Case(
                f"{field} {str(value)[:12]}",
                {"prompt": "x", "max_tokens": 1, field: value},
                COMPLETIONS,
                allowed=EITHER,
            )
    yield Case("embeddings alone", {"prompt_embeds": packed}, COMPLETIONS)
    for kind in ("image_embeds", "audio_embeds", "input_audio", "video_embeds"):
        yield Case(f"part {kind}", message({"type": kind, kind: packed}))
    for path in (
        "/update_weights_from_tensor",
        "/update_weights_from_disk",
        "/load_lora_adapter",
        "/v1/load_lora_adapter",
    ):
        yield Case(path, {"serialized": packed, "path": "/etc/passwd"}, path)


ADMINISTRATION = (
    "/admin", "/config", "/get_config", "/shutdown", "/pause", "/resume", "/sleep", "/wake_up", "/reset_prefix_cache",
    "/start_profile", "/stop_profile", "/collective_rpc", "/invocations", "/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank",
    "/pooling", "/classify", "/v1/embeddings", "/embeddings", "/v1/audio/transcriptions", "/v1/images/generations", "/api/pull", "/api/push",
    "/api/create", "/api/copy", "/api/delete", "/api/blobs/sha256:0", "/jobs/", "/api/jobs/", "/key/generate", "/key/block", "/user/new",
    "/guardrails/test_custom_code", "/mcp-rest/test/connection", "/health/services", "/get/config/callbacks", "/update/hashes", "/server_info",
    "/get_server_info", "/flush_cache", "/slots", "/props", "/lora-adapters", "/debug", "/metrics/../config", "/actuator/env", "/.env", "/.git/config",
    "/console", "/graphql", "/phpinfo.php", "/server-status", "/v1/internal/model/load", "/_cat/indices", "/configure", "/api/config",
)  # fmt: skip


def administration() -> Iterator[Case]:
    """What other servers leave open. Nothing here changes anything, and nothing that is not ours is answered."""
    for path in ADMINISTRATION:
        yield Case(f"GET {path}", None, path, "GET")
        yield Case(f"POST {path}", {"model": "x", "name": "x"}, path)
    for method in ("DELETE", "PUT", "PATCH", "TRACE", "CONNECT", "PROPFIND", "__class__"):
        for path in ("/", CHAT, "/v1/models", "/v1/models/nano", "/health", "/api/serve/applications/"):
            yield Case(f"{method} {path}", None, path, method)
    for path in ("/v1/models?bypass_filter=true", "/metrics?admin=1", "/health?debug=true"):
        yield Case(f"GET {path}", None, path, "GET", allowed=EITHER)
