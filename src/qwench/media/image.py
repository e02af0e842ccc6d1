"""Pictures through Pillow: the format told by the first bytes, the size read before the pixels, then upright RGB.

Runs where it may die (media/decoder.py). What goes wrong is told in our own words, never in the library's.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageOps

from qwench.media.patches import Media
from qwench.media.settings import Caps, VisionSettings
from qwench.media.sizes import Unusable, fitting_size

MOST_SOURCE_PIXELS = 100_000_000  # a phone's largest photo; twice that in memory while it is turned upright
KNOWN = "PNG, JPEG, WebP, GIF, BMP, AVIF or HEIC"
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
SIGNATURES: Mapping[bytes, str] = MappingProxyType(
    {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF87a": "GIF", b"GIF89a": "GIF", b"BM": "BMP"}
)
FAILURES = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, ArithmeticError, RuntimeError)


def format_of(data: bytes) -> str | None:
    """Pillow's name of the format, by the first bytes alone."""
    for start, name in SIGNATURES.items():
        if data.startswith(start):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return "AVIF" if data[8:12] in (b"avif", b"avis") else "HEIF" if data[8:12] in HEIF_BRANDS else None
    return None


def read_image(data: bytes, settings: VisionSettings, caps: Caps) -> Media:
    """The picture in ``data``, brought to its final size. Raises Unusable."""
    return fit(open_image(data), settings, caps)


def open_image(data: bytes) -> Image.Image:
    """The picture in ``data``, upright, in RGB. Raises Unusable; too many pixels are refused before any is read."""
    name = format_of(data)
    if name is None:
        raise Unusable(f"is not a picture in a format known here; send {KNOWN}")
    if name == "HEIF":
        _know_heif()
    try:
        with warnings.catch_warnings(action="ignore"):  # about metadata; and about bombs, which are counted here
            picture = Image.open(io.BytesIO(data), formats=[name])
            width, height = picture.size
            if width * height > MOST_SOURCE_PIXELS:
                raise Unusable(
                    f"has {width} by {height} pixels, more than the {MOST_SOURCE_PIXELS:,} that are read; send a "
                    "smaller picture",
                    too_large=True,
                )
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)
            return rgb(picture)
    except Image.DecompressionBombError:
        raise Unusable(f"has more than the {MOST_SOURCE_PIXELS:,} pixels that are read", too_large=True) from None
    except MemoryError:
        raise Unusable("needs more memory than a picture is given; send a smaller one", too_large=True) from None
    except FAILURES:
        shown = "HEIC" if name == "HEIF" else name
        raise Unusable(f"begins like {shown}, but is damaged or cut off; send the whole file") from None


def rgb(picture: Image.Image) -> Image.Image:
    """In RGB: what shows through is white, 16 bits become 8."""
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        values = np.asarray(picture.convert("I")).clip(0, 65535) / 257
        picture = Image.fromarray(values.round().astype(np.uint8))
    if "A" in picture.getbands() or picture.info.get("transparency") is not None:
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(ground, picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def fit(picture: Image.Image, settings: VisionSettings, caps: Caps) -> Media:
    """An RGB picture in the size that the model sees. Raises Unusable."""
    size = fitting_size(*picture.size, settings.factor, caps.pixels(settings.image_pixels))
    pixels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
    return Media("image", pixels[None], settings, picture.size)


def _know_heif() -> None:
    try:
        import pillow_heif
    except ImportError:
        raise Unusable("is HEIC, for which pillow-heif is not installed here; send JPEG or PNG") from None
    pillow_heif.register_heif_opener()
