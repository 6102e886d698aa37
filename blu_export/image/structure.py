"""Limits on the structure of an encoded photo, counted on its bytes before a decoder sees them.

Decoders take their time over every scan, chunk and tag, so that half a megabyte of nothing else holds one for minutes.
What photos have is far below these limits. They keep out the cheap attacks; a deadline must keep out the rest.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from typing import IO, Any, Literal, NamedTuple

from blu_export.errors import ImageError, ImageFormatError

MAX_SEGMENTS = 4096
"""Of a JPEG before its first scan. A photo has some twenty, and one for every 64 kB of metadata."""
MAX_SCANS = 100
"""Of a JPEG; a progressive one has about ten. Each may touch every pixel at hardly any cost in bytes."""
FREE_CHUNKS = 10_000
BYTES_PER_CHUNK = 1024
"""A PNG or WebP may have FREE_CHUNKS chunks, and one more per this many bytes."""
MAX_TAGS = 1000
"""Of a TIFF directory, or of EXIF data, which is one."""
MAX_STRIPS = 2**18
"""Strips or tiles of a TIFF."""
SCANS_PER_STRIP = 4
"""Of a TIFF whose strips are JPEGs."""
MAX_REREADS = 8
"""How often the values of a directory's tags may name the same bytes, on average."""
MAX_TEXT = 2**16
"""Of a PNG's text that is kept; a photo's description is shorter, the texts of image generators are not."""
_BLOCK = 2**20

_APP1 = 0xE1
_START_OF_SCAN, _END_OF_IMAGE = b"\xda", b"\xd9"
_SCAN = b"\xff" + _START_OF_SCAN
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
"""Of a JPEG, between its pixels."""
_EXIF_HEADER = b"Exif\0\0"
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
"""JPEG markers that stand alone."""
_SAMPLES_PER_PIXEL, _BITS_PER_SAMPLE, _SAMPLE_FORMAT, _FLOAT = 277, 258, 339, 3
_STRIP_OFFSETS, _STRIP_SIZES, _TILE_OFFSETS, _TILE_SIZES, _COMPRESSION = 273, 279, 324, 325, 259
_JPEG_IN_TIFF = (6, 7)
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value, by the type of its TIFF tag."""


def check_jpeg(file: IO[bytes], name: str) -> None:
    """Raise ImageError where a JPEG has more segments, scans or EXIF tags than photos have."""
    exif = b""
    for count, (marker, size) in enumerate(_jpeg_segments(file)):
        if count == MAX_SEGMENTS:
            raise _too_many(name, f"more than {MAX_SEGMENTS} segments before its pixels")
        if marker == _APP1:
            content = file.read(size)
            if content.startswith(_EXIF_HEADER):  # more than one of them are one, in pieces
                exif += content[len(_EXIF_HEADER) :] if exif else content
    _check_scans(file, name, MAX_SCANS)
    check_exif(exif, name)


def check_png(file: IO[bytes], name: str) -> None:
    """Raise ImageError where a PNG has more chunks or EXIF tags than photos have."""
    _check_chunks(file, name, first=8, big_endian=True, trailer=4)


def without_text(file: IO[bytes], but: str) -> IO[bytes]:
    """A PNG without its compressed and long texts, which Pillow would keep in memory or refuse the photo for.

    Args:
        but: keyword of the text that stays.
    """
    kept, left_out = [file.read(8)], False
    while len(head := file.read(8)) == 8:
        length = int.from_bytes(head[:4], "big")
        content = file.read(length + 4)
        is_text = head[4:] in (b"zTXt", b"iTXt") or (head[4:] == b"tEXt" and length > MAX_TEXT)
        if is_text and not content.startswith(but.encode() + b"\0"):
            left_out = True
        else:
            kept += [head, content]
    file.seek(0)
    return io.BytesIO(b"".join(kept)) if left_out else file


def check_webp(file: IO[bytes], name: str) -> None:
    """Raise ImageError where a WebP has more chunks or EXIF tags than photos have."""
    _check_chunks(file, name, first=12, big_endian=False, trailer=0)


def check_tiff(file: IO[bytes], name: str) -> None:
    """Raise ImageError where a TIFF's first directory is larger than those of photos are."""
    tags = _check_directory(file, name)
    strips = max((tags[tag].values for tag in (_STRIP_OFFSETS, _TILE_OFFSETS) if tag in tags), default=0)
    if strips > MAX_STRIPS:
        raise _too_many(name, f"more than {MAX_STRIPS} strips")
    if _COMPRESSION in tags and tags[_COMPRESSION].first in _JPEG_IN_TIFF:
        limit = MAX_SCANS + SCANS_PER_STRIP * strips
        if _count_scans(file) > limit:
            raise _too_many(name, f"more than {limit} scans")


def unsupported_tiff(file: IO[bytes], name: str) -> ImageError:
    """The error for a TIFF whose kind of pixels is not read: how many bands of what it has."""
    tags = _check_directory(file, name)
    file.seek(0)
    order: Literal["little", "big"] = "little" if file.read(2) == b"II" else "big"

    def first_short(tag: int, missing: int) -> int:
        if tag not in tags or tags[tag].values <= 2:
            return tags[tag].first if tag in tags else missing
        file.seek(tags[tag].first)
        return int.from_bytes(file.read(2), order)

    bands, bits = first_short(_SAMPLES_PER_PIXEL, 1), first_short(_BITS_PER_SAMPLE, 1)
    kind = "floating point" if first_short(_SAMPLE_FORMAT, 1) == _FLOAT else f"{bits} bits"
    return ImageFormatError(
        f"{name} is not supported: {bands} bands of {kind}.", "Convert it to 8 or 16 bits, gray or RGB."
    )


