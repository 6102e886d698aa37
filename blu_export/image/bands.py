"""TIFFs of any number of bands, as sensors beyond a camera's write them.

Pillow decodes the pixels that photos have. But a row of C bands holds the bytes of a gray row C times as wide, and a
separate band is a gray image: directories that say so, put behind the file's own bytes, let Pillow read them.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage
from PIL import TiffImagePlugin

from blu_export.errors import ImageSizeError

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0")
MAX_BANDS = 64
RGB_BANDS = 3
MOST_COLORS = 4
"""RGBA or CMYK."""
BYTES_PER_PIXEL = 4
"""What a pixel of a photo takes in Pillow; together the bands may take as much for every pixel that is allowed."""

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _BANDS = 256, 257, 258, 259, 262, 266, 277
_ORIENTATION, _ROWS_PER_STRIP, _MAX_VALUE, _PLANES, _PREDICTOR, _EXTRA_BANDS, _SAMPLE_FORMAT = (
    274, 278, 281, 284, 317, 338, 339
)  # fmt: skip
_STRIPS, _TILES, _TILE_WIDTH, _TILE_HEIGHT = (273, 279), (324, 325), 322, 323
_LOSSLESS = (1, 5, 8, 32773, 32946, 34925, 50000)
"""Compressions that give the bytes back: none, LZW, Deflate, PackBits, its older number, LZMA, Zstandard."""
_UNSIGNED, _SEPARATE, _DIFFERENCES, _BLACK_IS_ZERO, _RGB, _MULTIPLIED = 1, 2, 2, 1, 2, 1
_LONG, _LONG8 = 4, 16


_TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}
"""What turns an array with this EXIF orientation upright."""


class TiffFile(TiffImagePlugin.TiffImageFile):
    """Pillow's reader without its own limit of pixels, since sizes are checked before it decodes; it turns nothing."""

    def _open(self) -> None:
        super()._open()
        self._size = self._tile_size

    def load_end(self) -> None:
        """Leave the image as it is stored."""

    def load_prepare(self) -> None:
        """Make room for the pixels."""
        if self._im is None:
            self.im = PilImage.new(self.mode, self._tile_size).im
        super().load_prepare()


