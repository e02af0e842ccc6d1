"""Videos: which frames, when, and in which order, as the reference has it; and what cannot be read."""

from __future__ import annotations

import contextlib
import io
import struct
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor, smart_resize

from qwench.media.patches import Media
from qwench.media.settings import Caps
from qwench.media.sizes import Unusable, fitting_size
from qwench.media.video import choose, read_frames, read_video, timestamps
from tests.media.files import SMALL, encoded, noise, shades, video

LIMITS = SimpleNamespace(fps=2, min_frames=4, max_frames=768)


def counted(number: int, width: int = 96, height: int = 64) -> list[Image.Image]:
    """Frames that can be told apart: each a shade of its own."""
    return [Image.new("RGB", (width, height), (20 + 200 * index // number,) * 3) for index in range(number)]


def shades_of(media: Media) -> list[int]:
    return [int(frame.mean()) for frame in media.pixels]


@given(st.integers(2, 40), st.integers(1, 1500), st.integers(1, 1500))
def test_sizes_are_those_of_the_reference(frames: int, width: int, height: int) -> None:
    try:
        theirs = smart_resize(frames, height, width, 2, 32, 4096, 262_144)
    except ValueError:
        with pytest.raises(Unusable, match="200 times"):
            fitting_size(width, height, 32, (4096, 262_144), frames=frames, temporal=2)
    else:
        assert fitting_size(width, height, 32, (4096, 262_144), frames=frames, temporal=2) == theirs[::-1]


@given(st.integers(2, 5000), st.sampled_from([1.0, 5.0, 12.5, 24.0, 30000 / 1001, 60.0]))
def test_frames_and_times_are_those_of_the_reference(total: int, fps: float) -> None:
    metadata = SimpleNamespace(total_num_frames=total, fps=fps)
    theirs = Qwen3VLVideoProcessor.sample_frames(LIMITS, metadata).tolist()
    times = [index / fps for index in range(total)]
    ours = choose(times, SMALL, Caps())
    if total / fps * 2 % 1 > 1e-6:  # else a rounding of the rate decides
        assert ours == theirs
    told = Qwen3VLProcessor._calculate_timestamps(SimpleNamespace(), list(ours), fps)
    np.testing.assert_allclose(timestamps([times[index] for index in ours], 2), told, rtol=1e-9)


@pytest.mark.parametrize("number", [2, 5, 8])
def test_patches_are_those_of_the_reference(number: int) -> None:
    frames = [noise(96, 64, seed) for seed in range(number)]
    ours = read_frames(iter(frames), number, 2.0, SMALL, Caps())
    width, height = ours.size
    stacked = np.stack([np.asarray(frame.resize((width, height), Image.Resampling.BICUBIC)) for frame in frames])
    pixels = (torch.from_numpy(stacked).permute(0, 3, 1, 2)[None].float() / 255 - 0.5) / 0.5
    theirs, *grid = Qwen3VLVideoProcessor.patchify(SimpleNamespace(), pixels, 16, 2, 2)
    assert ours.grid == tuple(grid)
    np.testing.assert_allclose(ours.patches, theirs[0].numpy(), atol=1e-6)
    assert len(ours.seconds) == ours.grid[0]


@pytest.mark.parametrize(("form", "codec"), [("mp4", "mpeg4"), ("matroska", "mpeg4"), ("mp4", "h264"), ("webm", "vp9")])
def test_a_video_is_read_in_every_container(form: str, codec: str) -> None:
    seen = read_video(video(counted(24), 8, form=form, codec=codec), SMALL, Caps())
    assert seen.kind == "video"
    assert seen.grid == (3, *seen.grid[1:])  # 24 frames at 8 a second are 3 seconds, at 2 a second 6 frames
    assert seen.original == (96, 64)
    expected = [round(index) for index in np.linspace(0, 23, 6)]
    np.testing.assert_allclose(shades_of(seen), [20 + 200 * index // 24 for index in expected], atol=6)
    times = [index / 8 for index in expected]
    np.testing.assert_allclose(seen.seconds, [(times[at] + times[at + 1]) / 2 for at in (0, 2, 4)], atol=2e-3)


def test_frames_that_come_unevenly_keep_their_own_times() -> None:
    times = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 2.0, 4.0]
    seen = read_video(video(counted(8), 8, times=times), SMALL, Caps(fps=1))
    expected = [20 + 200 * index // 8 for index in (0, 6, 7, 7)]  # nearest to 0, 1.33, 2.67 and 4 seconds
    np.testing.assert_allclose(shades_of(seen), expected, atol=6)
    assert seen.seconds == pytest.approx((1.0, 4.0), abs=0.01)


def turned(data: bytes, degrees: int) -> bytes:
    """An MP4 whose header says that it is to be shown turned."""
    sine, cosine = {0: (0, 1), 90: (1, 0), 180: (0, -1), 270: (-1, 0)}[degrees]
    straight = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    matrix = struct.pack(">9i", cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 0x40000000)
    track = data.rindex(b"tkhd")
    at = data.index(straight, track)
    return data[:at] + matrix + data[at + len(matrix) :]


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_turned_video_is_seen_upright(degrees: int) -> None:
    stored = shades(96, 64)
    seen = read_video(turned(video([stored] * 8, 8), degrees), SMALL, Caps())
    shown = {0: None, 90: Image.Transpose.ROTATE_270, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_90}
    way = shown[degrees]
    upright = stored if way is None else stored.transpose(way)
    assert seen.original == upright.size
    expected = np.asarray(upright.resize(seen.size)).astype(int)
    assert np.abs(seen.pixels[0].astype(int) - expected).mean() < 8


def test_limits_bound_frames_and_pixels() -> None:
    data = video(counted(64), 16)
    assert read_video(data, SMALL, Caps(max_frames=4)).grid[0] == 2
    assert read_video(data, SMALL, Caps(fps=8)).grid[0] == 16
    capped = read_video(data, SMALL, Caps(max_pixels=2048))
    assert capped.size[0] * capped.size[1] <= 2048


def test_one_frame_is_shown_twice() -> None:
    seen = read_video(video(counted(1), 8), SMALL, Caps())
    assert seen.grid[0] == 1
    assert seen.pixels.shape[0] == 2
    assert seen.seconds == (0.0,)


def without_track() -> bytes:
    """A container with nothing to see in it."""
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        track: Any = container.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        for packet in (*track.encode(frame), *track.encode()):
            container.mux(packet)
    return stream.getvalue()


WHOLE = video(counted(16), 8)
PLAYLIST = b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/x.ts\n"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "container known"),
        (b"RIFF\x00\x00\x00\x00AVI LIST", "container known"),
        (PLAYLIST, "container known"),
        (encoded(noise(64, 64)), "container known"),
        (WHOLE[:40], "damaged"),
        (WHOLE[: len(WHOLE) // 2], "damaged"),
        (b"\x00\x00\x00\x18ftypisom" + bytes(400), "damaged|no video"),
        (b"\x1a\x45\xdf\xa3" + bytes(400), "damaged|no video"),
        (b"\x00\x00\x00\x18ftypisom" + PLAYLIST * 20, "damaged|no video"),
        (without_track(), "no video"),
        (video(counted(8), 8, form="matroska", codec="mjpeg"), "coded in a way"),
    ],
)
def test_what_is_no_video_is_one_sentence(data: bytes, sentence: str) -> None:
    with pytest.raises(Unusable, match=sentence) as caught:
        read_video(data, SMALL, Caps())
    assert not any(word in caught.value.reason for word in ("0x", "Errno", "avcodec", "<"))


def test_every_bit_may_be_wrong() -> None:
    """Whatever comes of it is a video or a sentence."""
    random = np.random.default_rng(5)
    for _ in range(60):
        data = bytearray(WHOLE)
        for at in random.integers(8, len(data), 12):
            data[at] = random.integers(256)
        with contextlib.suppress(Unusable):
            assert read_video(bytes(data), SMALL, Caps()).kind == "video"


def test_frames_as_a_list_are_bounded_and_of_one_size() -> None:
    with pytest.raises(Unusable, match="more than the 768 frames") as caught:
        read_frames(iter(()), 5000, 2.0, SMALL, Caps())
    assert caught.value.too_large
    with pytest.raises(Unusable, match="without frames"):
        read_frames(iter(()), 0, 2.0, SMALL, Caps())
    with pytest.raises(Unusable, match="different sizes"):
        read_frames(iter([noise(64, 64), noise(64, 65)]), 2, 2.0, SMALL, Caps())
