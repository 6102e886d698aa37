"""How annotations are read."""

from __future__ import annotations

from dataclasses import dataclass

from blu_export.data.heads import ExifPolicy


@dataclass(frozen=True)
class ReadOptions:
    """What the options of the commands say about reading annotations."""

    images: str | None = None
    """Folder or URL of the photos; None: where they usually are, or anywhere below the data set's folder."""
    limit: int | None = None
    """Take the first so many photos; all for None."""
    strict: bool = False
    """Refuse a data set of which an entry would be left out."""
    keep_empty_classes: bool = False
    """Keep classes without objects."""
    exif: ExifPolicy = "auto"
    """Whether photos are turned as their EXIF says."""
