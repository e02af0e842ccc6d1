"""Pictures, videos and documents made on the spot, sound and hostile."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

import qwench
from qwench.media.settings import VisionSettings

NANO = Path(qwench.__file__).parent / "assets" / "nano"
SMALL = VisionSettings(image_pixels=(4096, 262_144), video_pixels=(4096, 262_144))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Every pixel a colour of its own: what a resampling can get wrong, it does here."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def shades(width: int, height: int) -> Image.Image:
    """Smooth, and different in every corner."""
    rows, columns = np.mgrid[0:height, 0:width]
    red, green = rows * 255 // max(height - 1, 1), columns * 255 // max(width - 1, 1)
    return Image.fromarray(np.stack([red, green, 255 - (red + green) // 2], -1).astype(np.uint8))


def encoded(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def data_uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is large."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def video(
    pictures: Sequence[Image.Image],
    fps: float = 8,
    *,
    form: str = "mp4",
    codec: str = "mpeg4",
    times: Sequence[float] = (),
) -> bytes:
    """``pictures`` one after the other; ``times`` in seconds where they do not come evenly."""
    stream = io.BytesIO()
    with av.open(stream, "w", format=form) as container:
        track: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        track.width, track.height = pictures[0].size
        track.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        track.bit_rate = 8_000_000
        track.codec_context.time_base = Fraction(1, 1000)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")
            frame.time_base = Fraction(1, 1000)
            frame.pts = round(1000 * (times[index] if times else index / fps))
            for packet in track.encode(frame):
                container.mux(packet)
        for packet in track.encode():
            container.mux(packet)
    return stream.getvalue()


def document(pages: int, width: float = 200, height: float = 100) -> bytes:
    """A PDF whose page n has n dark bars."""
    kids = " ".join(f"{3 + 2 * page} 0 R" for page in range(pages))
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Kids [{kids}] /Count {pages} >>"]
    for page in range(pages):
        drawing = " ".join(f"{10 + 12 * bar} 10 6 80 re f" for bar in range(page % 12 + 1))
        box = f"/MediaBox [0 0 {width} {height}]"
        objects.append(f"<< /Type /Page /Parent 2 0 R {box} /Contents {4 + 2 * page} 0 R >>")
        objects.append(f"<< /Length {len(drawing)} >>\nstream\n{drawing}\nendstream")
    pieces, places, end = [b"%PDF-1.4\n"], [], 9
    for number, text in enumerate(objects, start=1):
        places.append(end)
        pieces.append(f"{number} 0 obj\n{text}\nendobj\n".encode())
        end += len(pieces[-1])
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    ending = (
        f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>"
    )
    return b"".join((*pieces, f"{ending}\nstartxref\n{end}\n%%EOF".encode()))
