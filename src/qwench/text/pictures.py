"""Placeholders of a rendered prompt become as many as there are tokens to see. Token ids in, token ids out.

The template writes one placeholder for a picture or a video. A picture stays between the tokens that open and close it;
a video becomes its moments, each behind its time in seconds and between such tokens of its own, in place of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qwench.engine.sight import NOTHING, Media, Sight, Span
from qwench.errors import RequestError


@dataclass(frozen=True)
class Placeholders:
    """The ids that stand for a picture and for a video, and how many patches wide and high a token is."""

    image: int
    video: int
    merge: int

    def kind(self, token: int) -> str | None:
        return {self.image: "image", self.video: "video"}.get(token)


@dataclass
class _Prompt:
    """What is written so far."""

    merge: int
    ids: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    def show(self, media: Media, placeholder: int, moment: int = 0) -> None:
        height, width = (size // self.merge for size in media.grid[1:])
        span = Span(len(self.ids), height, width, media.digest, moment * height * width)
        self.spans.append(span)
        self.ids += [placeholder] * (span.stop - span.first)


def place(
    token_ids: Sequence[int], shown: Sequence[Media], placeholders: Placeholders, encode: Callable[[str], list[int]]
) -> tuple[list[int], Sight]:
    """``token_ids`` with room for all that is ``shown``, in its order, and where that stands; ``encode`` makes ids of
    text. Raises RequestError where placeholders and what is shown differ in number or kind.
    """
    if not shown:  # a placeholder in a text is a word like any other
        return list(token_ids), NOTHING
    wanted = [kind for token in token_ids if (kind := placeholders.kind(token))]
    given = [media.kind for media in shown]
    if wanted != given:
        raise RequestError(
            f"the prompt has placeholders for {_listed(wanted)}, but {_listed(given)} came with it; give one for each, "
            "in the same order.",
            param="messages",
        )
    prompt, left, index = _Prompt(placeholders.merge), iter(shown), 0
    while index < len(token_ids):
        token = token_ids[index]
        index += 1
        if token == placeholders.image:
            prompt.show(next(left), token)
        elif token == placeholders.video:
            before, after = prompt.ids[-1:], token_ids[index : index + 1]
            if not before or not after:
                raise RequestError(
                    "a video stands between no two tokens; put it where the template does.", param="prompt"
                )
            prompt.ids.pop()
            _show_video(prompt, next(left), (before[0], token, after[0]), encode)
            index += 1
        else:
            prompt.ids.append(token)
    return prompt.ids, Sight(tuple(prompt.spans), {media.digest: media for media in shown})


def _show_video(
    prompt: _Prompt, media: Media, tokens: tuple[int, int, int], encode: Callable[[str], list[int]]
) -> None:
    """Each moment between the ``tokens`` that stood around the placeholder."""
    opening, placeholder, closing = tokens
    for moment, seconds in enumerate(media.seconds):
        prompt.ids += encode(f"<{seconds:.1f} seconds>")
        prompt.ids.append(opening)
        prompt.show(media, placeholder, moment)
        prompt.ids.append(closing)


def _listed(kinds: Sequence[str]) -> str:
    """Such as "2 pictures and 1 video"."""
    counts = [(kinds.count(kind), name) for kind, name in (("image", "picture"), ("video", "video"))]
    return " and ".join(f"{count} {name}{'s' * (count != 1)}" for count, name in counts)
