"""Photos as people have them: every format that is read, and a sentence for what is not."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from blu_export.errors import ImageError, ImageFormatError, ImageSizeError
from blu_export.image import decode
from blu_export.sources import IMAGE_SUFFIXES

RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8, 1).repeat(3, axis=2) * 3


def encoded(form: str, pixels: NDArray[np.uint8] = RAMP, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def tiff(bands: int, kind: str, sample_format: int, **tags: int) -> bytes:
    """A TIFF of 4×4 zeros: ``kind`` is NumPy's, little-endian."""
    data = np.zeros((4, 4, bands), kind)
    size = data.dtype.itemsize * 8
    values = {256: 4, 257: 4, 258: [size] * bands, 259: 1, 262: 2, 273: 0, 277: bands, 278: 4, 279: data.nbytes}
    values |= {284: 1, 339: [sample_format] * bands}
    rows, extra, start = [], b"", 8 + 2 + 12 * len(values) + 4
    for tag, value in sorted(values.items()):
        shorts = value if isinstance(value, list) else [value]
        content = struct.pack(f"<{len(shorts)}H", *shorts)
        if len(content) > 4:
            content, extra = struct.pack("<I", start + len(extra)), extra + content
        rows.append(struct.pack("<HHI", tag, 3, len(shorts)) + content.ljust(4, b"\0"))
    return b"II*\0" + struct.pack("<IH", 8, len(rows)) + b"".join(rows) + bytes(4) + extra + data.tobytes()


def test_gif_and_avif_are_read() -> None:
    np.testing.assert_allclose(decode(encoded("GIF")), RAMP, atol=2)
    np.testing.assert_allclose(decode(encoded("AVIF", quality=100)).astype(int), RAMP, atol=6)


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (200, 10)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert (decode(file.getvalue()) == 200).all()


def test_heic_is_read_or_says_what_it_needs() -> None:
    heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif")
    file = io.BytesIO()
    heif.from_pillow(Image.fromarray(RAMP.repeat(8, axis=0).repeat(8, axis=1))).save(file, quality=90)
    assert decode(file.getvalue()).shape == (64, 64, 3)


def test_heic_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    with pytest.raises(ImageFormatError, match="is HEIC.*pip install pillow-heif"):
        decode(b"\0\0\0\x18ftypheic" + bytes(100))


@pytest.mark.parametrize("compressed", [True, False])
def test_a_png_with_megabytes_of_text(compressed: bool) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 3_000_000, zip=compressed)
    info.add_itxt("prompt", "y" * 2_000_000, zip=compressed)
    np.testing.assert_array_equal(decode(encoded("PNG", pnginfo=info)), RAMP)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (tiff(5, "<u2", 1), "has 5 channels, and the model takes 3"),
        (tiff(8, "u1", 1), "has 8 channels, and the model takes 3"),
        (tiff(3, "<f4", 3), "is not supported: 3 bands of floating point"),
        (tiff(8, "<i2", 2), "is not supported: 8 bands of 16 bits"),
    ],
    ids=["five", "eight", "float", "signed"],
)
def test_a_tiff_of_other_bands_is_not_called_damaged(content: bytes, what: str) -> None:
    with pytest.raises(ImageError, match=what):
        decode(content)


def test_twelve_bits_in_sixteen() -> None:
    values = (np.arange(64, dtype=np.uint16).reshape(8, 8)) * 64  # up to 4032
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    plain, given = decode(file.getvalue()), decode(file.getvalue(), bits=12)
    assert plain.max() == 15
    np.testing.assert_array_equal(given[..., 0], values >> 4)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF", tiffinfo={281: 4095})
    np.testing.assert_array_equal(decode(file.getvalue()), given)
    assert (decode(file.getvalue(), bits=8) == np.minimum(values, 255)[..., None]).all()


def test_the_limit_of_pixels_names_the_way_past_it() -> None:
    with pytest.raises(ImageSizeError, match=r"8×8 pixels.*--max-pixels 64 \(max_pixels= in Python\)"):
        decode(encoded("PNG"), max_pixels=63)


def test_suffixes_of_all_that_is_read(tmp_path: Path) -> None:
    assert {".jfif", ".gif", ".avif", ".heic"} <= IMAGE_SUFFIXES
