"""What the readers of other tools' files share: folders of a part, shapes as outlines, masks in pictures."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blu_export.data.finder import IMAGE_SUFFIXES
from blu_export.data.layout import PART_NAMES
from blu_export.data.storage import Storage, join
from blu_export.rle import MAX_PIXELS, Rle, encode_rle

CIRCLE_POINTS = 256
"""Corners of a circle as a polygon: 0.9999 of its area."""
NAMELESS = "object"
"""The class of objects whose class is not told."""


class Numbered:
    """Names numbered in the order in which they come: COCO's categories of files that have only names."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.ids: dict[str, int] = {}
        for name in names:
            self(name)

    def __call__(self, name: str) -> int:
        """The id of a name, from 1."""
        return self.ids.setdefault(name, len(self.ids) + 1)

    def entries(self) -> Iterable[tuple[str, int, Any]]:
        """The categories as COCO entries."""
        return [("categories", number - 1, {"id": number, "name": name}) for name, number in self.ids.items()]


def folder_of(
    source: str, split: str, storage: Storage, whole: bool, is_it: Callable[[str, Storage], bool]
) -> str | None:
    """The folder named after the part, or with ``whole`` the source itself, that ``is_it`` takes; None: none is."""
    folders = [join(source, name) for name in PART_NAMES[split]] + [source] * whole
    return next((folder for folder in folders if storage.is_folder(folder) and is_it(folder, storage)), None)


LOOKED_AT = 4
"""Files of a folder that are looked into before it is taken for another format's."""
HEAD = 65_536
"""Bytes of a JSON file that are looked into."""


@dataclass(frozen=True)
class JsonPerPhoto:
    """A format with a JSON file for each photo, in a folder of the part or in one below it."""

    is_it: Callable[[bytes], bool]
    """Whether the first ``HEAD`` bytes of a file are of the format."""
    places: tuple[str, ...]
    """Folders below the part's that may have the files."""

    def find(self, source: str, split: str, storage: Storage, whole: bool) -> str | None:
        """The folder of a part; with ``whole`` the source itself, folder or file."""
        if source.lower().endswith(".json"):
            return source if whole and storage.file(source) and self.is_it(storage.read(source, HEAD)) else None
        return folder_of(source, split, storage, whole, lambda folder, storage: bool(self.files(folder, storage)))

    def files(self, path: str, storage: Storage) -> list[str]:
        """The files of a folder that ``find`` found, or the file itself."""
        if path.lower().endswith(".json"):
            return [path]
        names = [file.name for file in storage.files(path) if file.name.lower().endswith(".json")]
        found = [join(path, name) for name in names if not name.startswith("._")]
        if any(self.is_it(storage.read(file, HEAD)) for file in found[:LOOKED_AT]):
            return found
        below = [join(path, name) for name in self.places if storage.is_folder(join(path, name))]
        return next((files for place in below if (files := self.files(place, storage))), [])


def photos_in(folder: str, storage: Storage) -> list[str]:
    """Names of the photos directly in a folder."""
    if not storage.is_folder(folder):
        return []
    names = [file.name for file in storage.files(folder)]
    return [name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("._")]


def ellipse(x: float, y: float, width: float, height: float, angle: float = 0.0) -> list[float]:
    """An ellipse around (x, y) with these half axes, turned by ``angle`` (radians), as a polygon."""
    turns = np.linspace(0, 2 * math.pi, CIRCLE_POINTS, endpoint=False)
    along, across = width * np.cos(turns), height * np.sin(turns)
    xs = x + along * math.cos(angle) - across * math.sin(angle)
    ys = y + along * math.sin(angle) + across * math.cos(angle)
    outline: list[float] = np.stack([xs, ys], axis=1).ravel().tolist()
    return outline


def read_mask_picture(content: bytes) -> NDArray[np.int64]:
    """A PNG as int64 [H, W]: palette indices or gray values, or colors as one number; 0 where transparent.

    Raises:
        ValueError: it is not a PNG, or too large.
    """
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels are too many")
            if image.mode in ("1", "L", "P", "I", "I;16"):
                return np.asarray(image).astype(np.int64)
            pixels = np.asarray(image.convert("RGBA")).astype(np.int64)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"it is not a PNG that can be read: {error}") from error
    return (pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]) * (pixels[..., 3] > 0)


def encode_picture(mask: NDArray[np.bool_]) -> Rle:
    """A mask of a whole photo as RLE."""
    height, width = mask.shape
    return encode_rle(mask, (0, 0, height, width), (height, width))
