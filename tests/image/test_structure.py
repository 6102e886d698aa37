"""Files with a structure that no photo has are refused before a decoder sees them; what real photos have is not."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from blu_export.errors import ImageError
from blu_export.image import decode, structure

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)


def encoded(kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, **options)
    return buffer.getvalue()


def directory(tags: int, size: int, big: bool = False) -> bytes:
    """A TIFF directory of unknown tags, all of which name the same ``size`` bytes before it."""
    start = 16 + size
    head = struct.pack("<2sHHHQ", b"II", 43, 8, 0, start) if big else struct.pack("<2sHL8x", b"II", 42, start)
    entry = "<HHQQ" if big else "<HHLL"
    entries = b"".join(struct.pack(entry, 40_000 + index % 20_000, 7, size, 16) for index in range(tags))
    return head + bytes(size) + struct.pack("<Q" if big else "<H", tags) + entries + bytes(8)


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(extra: bytes) -> bytes:
    whole = encoded("PNG")
    return whole[:33] + extra + whole[33:]  # after the header


def webp(extra: bytes) -> bytes:
    body = encoded("WEBP", lossless=True)[12:] + extra
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def jpeg(extra: bytes) -> bytes:
    whole = encoded("JPEG", quality=95)
    return whole[:2] + extra + whole[2:]


def exif_segments(content: bytes) -> bytes:
    """EXIF data in as many segments as they need."""
    pieces = [content[start : start + 65_000] for start in range(0, len(content), 65_000)]
    return b"".join(b"\xff\xe1" + struct.pack(">H", 8 + len(piece)) + b"Exif\0\0" + piece for piece in pieces)


def many_scans(count: int) -> bytes:
    """A progressive JPEG with its last scan again and again."""
    whole = encoded("JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * count + whole[-2:]


MANY = structure.MAX_TAGS + 1
TEXT_EXIF = PngImagePlugin.PngInfo()
TEXT_EXIF.add_text("Raw profile type exif", f"\nexif\n{8}\n" + (b"Exif\0\0" + directory(MANY, 100)).hex(), zip=True)
HOSTILE = {
    "scans": (many_scans(structure.MAX_SCANS), "scans"),
    "markers": (jpeg(b"\xff\xfe\0\2" * (structure.MAX_SEGMENTS + 1)), "segments"),
    "fill bytes": (jpeg(b"\xff" * 2 * structure.MAX_SEGMENTS), "segments"),
    "EXIF in pieces": (jpeg(exif_segments(directory(900, 100_000))), "larger than the file"),
    "PNG chunks": (png(chunk(b"teSt") * (structure.FREE_CHUNKS + 500)), "chunks"),
    "PNG chunks after the pixels": (encoded("PNG")[:-12] + chunk(b"teSt") * 11_000 + chunk(b"IEND"), "chunks"),
    "PNG EXIF": (png(chunk(b"eXIf", directory(MANY, 100))), "tags"),
    "PNG EXIF, reread": (png(chunk(b"eXIf", directory(900, 1000))), "larger than the file"),
    "PNG EXIF as text": (encoded("PNG", pnginfo=TEXT_EXIF), "tags"),
    "WebP chunks": (webp((b"teSt" + bytes(4)) * (structure.FREE_CHUNKS + 500)), "chunks"),
    "WebP EXIF": (webp(b"EXIF" + struct.pack("<I", len(directory(MANY, 100))) + directory(MANY, 100)), "tags"),
    "TIFF tags": (directory(MANY, 100), "tags"),
    "BigTIFF tags": (directory(70_000, 100, big=True), "tags"),
    "TIFF reread": (directory(900, 1000), "larger than the file"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_photo_has_is_refused(name: str) -> None:
    data, what = HOSTILE[name]
    with pytest.raises(ImageError, match=what):
        decode(data)


def test_too_many_strips_are_refused() -> None:
    count = structure.MAX_STRIPS + 1
    tags = [(256, 3, 1, 8), (257, 4, 1, count), (273, 3, count, 16)]
    entries = b"".join(struct.pack("<HHLL", *tag) for tag in tags)
    head = struct.pack("<2sHL8x", b"II", 42, 16 + 2 * count)
    with pytest.raises(ImageError, match="strips"):
        decode(head + bytes(2 * count) + struct.pack("<H", len(tags)) + entries + bytes(4))


@pytest.mark.parametrize(
    "data",
    [
        encoded("JPEG", progressive=True),
        jpeg(exif_segments(directory(200, 1))),
        jpeg(b"\xff\xfe\xff\xff" + bytes(65_533)),
        encoded("JPEG", progressive=True) + b"\xff\xda" * 1000,  # a phone's video after the photo
        png(chunk(b"teSt") * 1000),
        webp((b"teSt" + bytes(4)) * 1000),
        encoded("TIFF", compression="jpeg"),
        encoded("TIFF", compression="tiff_lzw"),
    ],
    ids=["progressive", "EXIF", "long comment", "trailer", "PNG", "WebP", "TIFF JPEG", "TIFF LZW"],
)
def test_what_photos_have_is_not(data: bytes) -> None:
    assert decode(data).shape == PIXELS.shape


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_cut_off_anywhere_it_is_an_image_or_an_error_of_ours(kind: str) -> None:
    whole = encoded(kind)
    for end in range(0, len(whole), 7):
        try:
            decode(whole[:end])
        except ImageError:
            continue