def check_exif(content: bytes, name: str) -> None:
    """Raise ImageError where EXIF data have more tags than those of photos."""
    _check_directory(io.BytesIO(content.removeprefix(_EXIF_HEADER)), name)


def _jpeg_segments(file: IO[bytes]) -> Iterator[tuple[int, int]]:
    """(marker, bytes of its content) up to the first scan; the file stands at the content. Junk is a segment too."""
    place = 2
    while True:
        file.seek(place)
        head = file.read(4)
        if len(head) < 4:
            return
        if head[0] != 0xFF or head[1] in (0x00, 0xFF):
            place += 1
            yield 0, 0
        elif head[:2] == _SCAN:
            return
        elif head[1] in _WITHOUT_LENGTH:
            place += 2
            yield head[1], 0
        else:
            size = int.from_bytes(head[2:], "big")
            place += 2 + max(size, 2)
            yield head[1], max(size - 2, 0)


def _check_scans(file: IO[bytes], name: str, limit: int) -> None:
    """Count starts of scans. What follows a JPEG's end, as a phone's video does, does not count."""
    if _count_scans(file) <= limit:  # fast, and nearly always enough
        return
    file.seek(0)
    data = file.read()
    scans, place = 0, 2
    while (marker := _MARKER.search(data, place)) is not None and marker[1] != _END_OF_IMAGE:
        scans += marker[1] == _START_OF_SCAN
        if scans > limit:
            raise _too_many(name, f"more than {limit} scans")
        place = marker.end()
        if marker[1][0] not in _WITHOUT_LENGTH:
            place += max(int.from_bytes(data[place : place + 2], "big"), 2)


def _count_scans(file: IO[bytes]) -> int:
    """How often the two bytes of a start of scan stand in the file."""
    file.seek(0)
    scans, last = 0, b""
    while block := file.read(_BLOCK):
        scans += (last + block).count(_SCAN)
        last = block[-1:]
    return scans


def _check_chunks(file: IO[bytes], name: str, first: int, big_endian: bool, trailer: int) -> None:
    """Walk over chunks: of PNG (size, name, content, checksum) or RIFF (name, size, content, padding)."""
    end = file.seek(0, io.SEEK_END)
    limit = FREE_CHUNKS + end // BYTES_PER_CHUNK
    count, place = 0, first
    while place + 8 <= end:
        file.seek(place)
        head = file.read(8)
        kind, size = (head[4:], head[:4]) if big_endian else (head[:4], head[4:])
        length = int.from_bytes(size, "big" if big_endian else "little")
        count += 1
        if count > limit:
            raise _too_many(name, f"more than {limit} chunks")
        if kind in (b"eXIf", b"EXIF"):
            check_exif(file.read(min(length, end)), name)
        place += 8 + length + trailer + (0 if big_endian else length % 2)


class _Tag(NamedTuple):
    values: int
    """How many."""
    first: int
    """The first value, or where the values are."""


def _check_directory(file: IO[bytes], name: str) -> dict[int, _Tag]:
    """The tags of the first directory of a TIFF file or of EXIF data; none where it cannot be read."""
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(16)
    if len(head) < 8 or head[:2] not in (b"II", b"MM"):
        return {}
    order = "<" if head[:2] == b"II" else ">"
    big = head[2:4] in (b"+\0", b"\0+")
    if big and len(head) < 16:
        return {}
    entry = struct.Struct(f"{order}HHQ8s" if big else f"{order}HHL4s")
    start: int = struct.unpack_from(f"{order}Q" if big else f"{order}L", head, 8 if big else 4)[0]
    number = struct.Struct(f"{order}Q" if big else f"{order}H")
    if start + number.size > end:
        return {}
    file.seek(start)
    said: int = number.unpack(file.read(number.size))[0]
    count = min(said, (end - file.tell()) // entry.size)
    if count > MAX_TAGS:
        raise _too_many(name, f"{count} tags, more than {MAX_TAGS}")
    found: dict[int, _Tag] = {}
    read = 0
    for (tag, _, values, content), size in _entries(entry, file.read(count * entry.size)):
        inline = values * size <= len(content)
        width = min(size, len(content)) if inline else len(content)
        first = content[:width] if order == "<" else content[:width][::-1]
        found[tag] = _Tag(values, int.from_bytes(first, "little"))
        read += 0 if inline else min(values * size, end)
    if read > MAX_REREADS * end:
        raise _too_many(name, "tags whose values are larger than the file")
    return found


def _entries(entry: struct.Struct, data: bytes) -> Iterator[tuple[Any, int]]:
    """(tag, type, number of values, content or place), and the size of a value."""
    whole = len(data) // entry.size * entry.size
    for fields in entry.iter_unpack(data[:whole]):
        yield fields, _TYPE_SIZES.get(fields[1], 1)


def _too_many(name: str, what: str) -> ImageError:
    return ImageError(f"{name} has {what}.", "Save it again with a common program.")
