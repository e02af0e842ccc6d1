"""Pictures and videos in a conversation: parts become Media, and Media become spans of a prompt's tokens.

A template writes one placeholder for each; here it becomes as many as there are rows for it, and before each moment
of a video stands its time. Knows neither templates nor formats of files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwench.engine.request import MediaSpan
from qwench.errors import ContextLengthExceeded, RequestError
from qwench.media.parts import WORDS, is_media
from qwench.media.patches import Media
from qwench.media.reader import MediaReader
from qwench.media.settings import Caps
from qwench.text.tokenizer import Tokenizer

OPEN, CLOSE = "<|vision_start|>", "<|vision_end|>"
PADS: Mapping[str, str] = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
PLACE = re.compile(r"(?P<open><\|vision_start\|>)?<\|(?P<kind>image|video)_pad\|>(?(open)<\|vision_end\|>)")
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
                )
            kept = {name: part[name] for name in MARKS if name in part}
            yield from ({**kept, "type": media.kind, "media": media} for media in found)


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


def refuse_placeholders(messages: Sequence[Message]) -> None:
    """Where there are pictures, text must not spell their placeholders: nobody could tell the two apart."""
    for message in messages:
        if any(pad in text_of(message["content"]) for pad in PADS.values()):
            reason = "spells the placeholder of a picture; leave it out, or send no pictures"
            raise RequestError(f"A message of role {message['role']} {reason}.", param="messages")


def timed(text: str, media: Sequence[Media]) -> str:
    """``text`` with the moments of each video in place of its placeholder. Raises RequestError if they do not match."""
    places = list(PLACE.finditer(text))
    _check([place["kind"] for place in places], media)
    pieces, end = [], 0
    for place, each in zip(places, media, strict=True):
        if each.kind == "video":
            pieces += [text[end : place.start()], moments(each)]
            end = place.end()
    return "".join((*pieces, text[end:]))


def moments(video: Media) -> str:
    """A video as text, with one placeholder for each moment."""
    return "".join(f"<{second:.1f} seconds>{OPEN}{PADS['video']}{CLOSE}" for second in video.seconds)


def expand(ids: Sequence[int], media: Sequence[Media], tokenizer: Tokenizer) -> tuple[list[int], tuple[MediaSpan, ...]]:
    """Ids in which each placeholder stands as often as it has tokens, and where each Media lies."""
    pads = {tokenizer.id_of(pad) for pad in PADS.values()}
    found: list[int] = []
    firsts: dict[int, int] = {}  # by the place among ``media``
    ends: dict[int, int] = {}
    runs = iter([(index, each.frame_tokens) for index, each in enumerate(media) for _ in range(each.grid[0])])
    for token in ids:
        if token not in pads:
            found.append(token)
            continue
        index, count = next(runs)
        firsts.setdefault(index, len(found))
        found += [token] * count
        ends[index] = len(found)
    return found, tuple(MediaSpan(firsts[at], ends[at] - firsts[at], each) for at, each in enumerate(media))


def expand_ids(
    ids: Sequence[int], media: Sequence[Media], tokenizer: Tokenizer
) -> tuple[list[int], tuple[MediaSpan, ...]]:
    """``expand`` for a prompt that came as ids or raw text: one placeholder for each, bare or between its brackets."""
    kinds = {tokenizer.id_of(pad): kind for kind, pad in PADS.items()}
    _check([kinds[token] for token in ids if token in kinds], media)
    opening, closing = tokenizer.id_of(OPEN), tokenizer.id_of(CLOSE)
    found: list[int] = []
    waiting = iter(media)
    skip = False
    for at, token in enumerate(ids):
        if skip:
            skip = False
            continue
        each = next(waiting) if token in kinds else None
        if each is None or each.kind == "image":
            found.append(token)
            continue
        if found and found[-1] == opening and tuple(ids[at + 1 : at + 2]) == (closing,):
            found.pop()
            skip = True
        found += tokenizer.encode(moments(each))
    return expand(found, media, tokenizer)


def _check(kinds: Sequence[str], media: Sequence[Media]) -> None:
    if list(kinds) != [each.kind for each in media]:
        told = ", ".join(f"{kinds.count(kind)} of {WORDS[kind][2:]}s" for kind in PADS)
        given = ", ".join(f"{sum(each.kind == kind for each in media)} {WORDS[kind][2:]}s" for kind in PADS)
        raise RequestError(f"The prompt has placeholders {told}, but there are {given}, or in another order.")