class BandsTiff:
    """The first image of a TIFF, whose directory was checked for its size.

    Attributes:
        bands: how many the image has.
        height, width: in pixels, as they are stored.
        largest: the file's own MaxSampleValue, where it has one.

    Raises:
        Exception: of any kind, where the file is damaged; the methods too.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        file.seek(0)
        head = file.read(8)
        self._order, self._big = ("<" if head[:2] == b"II" else ">"), head[2:4] in (b"+\0", b"\0+")
        self._version = (43, 8, 0) if self._big else (42,)
        self._tags = TiffImagePlugin.ImageFileDirectory_v2(head + file.read(8) if self._big else head)
        file.seek(self._tags.next)
        self._tags.load(file)
        if not any(places in self._tags for places in (_STRIPS[0], _TILES[0])):
            raise ValueError("its directory is cut off")
        self._tiled = _TILES[0] in self._tags
        self._separate = self._number(_PLANES, 1) == _SEPARATE
        self._extra = self._numbers(_EXTRA_BANDS, 0) if _EXTRA_BANDS in self._tags else ()
        self.bands = self._number(_BANDS, 1)
        self.height, self.width = self._number(_HEIGHT), self._number(_WIDTH)
        self.largest = self._tags.get(_MAX_VALUE)

    @property
    def orientation(self) -> int:
        """As in EXIF: 1 upright, 2 to 4 mirrored or upside down, 5 to 8 on its side."""
        return self._number(_ORIENTATION, 1)

    def upright(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """The image as it is to be seen."""
        turn = _TURNS.get(self.orientation)
        return pixels if turn is None else turn(pixels)

    @property
    def is_color(self) -> bool:
        """Whether the first three bands are red, green and blue, and the file says how many follow."""
        return self._number(_PHOTOMETRIC, -1) == _RGB and self.bands == RGB_BANDS + len(self._extra)

    def wanted_for(self, channels: int) -> bool:
        """Whether Pillow would refuse the file, or take some of its bands for the whole, where a model has channels."""
        plain = self._number(_PHOTOMETRIC, -1) in (_BLACK_IS_ZERO, _RGB) and _MULTIPLIED not in self._extra
        other = channels != RGB_BANDS or self._separate or self.bands > MOST_COLORS
        if self.bands > 1 and plain and self.readable:
            return other
        return self.bands > MOST_COLORS and channels != RGB_BANDS

    @property
    def readable(self) -> bool:
        """Whether ``read`` knows its kind: 8 or 16 bits without sign, all bands alike, compressed without loss."""
        return (
            1 <= self.bands <= MAX_BANDS
            and set(self._numbers(_BITS, 1)) in ({8}, {16})
            and set(self._numbers(_SAMPLE_FORMAT, _UNSIGNED)) == {_UNSIGNED}
            and self._number(_COMPRESSION, 1) in _LOSSLESS
            and self._number(_PREDICTOR, 1) in (1, _DIFFERENCES)
            and self._number(_FILL_ORDER, 1) == 1
        )

    def read(self, max_pixels: int, name: str) -> NDArray[Any]:
        """uint8 or uint16 [H, W, C], as it is stored.

        Raises:
            ImageSizeError: together the bands take more memory than a photo of ``max_pixels``.
        """
        bits, bands = self._numbers(_BITS, 8)[0], self.bands
        side = self._number(_TILE_WIDTH) if self._tiled else self.width
        tiles = -(-self.width // side)
        needed = self.height * tiles * side * bands * bits // 8
        if needed > BYTES_PER_PIXEL * max_pixels:
            raise ImageSizeError(
                f"{name} has {self.width}×{self.height} pixels of {bands} bands of {bits} bits, which is more than "
                f"{max_pixels / 1e6:g} million pixels of a photo.",
                f"Make it smaller, or allow it: --max-pixels {-(-needed // BYTES_PER_PIXEL)} (max_pixels= in Python).",
            )
        images, together = (bands, 1) if self._separate else (1, bands)
        file = TiffFile(self._as_gray(tiles, side * together, bits, images))
        grays = []
        for index in range(images):
            file.seek(index)
            grays.append(np.asarray(file).reshape(self.height, tiles, side, together))
        pixels = grays[0] if images == 1 else np.concatenate(grays, axis=3)
        if self._number(_PREDICTOR, 1) == _DIFFERENCES:  # to the value on the left, in the same tile and band
            pixels = np.cumsum(pixels, axis=2, dtype=pixels.dtype.newbyteorder("="))
        return pixels.reshape(self.height, tiles * side, bands)[:, : self.width]

    def _as_gray(self, tiles: int, side: int, bits: int, images: int) -> IO[bytes]:
        """The file with the pixels as so many gray images of ``tiles`` times ``side`` values a row."""
        values = {
            _WIDTH: tiles * side,
            _HEIGHT: self.height,
            _BITS: bits,
            _COMPRESSION: self._number(_COMPRESSION, 1),
            _PHOTOMETRIC: _BLACK_IS_ZERO,
            _BANDS: 1,
        }
        if self._tiled:
            values |= {_TILE_WIDTH: side, _TILE_HEIGHT: self._number(_TILE_HEIGHT)}
        else:
            values[_ROWS_PER_STRIP] = min(self._number(_ROWS_PER_STRIP, self.height), self.height)
        self._file.seek(0)
        content = io.BytesIO(self._file.read())
        start = content.seek(0, io.SEEK_END)
        start += start % 2
        content.seek(2)
        content.write(struct.pack(self._order + ("HHHQ" if self._big else "HL"), *self._version, start))
        content.seek(start)
        places = {tag: self._numbers(tag) for tag in (_TILES if self._tiled else _STRIPS)}
        for index in range(images):
            tags: dict[int, tuple[int, ...]] = {tag: (value,) for tag, value in values.items()}
            for tag, all_places in places.items():
                own = len(all_places) // images
                tags[tag] = all_places[index * own : (index + 1) * own]
            content.write(self._directory(tags, content.tell(), index == images - 1))
        content.seek(0)
        return content

    def _directory(self, tags: dict[int, tuple[int, ...]], start: int, last: bool) -> bytes:
        """A directory that lies at ``start``, with the values that do not fit into it; unless last one follows it."""
        number, kind = ("Q", _LONG8) if self._big else ("L", _LONG)
        word, entry = struct.Struct(self._order + number), struct.Struct(f"{self._order}HH{number}{number}")
        head = struct.pack(self._order + ("Q" if self._big else "H"), len(tags))
        end = start + len(head) + len(tags) * entry.size + word.size
        rows, behind = b"", b""
        for tag, values in sorted(tags.items()):
            rows += entry.pack(tag, kind, len(values), values[0] if len(values) == 1 else end + len(behind))
            behind += b"" if len(values) == 1 else struct.pack(f"{self._order}{len(values)}{number}", *values)
        return head + rows + word.pack(0 if last else end + len(behind)) + behind

    def _number(self, tag: int, missing: int | None = None) -> int:
        return self._numbers(tag, missing)[0]

    def _numbers(self, tag: int, missing: int | None = None) -> tuple[int, ...]:
        found = self._tags.get(tag, missing)
        values = found if isinstance(found, tuple) else (found,)
        if not values or not all(isinstance(value, int) for value in values):
            raise ValueError(f"tag {tag} is not a number")
        return values
