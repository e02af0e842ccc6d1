"""Pictures and videos in a conversation: parts become Media, and Media become spans of a prompt's tokens.

A template writes one placeholder for each; here it becomes as many as there are rows for it, and before each moment
of a video stands its time. Knows neither templates nor formats of files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwench.engine.request import MediaSpan
from qwench.errors import ContextLengthExceeded, RequestError
from qwench.media.parts import is_media
from qwench.media.patches import Media
from qwench.media.reader import MediaReader
from qwench.media.settings import Caps
from qwench.text.tokenizer import Tokenizer

OPEN, CLOSE = "<|vision_start|>", "<|vision_end|>"
PADS: Mapping[str, str] = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
MOST_PARTS = 128
MARKS = ("cache_control", "prompt_cache_breakpoint")  # of the client's, which text/marks.py reads

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Eyes:
    """How a face looks at what it is sent. ``most_tokens``: where reading on would be for nothing."""

    reader: MediaReader
    most_tokens: int

    def look(self, messages: object, asked: Caps | None = None) -> Any:
        """``messages`` with every part that shows something replaced by its Media; the input stays as it is.

        ``asked`` are the caps of the whole request. Raises RequestError naming the part; also as soon as the parts so
        far have too many tokens, before the next is read.
        """
        if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
            return messages
        seen: list[Media] = []
        return [
            {**message, "content": list(self._looked(message["content"], f"messages[{index}].content", asked, seen))}
            if isinstance(message, Mapping) and isinstance(message.get("content"), list)
            else message
            for index, message in enumerate(messages)
        ]

    def _looked(self, content: list[Any], where: str, asked: Caps | None, seen: list[Media]) -> Iterator[Any]:
        for at, part in enumerate(content):
            if not is_media(part) or is_seen(part):
                yield part
                continue
            place = f"{where}[{at}]"
            found = self.reader.open(part, place, asked)
            seen += found
            tokens = sum(media.tokens for media in seen)
            if len(seen) > MOST_PARTS:
                raise RequestError(f"{place} is one picture too many; send at most {MOST_PARTS}.", param=place)
            if tokens >= self.most_tokens:
                raise ContextLengthExceeded(
                    f"{place} brings the pictures to {tokens:,} tokens, but the window has {self.most_tokens:,}; lower "
                    "max_pixels, or send fewer.",
                    param=place,
                    tokens=tokens,
                    window=self.most_tokens,
                )
            kept = {name: part[name] for name in MARKS if name in part}
            yield from ({**kept, "type": media.kind, "media": media} for media in found)

    def attached(self, data: object, kinds: Sequence[str], where: str) -> list[Media]:
        """vLLM's multi_modal_data, in the order of the prompt's placeholders. Raises RequestError."""
        if not isinstance(data, Mapping):
            raise RequestError(f"{where}multi_modal_data is no mapping; give image or video.", param="multi_modal_data")
        waiting: dict[str, list[Any]] = {}
        for kind, given in data.items():
            if kind not in ("image", "video"):
                reason = f"{where}multi_modal_data holds {kind!r:.80}; known are image and video"
                raise RequestError(f"{reason}.", param="multi_modal_data")
            waiting[kind] = [given] if _is_one(kind, given) else list(given)
        counts = {kind: len(given) for kind, given in waiting.items()}
        found: list[Media] = []
        for kind in kinds:
            given = waiting.get(kind) or [None]
            at = counts.get(kind, 0) - len(waiting.get(kind) or [])
            item, more = given.pop(0), {}
            if kind == "video" and isinstance(item, tuple):  # frames with what is known of them
                item, known = item
                more = {name: known[name] for name in ("fps",) if known.get(name)}
            found += self.reader.open({"type": kind, kind: item, **more}, f"{where}multi_modal_data.{kind}[{at}]")
        left = next((kind for kind, given in waiting.items() if given), None)
        if left is not None:
            reason = f"{where}multi_modal_data has {counts[left]} of {left}, but the prompt has fewer placeholders"
            raise RequestError(f"{reason}; give one for each.", param="multi_modal_data")
        return found


def _is_one(kind: str, given: Any) -> bool:
    """Whether this is one picture or video and not a list of them; a list of pictures is one video."""
    if not isinstance(given, list):
        return kind == "image" or getattr(given, "ndim", 4) == 4
    return (
        kind == "video"
        and bool(given)
        and not isinstance(given[0], (str, bytes, list, tuple))
        and (getattr(given[0], "ndim", 3) == 3)
    )


def is_seen(part: object) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("media"), Media)


def shows(body: Mapping[str, Any]) -> bool:
    """Whether a request has parts that are to be looked at."""
    messages = body.get("messages")
    contents = (
        [each.get("content") for each in messages if isinstance(each, Mapping)] if isinstance(messages, list) else []
    )
    return any(is_media(part) for content in contents if isinstance(content, list) for part in content)


def blind(where: str) -> RequestError:
    return RequestError(f"{where} is something to look at, but this model reads text only; send text.", param=where)


def media_of(messages: Sequence[Message]) -> list[Media]:
    """What normalised messages show, in order."""
    parts = (part for message in messages if isinstance(message["content"], list) for part in message["content"])
    return [part["media"] for part in parts if is_seen(part)]


def text_of(content: Any) -> str:
    """The words of a normalised message."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def without_pixels(messages: Sequence[Message]) -> list[Message]:
    """Normalised messages as a template may see them."""
    return [
        {
            **message,
            "content": [{key: part[key] for key in ("type", "text") if key in part} for part in message["content"]],
        }
        if isinstance(message["content"], list)
        else message
        for message in messages
    ]


