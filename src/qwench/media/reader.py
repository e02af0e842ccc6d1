"""MediaReader: a part of a message -> Media, through the fetcher and the decoders. One per server or LLM.

Every complaint is a RequestError whose sentence begins with the place of the part.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from qwench.errors import MediaTooLarge, Overloaded, RequestError
from qwench.media.fetch import Sources, fetch, read_base64
from qwench.media.parts import WORDS, Part, read_part
from qwench.media.patches import Media
from qwench.media.pool import Decoders
from qwench.media.settings import Caps, VisionSettings
from qwench.media.sizes import Unusable

MOTION_JPEG = "data:video/jpeg"  # vLLM's list of frames: base64 of each, with commas between
MOST_HELD = 2 << 30  # bytes of pixels that unfinished requests hold, before more are let in
ANY_TYPE = ("", "application/octet-stream", "binary/octet-stream")
TYPES = {"image": ("image/",), "video": ("video/", "application/mp4"), "document": ("application/pdf", "image/")}


class MediaReader:
    """``allowed`` is what the operator lets in; requests may ask for less. Threads may share it.

    Where that says nothing of pixels, ``most`` bounds those of a picture; asking for more than it is no mistake.
    """

    def __init__(
        self,
        settings: VisionSettings,
        allowed: Caps | None = None,
        sources: Sources | None = None,
        decoders: Decoders | None = None,
        most: int | None = None,
    ) -> None:
        self._allowed = allowed or Caps()
        self.settings = settings if most is None or self._allowed.max_pixels else settings.within(most)
        self._sources = sources or Sources()
        self._decoders = decoders or Decoders()
        self._lock = threading.Lock()
        self._held = 0

    def open(self, raw: Mapping[str, Any], where: str, asked: Caps | None = None) -> list[Media]:
        """What a part shows: one picture, one video, or the pages of a document.

        ``asked`` are the caps of the whole request. Raises RequestError (or Overloaded).
        """
        part = read_part(raw, where)
        part.caps.within(self._allowed, f"{where}.")
        caps = part.caps.over(asked or Caps()).within(self._allowed)
        if self._held > MOST_HELD:
            raise Overloaded("Too many pictures wait for their answers; send the request again later.")
        try:
            found = self._look(part, caps)
        except Unusable as error:
            kind = MediaTooLarge if error.too_large else RequestError
            raise kind(f"{where} {error.reason}.", param=where) from None
        for media in found:
            self._count(media.pixels.nbytes)
            weakref.finalize(media, self._count, -media.pixels.nbytes)
        return found

    def close(self) -> None:
        self._decoders.close()

    def _count(self, size: int) -> None:
        with self._lock:
            self._held += size

    def _look(self, part: Part, caps: Caps) -> list[Media]:
        content = part.content
        if isinstance(content, str) and content[: len(MOTION_JPEG)].lower() == MOTION_JPEG and part.kind == "video":
            head, _, body = content.partition(",")
            pieces = body.split(",", self.settings.frames[1])
            content = [f"data:image/jpeg{head[len(MOTION_JPEG) :]},{piece}" for piece in pieces]
        if isinstance(content, (Mapping, bool, int, float)):
            raise Unusable("is not an address; give a string")
        if part.kind == "video" and not isinstance(content, (str, bytes)):
            return [self._frames(content, part.rate or self.settings.fps, caps)]
        if not isinstance(content, (str, bytes)):
            if part.kind == "document":
                raise Unusable("is no document; give its bytes")
            return [self._drawn(content, caps)]
        data = self._bytes(content, part)
        if part.kind == "document" and b"%PDF-" not in data[:1024]:
            return self._decoders.decode("image", [data], self.settings, caps)  # a picture sent as a file
        return self._decoders.decode(part.kind, [data], self.settings, caps, pages=part.pages)

    def _bytes(self, content: str | bytes, part: Part) -> bytes:
        """The bytes of ``content``, whose declared type must be of the part's kind, though not exact."""
        if isinstance(content, bytes):
            return content
        data, declared = (read_base64(content), "") if part.bare else fetch(content, self._sources)
        if not data:
            raise Unusable("is empty")
        if declared not in ANY_TYPE and not declared.startswith(TYPES[part.kind]):
            raise Unusable(f"is declared as {declared[:40]}, which is not {WORDS[part.kind]}")
        return data

    def _frames(self, frames: Any, rate: float, caps: Caps) -> Media:
        """A video as the list of its frames: addresses, bytes or pictures."""
        from qwench.media.video import most_frames, read_frames

        listed = list(frames) if isinstance(frames, Sequence) or hasattr(frames, "shape") else None
        if listed is None:
            raise Unusable("is no video; give an address or a list of frames")
        if len(listed) > most_frames(self.settings, caps) or not all(isinstance(each, (str, bytes)) for each in listed):
            return read_frames(map(self._picture, listed), len(listed), rate, self.settings, caps)
        contents = [self._bytes(frame, Part("image", frame, Caps())) for frame in listed]
        return self._decoders.decode("frames", contents, self.settings, caps, fps=rate)[0]

    def _drawn(self, content: Any, caps: Caps) -> Media:
        from qwench.media.image import fit

        return fit(self._picture(content), self.settings, caps)

    @staticmethod
    def _picture(content: Any) -> Any:
        """A picture that is in memory already: Pillow's, or an array of rows, columns and colours in bytes."""
        import numpy as np
        from PIL import Image, ImageOps

        from qwench.media.image import rgb

        if isinstance(content, np.ndarray) and content.dtype == np.uint8 and content.shape[2:] in ((3,), (4,)):
            content = Image.fromarray(content)
        if not isinstance(content, Image.Image):
            raise Unusable(
                "is no picture; give an address, bytes, a Pillow image, or an array [height, width, 3] of uint8"
            )
        return rgb(ImageOps.exif_transpose(content))
