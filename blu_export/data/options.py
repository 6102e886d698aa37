"""How annotations are read."""

from __future__ import annotations

from dataclasses import dataclass

from blu_export.data.heads import ExifPolicy


@dataclass(frozen=True)
class Decoding:
    """How photos become pixels; see ``image.decode``."""

    max_pixels: int | None = None
    """Height times width of the largest that is read; None: the usual limit."""
    bits: int | None = None
    """In use of 16-bit gray values, where the photo does not say."""
    channels: int = 3
    """Of every photo; 3: RGB as it is seen."""


AS_USUAL = Decoding()


@dataclass(frozen=True)
class ReadOptions:
    """What the options of the commands say about reading annotations."""

    images: str | None = None
    """Folder or URL of the photos; None: where they usually are, or anywhere below the data set's folder."""
    limit: int | None = None
    """Number of photos to take, from the first on; None: all."""
    strict: bool = False
    """Refuse a data set of which an entry would be left out."""
    keep_empty_classes: bool = False
    """Keep classes without objects."""
    exif: ExifPolicy = "auto"
    """Whether photos are turned as their EXIF says."""
    decoding: Decoding = AS_USUAL
    """How photos become pixels."""
