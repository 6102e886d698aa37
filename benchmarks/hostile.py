"""Small bodies that cost a server much: JSON, and files with a structure that no photo has.

Sizes are arguments, so that tests can make harmless ones of the same kind.
"""

from __future__ import annotations

import io
import json
import struct
import zlib

from PIL import Image

from benchmarks.malformed import WEBP_9400, png_chunk, png_of

SIDE = 64
"""Pixels of a side, where the number of pixels is not the attack."""
_UNDEFINED, _SHORT, _LONG = 7, 3, 4
"""Types of TIFF tags."""


def json_with_string(length: int = 300_000, others: int = 1000) -> bytes:
    """An infer request whose pixels are strings, one of them long: as an array, each takes as much as the longest."""
    pixels = ["7" * length, *["7"] * others]
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 3], "data": pixels}
    return json.dumps({"inputs": [tensor]}).encode()


def json_lists(count: int = 6_600_000) -> bytes:
    """A list of empty lists: three bytes each here, an object each in the parser's memory."""
    return b"[" + b",".join([b"[]"] * count) + b"]"


def jpeg_of_scans(scans: int = 6000, width: int = 7000, height: int = 7000) -> bytes:
    """A progressive gray JPEG; each of its scans says in a few bytes that no coefficient of any block changes."""

    def segment(marker: int, content: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", 2 + len(content)) + content

    def scan(first: int, last: int, bits: str) -> bytes:
        bits += "1" * (-len(bits) % 8)
        packed = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
        return segment(0xDA, bytes([1, 1, 0, first, last, 0])) + packed

    def huffman(kind: int, symbol: int) -> bytes:
        """A table of one symbol, whose code is a single 0."""
        return segment(0xC4, bytes([kind << 4, 1, *[0] * 15, symbol]))

    blocks = -(-width // 8) * -(-height // 8)
    run_bits = "01" * 7  # none of its bytes needs an escape
    run = 2**14 + int(run_bits, 2)
    end_of_bands = 0xE0  # of as many blocks as 14 more bits say
    head = segment(0xDB, bytes([0, *[1] * 64])) + segment(0xC2, struct.pack(">BHHB3B", 8, height, width, 1, 1, 0x11, 0))
    tables = huffman(0, 0) + huffman(1, end_of_bands)
    empty = scan(1, 63, ("0" + run_bits) * -(-blocks // run))
    return b"\xff\xd8" + head + tables + scan(0, 0, "0" * blocks) + empty * scans + b"\xff\xd9"


def jpeg_of_markers(count: int = 4_000_000) -> bytes:
    """A JPEG with empty comments before its pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE)).save(buffer, "JPEG")
    whole = buffer.getvalue()
    return whole[:2] + b"\xff\xfe\0\2" * count + whole[2:]


def png_of_chunks(count: int = 1_000_000) -> bytes:
    """A PNG with empty chunks before its pixels."""
    return png_of(SIDE, SIDE, _rows(), png_chunk(b"blUe") * count)


def png_of_exif_tags(tags: int = 20_000, size: int = 10_000_000) -> bytes:
    """A PNG whose EXIF tags have ``size`` bytes each, and all have the same ones."""
    start = 8
    entries = b"".join(struct.pack("<HHII", 20_000 + tag, _UNDEFINED, size, start) for tag in range(tags))
    head = struct.pack("<2sHI", b"II", 42, start + size)
    exif = head + bytes(size) + struct.pack("<H", tags) + entries + bytes(4)
    return png_of(SIDE, SIDE, _rows(), png_chunk(b"eXIf", exif))


def tiff_of_tags(count: int = 900_000) -> bytes:
    """A BigTIFF of gray pixels with ``count`` tags that mean nothing, beside those that it needs."""
    start = 16
    pixels = bytes(SIDE * SIDE)
    needed = {256: SIDE, 257: SIDE, 258: 8, 259: 1, 262: 1, 273: start, 277: 1, 278: SIDE, 279: len(pixels)}
    entries = b"".join(struct.pack("<HHQQ", tag, _LONG, 1, value) for tag, value in needed.items())
    entries += b"".join(struct.pack("<HHQQ", 40_000 + tag % 20_000, _SHORT, 1, 0) for tag in range(count))
    head = struct.pack("<2sHHHQ", b"II", 43, 8, 0, start + len(pixels))
    return head + pixels + struct.pack("<Q", len(needed) + count) + entries + bytes(8)


def webp(width: int = 7000, height: int = 7000) -> bytes:
    """Black pixels, lossless: their number costs no bytes."""
    data = bytearray(WEBP_9400)
    struct.pack_into("<I", data, 21, (width - 1) | (height - 1) << 14)
    return bytes(data)


def enlarged(photo: bytes, side: int = 3200) -> bytes:
    """A photo, blown up to a square, whose masks are large."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(photo)) as opened:
        opened.convert("RGB").resize((side, side)).save(buffer, "JPEG", quality=60)
    return buffer.getvalue()


def tiny_chunks(count: int = 10_000) -> bytes:
    """A request whose body comes in chunks of one byte; much larger ones would be reset before their answer is read."""
    head = b"POST /v1/predict HTTP/1.1\r\nHost: blu\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"1\r\nx\r\n" * count + b"0\r\n\r\n"


def _rows() -> bytes:
    """Black pixels of a PNG, packed."""
    return zlib.compress(bytes(SIDE * (1 + 3 * SIDE)))
