"""TIFFs of bands that photos do not have."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from blu_export.data.heads import PhotoHead, read_head
from blu_export.errors import ImageError, ImageFormatError, ImageSizeError
from blu_export.image import decode

SIDES = (21, 35)
TILE = 16


def values(bands: int, kind: str) -> NDArray[np.uint8] | NDArray[np.uint16]:
    return np.random.default_rng(bands).integers(0, np.iinfo(kind).max + 1, (*SIDES, bands)).astype(kind)


def upper(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.uint8]:
    return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)


def tiff(
    pixels: NDArray[np.uint8] | NDArray[np.uint16],
    *,
    compression: int = 1,
    separate: bool = False,
    tiled: bool = False,
    predictor: bool = False,
    order: str = "<",
    big: bool = False,
    tags: dict[int, Sequence[int]] | None = None,
) -> bytes:
    """A file of [H, W, C] as the specification has it; ``compression`` 1 (none), 8 (Deflate) or 5 (LZW)."""
    height, width, bands = pixels.shape
    planes = [pixels[..., i : i + 1] for i in range(bands)] if separate else [pixels]
    parts = [part for plane in planes for part in _parts(plane, tiled)]
    if predictor:
        parts = [np.diff(part, axis=1, prepend=part.dtype.type(0)) for part in parts]
    blocks = [_packed(part.astype(part.dtype.newbyteorder(order)), compression) for part in parts]
    start, places = (16 if big else 8), []
    for block in blocks:
        places.append(start)
        start += len(block)
    side = pixels.dtype.itemsize * 8
    entries: dict[int, Sequence[int]] = {256: [width], 257: [height], 258: [side] * bands, 259: [compression]}
    entries |= {262: [1], 277: [bands], 284: [1 + separate], 317: [1 + predictor], 339: [1] * bands}
    sizes = [len(block) for block in blocks]
    entries |= {322: [TILE], 323: [TILE], 324: places, 325: sizes} if tiled else {273: places, 278: [8], 279: sizes}
    entries |= tags or {}
    version = [43, 8, 0] if big else [42]
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + ("HHHQ" if big else "HL"), *version, start)
    return head + b"".join(blocks) + _directory(entries, start, order, big)


def _parts(plane: NDArray[np.uint8] | NDArray[np.uint16], tiled: bool) -> list[NDArray[np.uint8] | NDArray[np.uint16]]:
    if not tiled:
        return [plane[row : row + 8] for row in range(0, len(plane), 8)]
    fill = [(0, -side % TILE) for side in plane.shape[:2]]
    padded = np.pad(plane, (*fill, (0, 0)))
    rows, columns = (range(0, side, TILE) for side in padded.shape[:2])
    return [padded[y : y + TILE, x : x + TILE] for y in rows for x in columns]


def _packed(part: NDArray[np.uint8] | NDArray[np.uint16], compression: int) -> bytes:
    if compression == 8:
        return zlib.compress(part.tobytes())
    if compression == 5:  # by libtiff: one strip of a gray image of as many bytes
        file = io.BytesIO()
        gray = np.frombuffer(part.tobytes(), np.uint8).reshape(1, -1)
        Image.fromarray(gray).save(file, "TIFF", compression="tiff_lzw")
        written = Image.open(file)
        (start,), (size,) = written.tag_v2[273], written.tag_v2[279]  # type: ignore[attr-defined]
        return file.getvalue()[start : start + size]
    return part.tobytes()


def _directory(entries: dict[int, Sequence[int]], start: int, order: str, big: bool) -> bytes:
    word, kind, size = ("Q", 16, 8) if big else ("L", 4, 4)
    rows, behind = b"", b""
    end = start + (8 if big else 2) + len(entries) * (4 + 2 * size) + size
    for tag, found in sorted(entries.items()):
        value = found[0] if len(found) == 1 else end + len(behind)
        rows += struct.pack(f"{order}HH{word}{word}", tag, kind, len(found), value)
        behind += struct.pack(f"{order}{len(found)}{word}", *found) if len(found) > 1 else b""
    return struct.pack(order + ("Q" if big else "H"), len(entries)) + rows + bytes(size) + behind


@pytest.mark.parametrize("bands", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_every_way_to_store_bands(bands: int, kind: str) -> None:
    pixels = values(bands, kind)
    for compression in (1, 5, 8):
        for separate in (False, True):
            for tiled in (False, True):
                for predictor in (False, True) if compression > 1 else (False,):
                    for order, big in (("<", False), (">", False), ("<", True)):
                        how = {"compression": compression, "separate": separate, "tiled": tiled, "order": order}
                        content = tiff(pixels, predictor=predictor, big=big, **how)  # type: ignore[arg-type]
                        found = decode(content, channels=bands)
                        np.testing.assert_array_equal(found, upper(pixels), err_msg=str(how))


@pytest.mark.parametrize("separate", [False, True])
def test_another_number_of_bands_than_the_models_is_said(separate: bool) -> None:
    for wanted in (1, 3, 4, 5):
        with pytest.raises(ImageError, match=f"has 8 channels, and the model takes {wanted}"):
            decode(tiff(values(8, "uint16"), separate=separate), channels=wanted)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_what_the_file_calls_red_green_and_blue_is_a_photo(kind: str, separate: bool) -> None:
    pixels = values(5, kind)
    color = tiff(pixels, separate=separate, tags={262: [2], 338: [0, 0]})
    np.testing.assert_array_equal(decode(color), upper(pixels[..., :3]))
    np.testing.assert_array_equal(decode(color, channels=5), upper(pixels))
    np.testing.assert_array_equal(
        decode(tiff(pixels[..., :3], separate=separate, tags={262: [2]})), upper(pixels[..., :3])
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_bands_are_turned_as_photos_are(orientation: int) -> None:
    pixels = values(5, "uint8")
    found = decode(tiff(pixels, tags={274: [orientation]}), channels=5)
    photo = decode(tiff(pixels[..., :3], tags={274: [orientation], 262: [2]}))
    np.testing.assert_array_equal(found[..., :3], photo)
    head = read_head(tiff(pixels, tags={274: [orientation]}))
    assert head == PhotoHead(*SIDES, orientation) and head.turned == photo.shape[:2]


def test_bits_that_are_used() -> None:
    pixels = (values(5, "uint16") >> 4).astype(np.uint16)
    wanted = (pixels >> 4).astype(np.uint8)
    np.testing.assert_array_equal(decode(tiff(pixels), channels=5, bits=12), wanted)
    np.testing.assert_array_equal(decode(tiff(pixels, tags={281: [4095] * 5}), channels=5), wanted)


@pytest.mark.parametrize(
    ("tags", "what"),
    [({339: [2] * 6}, "6 bands of 8 bits"), ({259: [7]}, "6 bands of 8 bits"), ({339: [3] * 6}, "floating point")],
    ids=["signed", "JPEG", "float"],
)
def test_other_values_are_not_supported(tags: dict[int, Sequence[int]], what: str) -> None:
    with pytest.raises(ImageFormatError, match=f"not supported: .*{what}"):
        decode(tiff(values(6, "uint8"), tags=tags), channels=6)


def test_memory_is_bounded_by_the_pixels_that_are_allowed() -> None:
    height, width = SIDES
    content = tiff(values(8, "uint8"))
    assert decode(content, channels=8, max_pixels=height * width * 2).shape == (*SIDES, 8)
    with pytest.raises(ImageSizeError, match=r"35×21 pixels of 8 bands of 8 bits.*--max-pixels 1470"):
        decode(content, channels=8, max_pixels=height * width * 2 - 1)
    with pytest.raises(ImageSizeError, match="more than the 0.0001 million"):
        decode(content, channels=8, max_pixels=100)


def test_more_pixels_than_pillow_allows_are_read_where_the_user_allows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    file = io.BytesIO()
    Image.new("L", (30, 20)).save(file, "TIFF", compression="tiff_deflate")
    assert decode(file.getvalue()).shape == (20, 30, 3)
    assert decode(tiff(values(8, "uint8")), channels=8).shape == (*SIDES, 8)
    file = io.BytesIO()
    Image.new("RGB", (30, 20)).save(file, "WEBP")
    with pytest.raises(ImageSizeError, match="more pixels than Pillow reads"):
        decode(file.getvalue())


@given(
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.none() | st.integers(0, 2**13),
    separate=st.booleans(),
)
@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_raise_nothing_else(changes: list[tuple[int, int]], cut: int | None, separate: bool) -> None:
    content = bytearray(tiff(values(6, "uint8"), compression=8, separate=separate, tiled=True))
    directory = int.from_bytes(content[4:8], "little")
    for place, value in changes:
        content[min(directory + place, len(content) - 1)] = value
    try:
        found = decode(bytes(content[:cut]), channels=6, max_pixels=10**6)
    except ImageError:
        return
    assert found.dtype == np.uint8 and found.shape[2] == 6
