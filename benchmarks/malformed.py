"""Thirty kinds of requests that no server should take, as bytes on the wire. Every one deserves a 4xx."""

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from collections.abc import Callable

from PIL import Image

from benchmarks.loadgen import request

Kind = Callable[[random.Random], bytes]


def _photo(rng: random.Random, kind: str) -> bytes:
    buffer = io.BytesIO()
    size = rng.randrange(16, 64), rng.randrange(16, 64)
    Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1])).save(buffer, kind)
    return buffer.getvalue()


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) // 8, len(data) // 2)]


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, scanlines: bytes) -> bytes:
    """A PNG that says it is RGB of that size and holds these bytes, compressed."""
    return png_of(width, height, zlib.compress(scanlines))


def png_of(width: int, height: int, packed: bytes, extra: bytes = b"") -> bytes:
    """A PNG of RGB whose pixels are packed already, with ``extra`` chunks before them."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + png_chunk(b"IDAT", packed) + png_chunk(b"IEND")


def bombs() -> dict[str, bytes]:
    """Small files that are large photos, by the bytes of RGB that they hold."""
    tiff = io.BytesIO()
    Image.new("1", (9400, 9400)).save(tiff, "TIFF", compression="group4")
    return {
        "34 bytes of WebP, 265 MB": WEBP_9400,
        "3 kB of TIFF, 265 MB": tiff.getvalue(),
        "1.2 MB of PNG, 1,200 MB": _black_png(20_000, 20_000),
    }


WEBP_9400 = bytes.fromhex("524946461a000000574542505650384c0e0000002fb7e42d09071011fd0f4444ff03")
"""9400 x 9400 black pixels, lossless."""


def _black_png(width: int, height: int) -> bytes:
    """Zeros, packed once and repeated: blocks that end with a full flush do not depend on each other."""
    size = height * (1 + 3 * width)
    packer = zlib.compressobj(9, wbits=-15)
    block = 2**20
    one = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = packer.compress(bytes(size % block)) + packer.flush()
    checksum = (size % 65521) << 16 | 1  # Adler-32 of zeros
    data = b"\x78\xda" + one * (size // block) + rest + struct.pack(">I", checksum)
    return png_of(width, height, data)


def _form(body: bytes, boundary: str = "xyz", length: int | None = None) -> bytes:
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return request(body, headers=headers if length is None else headers | {"Content-Length": str(length)})


def _part(content: bytes, disposition: str = 'form-data; name="image"; filename="a.jpg"') -> bytes:
    return b"--xyz\r\nContent-Disposition: " + disposition.encode() + b"\r\n\r\n" + content + b"\r\n"


def _infer(body: object, binary: bytes = b"", header: str | None = None) -> bytes:
    head = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Inference-Header-Content-Length": header or str(len(head))}
    return request(head + binary, "/v2/models/MODEL/infer", headers)


def _tensor(**changes: object) -> dict[str, object]:
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["aGVsbG8="]} | changes]}


KINDS: dict[str, Kind] = {
    "empty body": lambda rng: request(b""),
    "random bytes": lambda rng: request(rng.randbytes(rng.randrange(1, 5000))),
    "text": lambda rng: request(b"hello " * rng.randrange(1, 100)),
    "html": lambda rng: request(b"<!doctype html><img src='http://127.0.0.1/'>"),
    "svg with an entity bomb": lambda rng: request(b'<svg><!DOCTYPE x [<!ENTITY a "aaaa">]>&a;</svg>'),
    "pickle": lambda rng: request(b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93."),
    "gzip": lambda rng: request(b"\x1f\x8b\x08\x00" + rng.randbytes(200)),
    "cut jpeg": lambda rng: request(_cut(_photo(rng, "JPEG"), rng)),
    "cut png": lambda rng: request(_cut(_photo(rng, "PNG"), rng)),
    "cut webp": lambda rng: request(_cut(_photo(rng, "WEBP"), rng)),
    "jpeg of a header alone": lambda rng: request(b"\xff\xd8\xff\xe0\x00\x10JFIF\x00"),
    "png with a broken checksum": lambda rng: request(_photo(rng, "PNG")[:20] + rng.randbytes(200)),
    "png without pixels": lambda rng: request(_png(64, 64, b"")),
    "png of no width": lambda rng: request(_png(0, 64, b"\x00" * 64)),
    "png of two billion pixels a side": lambda rng: request(_png(2**31 - 1, 2**31 - 1, b"\x00" * 64)),
    "gif header": lambda rng: request(b"GIF89a" + rng.randbytes(20)),
    "tiff that points outside": lambda rng: request(b"II*\x00" + struct.pack("<I", 2**31) + rng.randbytes(20)),
    "wrong content type": lambda rng: request(_photo(rng, "PNG"), headers={"Content-Type": "application/json"}),
    "unknown option": lambda rng: request(_photo(rng, "PNG"), f"/v1/predict?masks={rng.randrange(100)}"),
    "unknown class": lambda rng: request(_photo(rng, "PNG"), f"/v1/predict?classes=x{rng.randrange(100)}"),
    "form without boundary": lambda rng: request(_part(b"x"), headers={"Content-Type": "multipart/form-data"}),
    "form of another boundary": lambda rng: _form(_part(b"x") + b"--xyz--\r\n", "abc"),
    "form that is cut": lambda rng: _form(_part(_photo(rng, "PNG"))[:-10]),
    "form without file": lambda rng: _form(_part(b"x", 'form-data; name="image"') + b"--xyz--\r\n"),
    "form of many parts": lambda rng: _form(_part(b"x") * 1000 + b"--xyz--\r\n"),
    "infer: no json": lambda rng: _infer(rng.randbytes(50)),
    "infer: deep json": lambda rng: _infer(b"[" * 10_000),
    "infer: wrong shape": lambda rng: _infer(_tensor(shape=[rng.randrange(2, 9)])),
    "infer: binary size that lies": lambda rng: _infer(
        _tensor(parameters={"binary_data_size": rng.randrange(10, 10**12)}), b"\x04\x00\x00\x00abcd"
    ),
    "infer: header length that lies": lambda rng: _infer(
        _tensor(), header=rng.choice((str(rng.randrange(10**4, 10**9)), "9" * 5000))
    ),
}
