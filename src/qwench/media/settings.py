"""What one checkpoint wants of pictures (VisionSettings) and how much of them is let in (Caps). Knows no format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from qwench.config import VisionConfig
from qwench.errors import RequestError
from qwench.fields import Fields, is_real, is_whole, read_json

MOST_FPS = 120.0
MOST_FRAMES = 4096
MOST_PAGES = 1000
MOST_PIXELS = 2**28


@dataclass(frozen=True)
class VisionSettings:
    """Sizes of patches, the normalisation, and how many pixels a picture or a whole video may come to.

    ``patch`` pixels make a patch, ``merge`` by ``merge`` patches a token, ``temporal`` frames are read together.
    """

    patch: int = 16
    temporal: int = 2
    merge: int = 2
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_pixels: tuple[int, int] = (65_536, 16_777_216)
    video_pixels: tuple[int, int] = (4_096, 25_165_824)  # of all frames together
    fps: float = 2.0
    frames: tuple[int, int] = (4, 768)

    @property
    def factor(self) -> int:
        """Both sides of what the model sees are multiples of this."""
        return self.patch * self.merge

    def within(self, most: int) -> VisionSettings:
        """These, with no picture of more than ``most`` pixels, and no video of more tokens than such a picture."""
        pictures, videos = self.image_pixels, self.video_pixels
        return replace(
            self,
            image_pixels=(min(pictures[0], most), min(pictures[1], most)),
            video_pixels=(min(videos[0], self.temporal * most), min(videos[1], self.temporal * most)),
        )

    @classmethod
    def of(cls, vision: VisionConfig) -> VisionSettings:
        """As published, for a tower of these sizes."""
        return cls(vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)

    @classmethod
    def from_folder(cls, folder: Path, vision: VisionConfig) -> VisionSettings:
        """From preprocessor_config.json and video_preprocessor_config.json; what they leave out is as published.

        Raises ConfigError, also where they contradict config.json.
        """
        picture = _preprocessor(folder / "preprocessor_config.json", vision)
        video = _preprocessor(folder / "video_preprocessor_config.json", vision)
        found = cls.of(vision)
        low, high = found.frames
        return replace(
            found,
            mean=_triple(picture, "image_mean", found.mean, nought=True),
            std=_triple(picture, "image_std", found.std, nought=False),
            image_pixels=_pixels(picture, found.image_pixels),
            video_pixels=_pixels(video, found.video_pixels),
            fps=video.real("fps", found.fps),
            frames=(video.whole("min_frames", low), video.whole("max_frames", high, maximum=MOST_FRAMES)),
        )


@dataclass(frozen=True)
class Caps:
    """What a request asks for, or the operator allows; None leaves it to the checkpoint.

    ``min_pixels`` and ``max_pixels`` are those of one picture or one frame; ``fps`` are the frames of a video that are
    looked at, in each second; ``max_pages`` are those of one document.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    fps: float | None = None
    max_frames: int | None = None
    max_pages: int | None = None

    @classmethod
    def read(cls, given: Mapping[str, Any], where: str = "") -> Caps:
        """The caps among ``given``. Raises RequestError naming the field (``where`` stands before it)."""
        most = {"fps": MOST_FPS, "max_frames": MOST_FRAMES, "max_pages": MOST_PAGES}
        found: dict[str, Any] = {}
        for name in (field.name for field in fields(cls)):
            value = given.get(name)
            if value is None:
                continue
            bound = most.get(name, MOST_PIXELS)
            right = is_real(value) and value > 0 if name == "fps" else is_whole(value) and value >= 1
            if not right or value > bound:
                kind = "number above 0" if name == "fps" else "whole number from 1"
                reason = f"{where}{name} is {value!r:.80}; give a {kind} to {bound:g}"
                raise RequestError(f"{reason}.", param=f"{where}{name}")
            found[name] = value
        return cls(**found)

    def over(self, other: Caps) -> Caps:
        """These, and ``other`` where these say nothing."""
        return Caps(**{name: value for each in (other, self) for name, value in asdict(each).items() if value})

    def within(self, allowed: Caps, where: str = "") -> Caps:
        """These, bounded by what the operator allows. Raises RequestError naming what goes beyond it."""
        for name, value in asdict(self).items():
            bound = getattr(allowed, name)
            if name != "min_pixels" and value is not None and bound is not None and value > bound:
                raise RequestError(
                    f"{where}{name} is {value:g}, more than the {bound:g} allowed here; lower it or leave it out.",
                    param=f"{where}{name}",
                )
        found = self.over(allowed)
        if found.min_pixels and found.max_pixels and found.min_pixels > found.max_pixels:
            raise RequestError(
                f"{where}min_pixels is {found.min_pixels}, more than max_pixels ({found.max_pixels}); lower the first.",
                param=f"{where}min_pixels",
            )
        return found

    def pixels(self, bounds: tuple[int, int], frames: int = 1) -> tuple[int, int]:
        """``bounds`` of a picture, or of a video's ``frames`` together, with these caps on each of them."""
        low, high = bounds
        if self.max_pixels is not None:
            high = min(high, self.max_pixels * frames)
        if self.min_pixels is not None:
            low = self.min_pixels * frames
        return min(low, high), high


def _preprocessor(path: Path, vision: VisionConfig) -> Fields:
    found = Fields(read_json(path) if path.exists() else {}, str(path))
    for name, ours in (
        ("patch_size", vision.patch_size),
        ("temporal_patch_size", vision.temporal_patch_size),
        ("merge_size", vision.spatial_merge_size),
    ):
        if found.whole(name, ours) != ours:
            raise found.error(name, f"is {found.whole(name)}, but config.json says {ours}")
    return found


def _pixels(found: Fields, default: tuple[int, int]) -> tuple[int, int]:
    """The least and most pixels, which these files call edges."""
    size = found.section("size") or Fields({}, found.source)
    low, high = size.whole("shortest_edge", default[0]), size.whole("longest_edge", default[1])
    if low > high:
        raise size.error("shortest_edge", f"is {low}, more than longest_edge ({high})")
    return low, high


def _triple(found: Fields, name: str, default: tuple[float, ...], *, nought: bool) -> tuple[float, ...]:
    value = found.get(name)
    if value is None:
        return default
    if not isinstance(value, list) or len(value) != 3 or not all(is_real(each) and (each or nought) for each in value):
        raise found.error(name, f"is {value!r:.200}; it must be a list of three numbers{'' if nought else ' but 0'}")
    return tuple(map(float, value))
