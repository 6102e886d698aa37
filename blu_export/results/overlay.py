"""Overlay: the photo with masks, boxes and labels."""

from __future__ import annotations

from collections.abc import Iterator

from blu_export.draw import overlay
from blu_export.results.base import PhotoFormat, Result, encode_picture


class OverlayFormat(PhotoFormat):
    """NAME.overlay.jpg; in a folder the frames of a video become NAME.overlay.mp4.

    Args:
        kind: of the picture: JPEG or PNG.
    """

    suffix = ".overlay.jpg"
    for_people = True

    def __init__(self, kind: str = "JPEG") -> None:
        self._kind = kind

    def files(self, result: Result) -> Iterator[tuple[str, bytes]]:
        """See PhotoFormat."""
        yield self.suffix, encode_picture(overlay(result.picture(), result.found), self._kind)
