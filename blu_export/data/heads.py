"""What the first bytes of a photo tell: its size, and how EXIF turns it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

from PIL import Image

ExifPolicy = Literal["auto", "apply", "ignore"]
"""Whether a photo is turned as its EXIF says: auto: unless its annotation fits the photo as it is stored."""
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class PhotoHead:
    """What the first bytes of a photo tell."""

    height: int
    width: int
    """As stored."""
    orientation: int
    """EXIF: 1 upright, 2 to 4 mirrored or upside down, 5 to 8 on its side."""

    @property
    def turned(self) -> tuple[int, int]:
        """(height, width) as EXIF says that it is to be shown."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def read_head(content: bytes) -> PhotoHead | None:
    """Size and orientation from the first bytes of a photo; None where they do not tell."""
    from blu_export.image.bands import SIGNATURES, BandsTiff

    try:
        if content[:4] in SIGNATURES:  # of which Pillow gives the size as it is shown, and not all have its modes
            tiff = BandsTiff(io.BytesIO(content))
            return _head(tiff.height, tiff.width, tiff.orientation)
        with Image.open(io.BytesIO(content), formats=["JPEG", "PNG", "WEBP", "BMP"]) as image:
            return _head(image.height, image.width, image.getexif().get(_ORIENTATION) if "exif" in image.info else 1)
    except Exception:  # damaged headers raise almost anything in Pillow's plugins
        return None


def _head(height: int, width: int, orientation: object) -> PhotoHead:
    known = isinstance(orientation, int) and 1 <= orientation <= 8
    return PhotoHead(height, width, orientation if known else 1)  # type: ignore[arg-type]


def is_turn_unknown(head: PhotoHead) -> bool:
    """Whether EXIF turns a photo so that its size does not tell: upside down, mirrored, or a square on its side."""
    return head.orientation > 1 and (head.orientation < 5 or head.height == head.width)
