"""Decoders: a few processes that turn bytes into Media, bounded in number, memory and time. Their inside is decoder.py.

A decoder that hangs is killed, one that crashes is replaced, and either way the answer is a sentence about the part.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import qwench
from qwench.errors import Overloaded
from qwench.fault import fault
from qwench.media.patches import Media
from qwench.media.settings import Caps, VisionSettings
from qwench.media.sizes import Unusable

Job = Literal["image", "video", "frames", "document"]
MEMORY = 3 << 30  # bytes of address space of one decoder; a picture of the largest size takes about a third
SECONDS = 30.0
MOST_PROCESSES = 4
MOST_ANSWER = 1 << 30  # bytes of pixels
MOST_HEAD = 1 << 20
CHUNK = 1 << 20
LOST = "cannot be read within the time and memory it is given; send a smaller or another one"


class Decoders:
    """``processes`` at most run at once, started when they are needed and kept; who finds none free waits ``seconds``
    for one. Threads may share it."""

    def __init__(self, processes: int | None = None, *, memory: int = MEMORY, seconds: float = SECONDS) -> None:
        self.processes = processes or min(MOST_PROCESSES, os.cpu_count() or 1)
        self._memory, self._seconds = memory, seconds
        self._free: queue.LifoQueue[_Decoder | None] = queue.LifoQueue()
        for _ in range(self.processes):
            self._free.put(None)

    def decode(
        self, kind: Job, contents: Sequence[bytes], settings: VisionSettings, caps: Caps, **more: Any
    ) -> list[Media]:
        """What ``contents`` are: one picture, one video, or the frames of one. Blocks.

        Raises Unusable, or Overloaded if no decoder became free.
        """
        try:
            decoder = self._free.get(timeout=self._seconds)
        except queue.Empty:
            raise Overloaded("Too many pictures are being read; send the request again later.") from None
        try:
            decoder = decoder or _Decoder(self._memory)
            job = {"kind": kind, "settings": asdict(settings), "caps": asdict(caps), **more}
            return decoder.run(job, contents, settings, time.monotonic() + self._seconds)
        except _Lost:
            if decoder is not None:
                decoder.close()
            decoder = None
            raise Unusable(LOST) from None
        finally:
            self._free.put(decoder)

    def close(self) -> None:
        """End the decoders that are free; those at work end with this process."""
        for _ in range(self.processes):
            with contextlib.suppress(queue.Empty):
                decoder = self._free.get_nowait()
                if decoder is not None:
                    decoder.close()
        for _ in range(self.processes - self._free.qsize()):
            self._free.put(None)


class _Lost(Exception):
    """The decoder is late, gone, or talks nonsense."""


class _Decoder:
    """One process."""

    def __init__(self, memory: int) -> None:
        root = str(Path(qwench.__file__).parents[1])
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "HOME") if name in os.environ}
        try:
            fault("start.decoder")
            self._process = subprocess.Popen(
                [sys.executable, "-m", "qwench.media.decoder", str(memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                # Keys and tokens of the environment are none of its business; one thread each, for the memory.
                env={**kept, "PYTHONPATH": os.pathsep.join([root, *sys.path]), "OPENBLAS_NUM_THREADS": "1"},
            )
        except OSError:
            raise _Lost from None
        self._end = weakref.finalize(self, _kill, self._process)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self._rest = b""

    def run(
        self, job: dict[str, Any], contents: Sequence[bytes], settings: VisionSettings, deadline: float
    ) -> list[Media]:
        """The answer to one job. Raises Unusable or _Lost."""
        watch = threading.Timer(max(0.0, deadline - time.monotonic()), self._process.kill)
        watch.daemon = True
        watch.start()  # writing blocks too, where the process does not read
        try:
            line = json.dumps({**job, "sizes": [len(content) for content in contents]})
            for piece in (line.encode() + b"\n", *contents):
                self._write(piece)
            return self._media(self._line(), settings)
        except (OSError, ValueError, KeyError, TypeError):
            raise _Lost from None
        finally:
            watch.cancel()

    def close(self) -> None:
        self._end()

    def _write(self, piece: bytes) -> None:
        left = memoryview(piece)
        while left:
            left = left[os.write(self._in.fileno(), left[:CHUNK]) :]

    def _line(self) -> dict[str, Any]:
        while b"\n" not in self._rest:
            self._rest += self._read(CHUNK)
            if len(self._rest) > MOST_HEAD + CHUNK:
                raise _Lost
        line, _, self._rest = self._rest.partition(b"\n")
        head = json.loads(line)
        if not isinstance(head, dict):
            raise _Lost
        return head

    def _media(self, head: dict[str, Any], settings: VisionSettings) -> list[Media]:
        import numpy as np

        if "reason" in head:
            raise Unusable(str(head["reason"]), too_large=bool(head["too_large"]))
        found, total = [], 0
        for told in head["media"]:
            shape = tuple(int(side) for side in told["shape"])
            total += math.prod(shape)
            if len(shape) != 4 or min(shape) < 1 or shape[3] != 3 or total > MOST_ANSWER:
                raise _Lost
            width, height = told["original"]
            pixels = np.frombuffer(self._exactly(math.prod(shape)), np.uint8).reshape(shape)
            kind: Literal["image", "video"] = "video" if told["kind"] == "video" else "image"
            found.append(Media(kind, pixels, settings, (width, height), tuple(map(float, told["seconds"]))))
        return found

    def _exactly(self, size: int) -> bytearray:
        data = bytearray(self._rest[:size])
        self._rest = self._rest[size:]
        while len(data) < size:
            data += self._read(min(CHUNK, size - len(data)))
        return data

    def _read(self, most: int) -> bytes:
        read = os.read(self._out.fileno(), most)
        if not read:
            raise _Lost
        return read


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
