"""Crops: each instance's box, cut out of the photo."""

from __future__ import annotations

from collections.abc import Iterator

from blu_export.results.base import PhotoFormat, Result, encode_picture, instance_name


class CropFormat(PhotoFormat):
    """NAME.crop.1.coat.jpg, …"""

    suffix = ".crop.jpg"
    for_people = True

    def files(self, result: Result) -> Iterator[tuple[str, bytes]]:
        """See PhotoFormat."""
        image, found = result.picture(), result.found
        for index, (y1, x1, y2, x2) in enumerate(found.rois.tolist()):
            yield f".crop.{instance_name(found, index)}.jpg", encode_picture(image[y1:y2, x1:x2], "JPEG")
