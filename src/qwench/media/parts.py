"""Parts of messages that are to be looked at, in the spellings of OpenAI, Qwen, Anthropic and vLLM, as one form.

Knows no bytes: what a part holds is read by ``reader.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from qwench.errors import RequestError
from qwench.media.settings import Caps

LOW_DETAIL = 512 * 512  # pixels; OpenAI's size of a picture seen roughly
DETAILS = ("low", "high", "auto", "original")
KINDS: Mapping[str, Literal["image", "video", "document"]] = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "image_pil": "image",
    "video": "video",
    "video_url": "video",
    "file": "document",
    "input_file": "document",
    "document": "document",
}
WORDS = {"image": "a picture", "video": "a video", "document": "a document"}


NESTED = ("mm_processor_kwargs", "media_io_kwargs")
CAPS = tuple(field.name for field in fields(Caps))
MEDIA_FIELDS = (*CAPS, *NESTED)


@dataclass(frozen=True)
class Part:
    """``content`` is an address or base64 (``bare``), bytes, a picture, or a list of these for a video's frames.

    ``rate`` is how many frames a second such a list has, ``pages`` those of a document, as in "1-4,7".
    """

    kind: Literal["image", "video", "document"]
    content: Any
    caps: Caps
    bare: bool = False
    rate: float | None = None
    pages: str | None = None


def is_media(part: object) -> bool:
    """Whether a part of a message is something to be looked at."""
    return isinstance(part, Mapping) and _type(part) in KINDS


def read_part(part: Mapping[str, Any], where: str) -> Part:
    """A part for which ``is_media`` holds. Raises RequestError naming what is wrong with it."""
    name = _type(part)
    kind = KINDS[name]
    caps = Caps.read(part, f"{where}.")
    given = part.get(name)
    inner = given if isinstance(given, Mapping) else part
    if inner.get("file_id") is not None:
        raise RequestError(f"{where} names a file_id, but no files are kept here; send file_data.", param=where)
    if kind == "image":
        detail = inner.get("detail") or "auto"
        if detail not in DETAILS:
            raise RequestError(f"{where} has the detail {detail!r:.80}; give low, high or auto.", param=where)
        if detail == "low" and caps.max_pixels is None:
            caps = Caps(max_pixels=LOW_DETAIL).over(caps)
    pages = part.get("pages", inner.get("pages"))
    if pages is not None and not isinstance(pages, str):
        raise RequestError(f'{where}.pages is {pages!r:.80}; give a string such as "1-4,7".', param=f"{where}.pages")
    content, bare = _content(name, part, inner)
    if content is None:
        raise RequestError(f"{where} holds nothing to look at; give {_example(name)}.", param=where)
    framed = kind == "video" and not isinstance(content, (str, bytes))
    return Part(kind, content, caps, bare, caps.fps if framed else None, pages)


def read_caps(given: Mapping[str, Any]) -> Caps:
    """The caps of a whole request, in its own fields or in vLLM's objects. Raises RequestError naming the field."""
    processor, loader = (given.get(name) or {} for name in NESTED)
    films = loader.get("video") or {}
    for name, holds, known in (
        (NESTED[0], processor, CAPS),
        (NESTED[1], loader, ("video", "image")),
        (f"{NESTED[1]}.video", films, ("num_frames", "fps")),
    ):
        unknown = [key for key in holds if key not in known] if isinstance(holds, Mapping) else [holds]
        if unknown:
            raise RequestError(f"{name} holds {unknown[0]!r:.80}; known are {', '.join(known)}.", param=name)
    number = films.get("num_frames")
    films = {"fps": films.get("fps"), "max_frames": None if number == -1 else number}  # vLLM's -1: all there are
    found = Caps.read(given)
    return found.over(Caps.read(processor, f"{NESTED[0]}.")).over(Caps.read(films, f"{NESTED[1]}.video."))


def _type(part: Mapping[str, Any]) -> str:
    """The part's type; of Qwen's short form the one key that says it."""
    name = part.get("type")
    if name is None:
        name = next((key for key in ("image", "image_url", "video", "video_url") if key in part), "")
    return name if isinstance(name, str) else ""


def _content(name: str, part: Mapping[str, Any], inner: Mapping[str, Any]) -> tuple[Any, bool]:
    """What the part holds, and whether it is base64 without the head of a data URI."""
    source = part.get("source")
    if isinstance(source, Mapping):  # Anthropic's
        if source.get("type") == "base64":
            return source.get("data"), True
        return source.get("url"), False
    keys = (
        (name, "image_url", "video_url", "file_data", "file_url") if inner is part else ("url", "file_data", "file_url")
    )
    key = next((key for key in keys if inner.get(key) is not None), "")
    found = inner.get(key)
    return found, key == "file_data" and isinstance(found, str) and ":" not in found[:16]  # OpenAI's may be bare


def _example(name: str) -> str:
    if KINDS[name] == "document":
        return '{"type": "file", "file": {"file_data": "data:application/pdf;base64,..."}}'
    kind = KINDS[name]
    return f'{{"type": "{kind}_url", "{kind}_url": {{"url": "data:{kind}/...;base64,..."}}}}'
