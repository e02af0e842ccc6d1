"""Videos through PyAV, or lists of frames: which frames are looked at, at what second each was, upright and in size.

The frames are those the reference processor takes. Where they do not come at a steady rate, those nearest to evenly
spaced moments are taken, each with its own time. Runs where it may die (media/decoder.py).
"""

from __future__ import annotations

import io
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from typing import Any

import av
import av.error
import numpy as np
from PIL import Image

from qwench.media.image import MOST_SOURCE_PIXELS
from qwench.media.patches import Media
from qwench.media.settings import Caps, VisionSettings
from qwench.media.sizes import Unusable, fitting_size

MOST_SOURCE_FRAMES = 500_000  # more than two hours at 60 a second
CODECS = frozenset(("h264", "hevc", "av1", "libdav1d", "libaom-av1", "vp8", "vp9", "libvpx", "libvpx-vp9", "mpeg4"))
UPRIGHT = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
DAMAGED = "is a video that is damaged or cut off; send the whole file"
FAILURES = (av.error.FFmpegError, OSError, ValueError, EOFError, IndexError, RuntimeError, ArithmeticError)


def container_of(data: bytes) -> str | None:
    """FFmpeg's name of the container, by the first bytes alone: MP4 and its kin, or Matroska and WebM."""
    if data[4:8] == b"ftyp":
        return "mov"
    return "matroska" if data.startswith(b"\x1a\x45\xdf\xa3") else None


def read_video(data: bytes, settings: VisionSettings, caps: Caps) -> Media:
    """The video in ``data``: its frames chosen and brought to their final size. Raises Unusable."""
    name = container_of(data)
    if name is None:
        raise Unusable("is not a video in a container known here; send MP4, MOV, WebM or Matroska")
    try:
        with av.open(io.BytesIO(data), "r", format=name, metadata_errors="ignore") as container:
            if not container.streams.video:
                raise Unusable("holds no video")
            stream = container.streams.video[0]
            coder: Any = stream.codec_context  # None where the header names what nobody knows
            if coder is None or coder.name not in CODECS:
                raise Unusable("is coded in a way that is not read here; send H.264, HEVC, AV1, VP8, VP9 or MPEG-4")
            stamps = _stamps(container, stream)
            if not stamps:
                raise Unusable("holds no frames")
            container.seek(stamps[0], stream=stream)
            unit = float(stream.time_base or 0)
            times = [(stamp - stamps[0]) * unit for stamp in stamps]
            chosen = choose(times, settings, caps)
            with closing(_pictures(container, stream, [stamps[index] for index in chosen])) as pictures:
                return _assemble(pictures, [times[index] for index in chosen], settings, caps)
    except MemoryError:
        raise Unusable("needs more memory than a video is given; send a smaller one", too_large=True) from None
    except FAILURES:
        raise Unusable(DAMAGED) from None


def read_frames(pictures: Iterable[Image.Image], count: int, fps: float, settings: VisionSettings, caps: Caps) -> Media:
    """A video that comes as its ``count`` frames, ``fps`` of them in a second; all are looked at. Raises Unusable."""
    most = most_frames(settings, caps)
    if not count:
        raise Unusable("is a video without frames")
    if count > most:
        raise Unusable(f"has more than the {most} frames that are looked at", too_large=True)
    return _assemble(pictures, [index / fps for index in range(count)], settings, caps)


def most_frames(settings: VisionSettings, caps: Caps) -> int:
    return min(settings.frames[1], caps.max_frames or settings.frames[1])


def choose(times: Sequence[float], settings: VisionSettings, caps: Caps) -> list[int]:
    """Which frames are looked at, of those at ``times``."""
    total = len(times)
    low, high = settings.frames[0], most_frames(settings, caps)
    if total == 1:
        return [0]
    rate = (total - 1) / times[-1] if times[-1] > 0 else 24.0  # without times, what the reference assumes
    wanted = int(total / rate * (caps.fps or settings.fps) + 1e-6)
    number = min(max(wanted, min(low, high)), high, total)
    even = np.linspace(0, total - 1, number).round().astype(int)
    steady = all(abs(time - index / rate) <= 0.5 / rate for index, time in enumerate(times))
    if steady:
        return [int(index) for index in even]
    known = np.asarray(times)
    return sorted({int(np.abs(known - moment).argmin()) for moment in np.linspace(0, times[-1], number)})


def timestamps(times: Sequence[float], temporal: int) -> tuple[float, ...]:
    """One per temporal patch: the middle between its first and its last frame; the last frame counts as often as the
    patch needs it."""
    padded = [*times, *[times[-1]] * (-len(times) % temporal)]
    return tuple((padded[at] + padded[at + temporal - 1]) / 2 for at in range(0, len(padded), temporal))


def _assemble(pictures: Iterable[Image.Image], times: Sequence[float], settings: VisionSettings, caps: Caps) -> Media:
    """Each picture is brought to its size as it comes, so that only one is held in its own."""
    frames: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
    original = size = (0, 0)
    for picture in pictures:
        if not frames:
            original, count = picture.size, max(len(times), settings.temporal)
            bounds = caps.pixels(settings.video_pixels, count)
            size = fitting_size(*original, settings.factor, bounds, frames=count, temporal=settings.temporal)
        if picture.size != original:
            raise Unusable("has frames of different sizes; send frames of one video")
        frames.append(np.asarray(picture.resize(size, Image.Resampling.BICUBIC)))
    if len(frames) < len(times):
        raise Unusable(DAMAGED)
    frames += frames[-1:] * (-len(frames) % settings.temporal)
    return Media("video", np.stack(frames), settings, original, timestamps(times, settings.temporal))


def _stamps(container: Any, stream: Any) -> list[int]:
    """When each frame is shown, in the stream's time base, without decoding any."""
    stamps: set[int] = set()
    for packet in container.demux(stream):
        if packet.pts is not None and not packet.is_discard:
            stamps.add(packet.pts)
        if len(stamps) > MOST_SOURCE_FRAMES:
            raise Unusable(f"has more than the {MOST_SOURCE_FRAMES:,} frames that are read", too_large=True)
    return sorted(stamps)


def _pictures(container: Any, stream: Any, wanted: Sequence[int]) -> Generator[Image.Image]:
    """The frames shown at ``wanted``, in order, upright."""
    waiting = list(reversed(wanted))
    for frame in container.decode(stream):
        if frame.width * frame.height > MOST_SOURCE_PIXELS:
            raise Unusable(f"has frames of more than the {MOST_SOURCE_PIXELS:,} pixels that are read", too_large=True)
        if waiting and frame.pts is not None and frame.pts >= waiting[-1]:
            waiting.pop()
            picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
            turn = UPRIGHT.get(round(frame.rotation) % 360)
            yield picture if turn is None else picture.transpose(turn)
        if not waiting:
            return
