"""The inside of a decoding process: reads jobs from standard input, answers on standard output, may be killed or die.

A job is a line of JSON (``kind``, ``settings``, ``caps``, ``sizes`` of the bytes that follow, and what else its kind
needs); the answer is a line of JSON and the pixels. Neither is ever more than data: nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import resource
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from qwench.media.patches import Media
from qwench.media.settings import Caps, VisionSettings
from qwench.media.sizes import Unusable

if TYPE_CHECKING:
    from PIL.Image import Image

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 1 << 30


def main() -> None:
    shut_in(int(sys.argv[1]))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # a library that prints must not reach the answer
    while line := source.readline():
        job = json.loads(line)
        try:
            found = decode(job, [source.read(size) for size in job["sizes"]])
        except Unusable as error:
            _answer(sink, {"reason": error.reason, "too_large": error.too_large}, [])
        except MemoryError:
            _answer(sink, {"reason": "needs more memory than it is given; send less", "too_large": True}, [])
        else:
            _answer(sink, {"media": [_head(media) for media in found]}, found)


def shut_in(memory: int) -> None:
    """No more than ``memory`` bytes, no file written, no core; and, where the kernel allows it, no network."""
    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):  # macOS has no bound of the first kind
            resource.setrlimit(kind, (most, most))
    if sys.platform == "linux":
        ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNET)  # containers may forbid it; nothing here connects


def decode(job: dict[str, Any], contents: list[bytes]) -> list[Media]:
    """What a job asks for. Libraries are loaded by the first who needs them."""
    settings, caps = VisionSettings(**_tupled(job["settings"])), Caps(**job["caps"])
    if job["kind"] == "document":
        from qwench.media.document import read_document

        return read_document(contents[0], job.get("pages"), settings, caps)
    if job["kind"] == "image":
        from qwench.media.image import read_image

        return [read_image(contents[0], settings, caps)]
    from qwench.media.image import open_image
    from qwench.media.video import read_frames, read_video

    if job["kind"] == "video":
        return [read_video(contents[0], settings, caps)]
    frames = _opened(contents, open_image)
    return [read_frames(frames, len(contents), job["fps"], settings, caps)]


def _opened(contents: list[bytes], open_image: Callable[[bytes], Image]) -> Iterator[Image]:
    """One frame after the other."""
    for number, content in enumerate(contents, start=1):
        try:
            yield open_image(content)
        except Unusable as error:
            raise Unusable(f"has a frame, number {number}, that {error.reason}", too_large=error.too_large) from None


def _tupled(given: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def _head(media: Media) -> dict[str, Any]:
    told = {"kind": media.kind, "shape": media.pixels.shape, "original": media.original, "seconds": media.seconds}
    return dict(told)


def _answer(sink: BinaryIO, head: dict[str, Any], media: list[Media]) -> None:
    sink.write(json.dumps(head).encode() + b"\n")
    sink.writelines(each.pixels.tobytes() for each in media)
    sink.flush()


if __name__ == "__main__":
    main()
