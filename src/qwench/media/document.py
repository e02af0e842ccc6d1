"""Documents through pypdfium2: pages to pictures, drawn at about the size the model sees.

Runs where it may die (media/decoder.py). Scripts and forms of a document are not run or filled in.
"""

from __future__ import annotations

import math
import re
from contextlib import closing

import pypdfium2
from PIL import Image

from qwench.media.image import fit
from qwench.media.patches import Media
from qwench.media.settings import Caps, VisionSettings
from qwench.media.sizes import Unusable

POINTS = 72  # in an inch, PDF's unit
DOTS = 150  # in an inch: small print is read from here on
MOST_PAGES = 32
SIGNATURE_WITHIN = 1024  # readers accept bytes before the signature
PAGES = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")


def is_document(data: bytes) -> bool:
    return b"%PDF-" in data[:SIGNATURE_WITHIN]


def read_document(data: bytes, pages: str | None, settings: VisionSettings, caps: Caps) -> list[Media]:
    """The pages that ``pages`` names ("3", "1-4,7"; None: all), each as a picture. Raises Unusable."""
    if not is_document(data):
        raise Unusable("is not a PDF document")
    try:
        with closing(pypdfium2.PdfDocument(data)) as document:
            return [
                fit(_draw(document, index, settings, caps), settings, caps)
                for index in _chosen(pages, len(document), caps.max_pages or MOST_PAGES)
            ]
    except pypdfium2.PdfiumError as error:
        if b"/Encrypt" in data and "password" in str(error).lower():  # the library repeats old errors
            raise Unusable("needs a password; send it without one") from None
        raise Unusable("is a PDF document that is damaged or cut off; send the whole file") from None
    except MemoryError:
        raise Unusable("needs more memory than a document is given; send fewer pages", too_large=True) from None


def _chosen(pages: str | None, total: int, most: int) -> list[int]:
    """Indices of the pages asked for."""
    if not total:
        raise Unusable("is a document without pages")
    if pages is None and total > most:
        raise Unusable(
            f'has {total:,} pages, more than the {most} looked at in one document; name some, as in pages: "1-{most}"',
            too_large=True,
        )
    found: list[int] = []
    for piece in (pages or f"1-{total}").replace(" ", "").split(","):
        match = PAGES.fullmatch(piece)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last:
            raise Unusable('has pages that are not like "3" or "1-4,7"')
        if last > total:
            raise Unusable(f"has {total:,} pages, and page {last} is asked for")
        if len(found) + last - first + 1 > most:
            raise Unusable(f"is asked for more than {most} pages, the most looked at in one document", too_large=True)
        found += range(first - 1, last)
    return found


def _draw(document: pypdfium2.PdfDocument, index: int, settings: VisionSettings, caps: Caps) -> Image.Image:
    """One page in RGB, as fine as it pays."""
    page = document[index]
    width, height = page.get_size()
    if not (width > 0 and height > 0):
        raise Unusable(f"has a page without a size, page {index + 1}")
    most = caps.pixels(settings.image_pixels)[1]
    scale = min(DOTS / POINTS, math.sqrt(most / (width * height)))
    try:
        picture: Image.Image = page.render(scale=scale, may_draw_forms=False).to_pil()
        return picture.convert("RGB")
    finally:
        page.close()