def placeholders(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """What a prompt wants to show: "image" or "video" for each placeholder."""
    kinds = {tokenizer.id_of(pad): kind for kind, pad in PADS.items()}
    return [kinds[token] for token in ids if token in kinds]


def expand(ids: Sequence[int], media: Sequence[Media], tokenizer: Tokenizer) -> tuple[list[int], tuple[MediaSpan, ...]]:
    """``ids`` with room for what is seen, where there was one placeholder for each, and where it lies.

    A video becomes its moments, each between brackets of its own behind its time, in place of the whole; a time is
    encoded by itself, so that nothing before it merges with it. Raises RequestError if the two do not match.
    """
    if not media:
        return list(ids), ()
    _check(placeholders(ids, tokenizer), [each.kind for each in media])
    pads = {tokenizer.id_of(pad) for pad in PADS.values()}
    opening, closing = tokenizer.encode(OPEN), tokenizer.encode(CLOSE)
    found: list[int] = []
    spans: list[MediaSpan] = []
    waiting, at = iter(media), 0
    while at < len(ids):
        token = ids[at]
        at += 1
        if token not in pads:
            found.append(token)
            continue
        each = next(waiting)
        if each.kind == "image":
            spans.append(MediaSpan(len(found), each.tokens, each))
            found += [token] * each.tokens
            continue
        if found[-1:] == opening and list(ids[at : at + 1]) == closing:
            found.pop()
            at += 1
        times = [tokenizer.encode(f"<{second:.1f} seconds>") + opening for second in each.seconds]
        first = len(found) + len(times[0])
        for time in times:
            found += [*time, *[token] * each.frame_tokens, *closing]
        spans.append(MediaSpan(first, len(found) - len(closing) - first, each))
    return found, tuple(spans)


def _check(wanted: Sequence[str], given: Sequence[str]) -> None:
    if wanted != given:
        told = [" and ".join(f"{kinds.count(kind)} {kind}s" for kind in PADS) for kinds in (wanted, given)]
        raise RequestError(
            f"The prompt has placeholders for {told[0]}, but {told[1]} came; give one for each, in the same order.",
            param="messages",
        )
