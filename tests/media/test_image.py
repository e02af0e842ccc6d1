"""Pictures against the reference processor, and every form they come in."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from qwench.media.image import fit, open_image, read_image
from qwench.media.settings import Caps, VisionSettings
from qwench.media.sizes import Unusable, fitting_size
from tests.media.files import SMALL, bomb, encoded, noise, shades

UPRIGHT = {1: "", 2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
           7: "TRANSVERSE", 8: "ROTATE_270"}  # fmt: skip
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def reference() -> Any:
    low, high = SMALL.image_pixels
    return Qwen2VLImageProcessorPil(
        patch_size=16, size={"shortest_edge": low, "longest_edge": high}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([(4096, 262_144), (65_536, 16_777_216), (1, 1024)]))
def test_sizes_are_those_of_the_reference(width: int, height: int, bounds: tuple[int, int]) -> None:
    if max(width, height) / min(width, height) > 200:
        with pytest.raises(Unusable, match="200 times"):
            fitting_size(width, height, 32, bounds)
    else:
        theirs = smart_resize(height, width, 32, *bounds)
        assert fitting_size(width, height, 32, bounds) == theirs[::-1]


@pytest.mark.parametrize("size", [(70, 100), (1, 1), (500, 333), (32, 900), (27, 29), (1200, 801), (512, 512)])
def test_patches_are_those_of_the_reference(reference: Any, size: tuple[int, int]) -> None:
    picture = noise(*size)
    ours = read_image(encoded(picture), SMALL, Caps())
    theirs = reference(images=picture, return_tensors="np")
    assert ours.grid == tuple(theirs["image_grid_thw"][0])
    assert ours.original == size
    np.testing.assert_allclose(ours.patches, theirs["pixel_values"], atol=1e-6)
    assert ours.patches.dtype == np.float32


@pytest.mark.parametrize("size", [(70, 100), (500, 333), (90, 900), (1200, 801)])
def test_the_tensor_path_of_the_reference_is_within_one_level(size: tuple[int, int]) -> None:
    """But for single pixels beside hard edges, where one side grows and the other shrinks: torch clamps elsewhere."""
    picture = noise(size[0] // 8 + 1, size[1] // 8 + 1).resize(size, Image.Resampling.BICUBIC)
    ours = fit(picture, SMALL, Caps())
    width, height = ours.size
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    theirs = torch.nn.functional.interpolate(pixels, (height, width), mode="bicubic", antialias=True)[0]
    apart = np.abs(ours.pixels[0].astype(int) - theirs.permute(1, 2, 0).numpy().astype(int))
    assert apart.max() <= 2
    assert (apart > 1).mean() < 1e-3


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_turned_picture_is_the_picture(orientation: int, form: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {} if form == "PNG" else {"quality": 95}
    stored = open_image(encoded(shades(96, 64), form, **options))
    turned = open_image(encoded(shades(96, 64), form, exif=exif, **options))
    way = UPRIGHT[orientation]
    expected = stored.transpose({"ROTATE_90": Image.Transpose.ROTATE_270, "ROTATE_270": Image.Transpose.ROTATE_90}.get(
        way, Image.Transpose[way]) if way else Image.Transpose.FLIP_LEFT_RIGHT)  # fmt: skip
    assert np.array_equal(np.asarray(turned), np.asarray(expected if way else stored))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF", "AVIF"])
def test_what_shows_through_is_white(form: str) -> None:
    picture = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    picture.paste((0, 0, 255, 255), (0, 0, 32, 64))
    options = {"lossless": True} if form == "WEBP" else {}
    seen = np.asarray(open_image(encoded(picture, form, **options))).astype(int)
    assert np.abs(seen[:, 40:] - 255).max() <= 4
    assert np.abs(seen[:, :24] - [0, 0, 255]).max() <= 4


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1"])
def test_every_mode_is_converted_as_the_reference_does(reference: Any, mode: str) -> None:
    picture = shades(80, 64).convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize((80, 64)))
    picture = picture.convert(mode)
    theirs = reference(images=Image.open(io.BytesIO(encoded(picture))), return_tensors="np")
    np.testing.assert_allclose(read_image(encoded(picture), SMALL, Caps()).patches, theirs["pixel_values"], atol=1e-6)


def test_sixteen_bits_become_eight_and_do_not_saturate() -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    seen = np.asarray(open_image(encoded(Image.fromarray(ramp))))
    assert np.abs(seen[..., 0].astype(float) - ramp / 257).max() <= 0.51
    assert np.array_equal(seen[..., 0], seen[..., 2])


def test_of_an_animation_the_first_picture_counts() -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "green", "blue")]
    for form in ("GIF", "WEBP", "PNG"):
        more = {"lossless": True} if form == "WEBP" else {}
        seen = open_image(encoded(frames[0], form, save_all=True, append_images=frames[1:], **more))
        assert seen.getpixel((20, 20)) == (255, 0, 0)


def test_colours_of_print_become_colours_of_light() -> None:
    seen = np.asarray(open_image(encoded(Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "JPEG", quality=95)))
    assert np.abs(seen.astype(int) - [255, 0, 0]).max() <= 8


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "AVIF", "BMP", "HEIF"])
def test_every_format_is_read(form: str) -> None:
    if form == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    seen = open_image(encoded(shades(96, 64), form))
    assert seen.size == (96, 64)
    assert np.abs(np.asarray(seen).astype(int) - np.asarray(shades(96, 64)).astype(int)).mean() < 6


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "not a picture"),
        (b"x", "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='http://127.0.0.1/'/></svg>", "not a picture"),
        (b"8BPS\x00\x01" + bytes(100), "not a picture"),  # PSD
        (b"%!PS-Adobe-3.0 EPSF-3.0\n" + bytes(100), "not a picture"),
        (b"SIMPLE  =                    T" + bytes(2880), "not a picture"),  # FITS
        (b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(100), "not a picture"),  # JPEG 2000
        (encoded(noise(64, 64))[:3000], "damaged or cut off"),
        (encoded(noise(64, 64), "JPEG")[:900], "damaged or cut off"),
        (encoded(noise(64, 64), "WEBP")[:900], "damaged or cut off"),
        (encoded(noise(64, 64), "AVIF")[:900], "damaged or cut off"),
        (b"\x89PNG\r\n\x1a\n", "damaged or cut off"),
        (b"GIF89a" + bytes(7), "damaged or cut off"),
        (b"BM" + bytes(60), "damaged or cut off"),
        (bomb(60_000, 60_000), "pixels that are read"),
        (bomb(12_000, 12_000), "12000 by 12000 pixels"),
        (bomb(100, 100), "damaged or cut off"),
        (encoded(noise(1, 20_000)), "200 times the shorter"),
        (encoded(noise(30_000, 1)), "200 times the shorter"),
    ],
)
def test_what_is_no_picture_is_one_sentence(data: bytes, sentence: str) -> None:
    with pytest.raises(Unusable, match=sentence) as caught:
        read_image(data, SMALL, Caps())
    assert caught.value.too_large == ("pixels" in sentence)
    assert not any(word in caught.value.reason for word in ("0x", "Traceback", "/", "PIL", "Error"))


def test_caps_hold() -> None:
    seen = fit(noise(1000, 1000), VisionSettings(), Caps(max_pixels=100_000))
    assert seen.size[0] * seen.size[1] <= 100_000
    seen = fit(noise(100, 100), VisionSettings(), Caps(min_pixels=500_000))
    assert seen.size[0] * seen.size[1] >= 500_000


def test_the_digest_is_of_what_is_seen() -> None:
    base = read_image(encoded(shades(96, 64)), SMALL, Caps())
    assert base.digest == read_image(encoded(shades(96, 64), "BMP"), SMALL, Caps()).digest
    assert base.digest != read_image(encoded(shades(96, 65)), SMALL, Caps()).digest
    other = VisionSettings(mean=(0.4, 0.5, 0.5), image_pixels=SMALL.image_pixels)
    assert base.digest != read_image(encoded(shades(96, 64)), other, Caps()).digest
