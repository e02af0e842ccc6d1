"""The flags about what is looked at, which ``chat`` and ``serve`` share, and what ``chat`` is given to look at."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from qwench.errors import RequestError, UsageError
from qwench.media.fetch import Sources
from qwench.media.settings import Caps

if TYPE_CHECKING:
    from qwench.engine.client import EngineClient
    from qwench.text.model import ModelText

KINDS = ("image", "video", "document")


def add_media_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("pictures, videos and documents (the checkpoint's bounds where not given)")
    group.add_argument("--min-pixels", type=int, metavar="N", help="bring each picture or frame to at least N pixels")
    group.add_argument("--max-pixels", type=int, metavar="N", help="bring each picture or frame to at most N pixels")
    group.add_argument("--fps", type=float, metavar="F", help="look at F frames of a video in a second")
    group.add_argument("--max-frames", type=int, metavar="N", help="look at no more than N frames of a video")
    group.add_argument("--max-pages", type=int, metavar="N", help="look at no more than N pages of a document (32)")
    fetched = "fetch web addresses of media, from public hosts only"
    group.add_argument("--allow-media-url", action="store_true", help=fetched)


def media_caps(args: argparse.Namespace) -> Caps:
    """Raises UsageError naming the flag."""
    try:
        caps = Caps.read(vars(args))
        return caps.within(Caps())
    except RequestError as error:
        flag, _, rest = error.message.partition(" ")
        raise UsageError(f"--{flag.replace('_', '-')} {rest}") from None


def media_sources(args: argparse.Namespace, *, files: bool) -> Sources:
    return Sources(web=args.allow_media_url, files=files)


def add_shown_flags(parser: argparse.ArgumentParser) -> None:
    for kind in KINDS:
        told = f"a {kind} to look at with the first question; may be given again"
        parser.add_argument(f"--{kind}", action="append", default=[], metavar="FILE", help=told)
    parser.add_argument("--pages", metavar="PAGES", help='which pages of a document, such as "1-4,7" (all)')


class Shown:
    """What a conversation begins with: ``parts`` of its first message, and ``told`` a line for each.

    Raises UsageError where the flags are wrong.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._caps, self._sources = media_caps(args), media_sources(args, files=True)
        self.parts: list[dict[str, Any]] = []
        self.told: list[str] = []

    def look(self, client: EngineClient, text: ModelText) -> None:
        """Read all that is given, before the weights are. Raises UsageError naming the file."""
        from qwench.media.reader import MediaReader

        wanted = [(kind, name) for kind in KINDS for name in getattr(self._args, kind)]
        if not wanted:
            return
        if text.vision is None or not client.sees:
            raise UsageError(
                f"--{wanted[0][0]}: this model reads text only; run one that has eyes, such as qwen3.5:4b."
            )
        reader = MediaReader(text.vision, self._caps, self._sources, most=client.most_pixels)
        try:
            for kind, name in wanted:
                part = {"type": kind, kind: name, "pages": self._args.pages if kind == "document" else None}
                found = reader.open(part, f"--{kind} {name}")
                self.parts += [{"type": media.kind, "media": media} for media in found]
                for page, media in enumerate(found, start=1):
                    which = f", picture {page}" if len(found) > 1 else ""
                    sizes = " seen as ".join(f"{width} by {height}" for width, height in (media.original, media.size))
                    self.told.append(f"{name}{which}: {sizes} pixels, {media.tokens:,} tokens")
        except RequestError as error:
            raise UsageError(error.message) from None
        finally:
            reader.close()
