"""Media: a picture or a video as the model will see it, and the order in which its patches are packed.

Pixels are kept as bytes; numbers are made of them when the tower asks, so a waiting request costs a sixteenth.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from qwench.media.settings import VisionSettings

if TYPE_CHECKING:  # numpy is loaded by the first picture
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]
Kind = Literal["image", "video"]


@dataclass(frozen=True, eq=False)
class Media:
    """``pixels`` [frames, height, width, 3] are in their final size; a picture has one frame, a video whole pairs.

    ``original`` is the size (width, height) it came in. ``seconds`` has one timestamp per temporal patch of a video.
    """

    kind: Kind
    pixels: Pixels
    settings: VisionSettings
    original: tuple[int, int]
    seconds: tuple[float, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height that the model sees."""
        return self.pixels.shape[2], self.pixels.shape[1]

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches in time, height and width."""
        frames, height, width, _ = self.pixels.shape
        patch = self.settings.patch
        return max(1, frames // self.settings.temporal), height // patch, width // patch

    @property
    def frame_tokens(self) -> int:
        """Tokens of one temporal patch."""
        _, height, width = self.grid
        return height * width // self.settings.merge**2

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.frame_tokens

    @cached_property
    def digest(self) -> bytes:
        """Equal where the tower's output is: of the pixels, their layout and the preprocessing."""
        known = repr((self.kind, self.pixels.shape, self.settings.patch, self.settings.temporal, self.settings.merge))
        said = hashlib.sha256(f"{known}{self.settings.mean}{self.settings.std}".encode())
        said.update(self.pixels.data if self.pixels.flags.c_contiguous else self.pixels.tobytes())
        return said.digest()

    @property
    def patches(self) -> npt.NDArray[np.float32]:
        """[patches, 3 * temporal * patch**2], normalised, made anew each time.

        The patches of one merged token follow one another; within a patch: channel, frame, row, column.
        """
        import numpy as np

        settings = self.settings
        times, rows, columns = self.grid
        patch, merge, temporal = settings.patch, settings.merge, settings.temporal
        frames = self.pixels
        if frames.shape[0] == 1:  # a picture stands still
            frames = np.broadcast_to(frames, (temporal, *frames.shape[1:]))
        split = frames.reshape(
            times, temporal, rows // merge, merge, patch, columns // merge, merge, patch, 3
        )  # [T, t, H, m, p, W, m, p, 3] -> [T, H, W, m, m, 3, t, p, p]
        packed = split.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(times * rows * columns, 3, -1)
        values = np.arange(256, dtype=np.float32)
        found = np.empty(packed.shape, np.float32)
        for channel, (mean, std) in enumerate(zip(settings.mean, settings.std, strict=True)):
            table = (values - np.float32(255 * mean)) / np.float32(255 * std)
            np.take(table, packed[:, channel], out=found[:, channel])
        return found.reshape(len(found), -1)
