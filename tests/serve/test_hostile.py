"""Bodies of ``python -m benchmarks serve --only attacks``: photos where they are small, else refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from benchmarks import hostile
from blu_export.errors import ImageError
from blu_export.image import decode, structure

SHAPES: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "scans": (hostile.jpeg_of_scans(2, width=70, height=50), (50, 70, 3)),
    "markers": (hostile.jpeg_of_markers(2), (64, 64, 3)),
    "chunks": (hostile.png_of_chunks(2), (64, 64, 3)),
    "EXIF tags": (hostile.png_of_exif_tags(2, 10), (64, 64, 3)),
    "TIFF tags": (hostile.tiff_of_tags(2), (64, 64, 3)),
    "WebP": (hostile.webp(70, 50), (50, 70, 3)),
}
TOO_MANY: dict[str, Callable[[], bytes]] = {
    "scans": lambda: hostile.jpeg_of_scans(structure.MAX_SCANS, width=70, height=50),
    "segments": lambda: hostile.jpeg_of_markers(structure.MAX_SEGMENTS),
    "chunks": lambda: hostile.png_of_chunks(structure.FREE_CHUNKS + 500),
    "20000 tags": lambda: hostile.png_of_exif_tags(20_000, 10),
    "1009 tags": lambda: hostile.tiff_of_tags(structure.MAX_TAGS),
}


@pytest.mark.parametrize("name", SHAPES)
def test_small_ones_are_photos(name: str) -> None:
    data, shape = SHAPES[name]
    assert decode(data).shape == shape


@pytest.mark.parametrize("what", TOO_MANY)
def test_large_ones_are_refused_for_their_structure(what: str) -> None:
    with pytest.raises(ImageError, match=what):
        decode(TOO_MANY[what]())


def test_scans_fit_into_the_size_that_is_named() -> None:
    many, one = hostile.jpeg_of_scans(101), hostile.jpeg_of_scans(1)
    assert len(one) + 5999 * (len(many) - len(one)) / 100 < 600_000


def test_the_json_is_what_it_says() -> None:
    assert json.loads(hostile.json_lists(3)) == [[], [], []]
    assert len(hostile.json_lists(1000)) == 3001
    pixels = json.loads(hostile.json_with_string(50, others=9))["inputs"][0]["data"]
    assert np.array(pixels).nbytes == 10 * 50 * 4


def test_chunks_have_one_byte() -> None:
    head, _, body = hostile.tiny_chunks(3).partition(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head
    assert body == b"1\r\nx\r\n" * 3 + b"0\r\n\r\n"


def test_a_photo_is_blown_up() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (200, 0, 0)).save(buffer, "PNG")
    photo = decode(hostile.enlarged(buffer.getvalue(), side=32))
    assert photo.shape == (32, 32, 3) and photo[..., 0].min() > 190
