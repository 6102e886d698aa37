"""Masks as pictures: one of all instances' numbers, and one per instance."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np

from blu_export.draw import color_of
from blu_export.results.base import PhotoFormat, Result, instance_name
from blu_export.rle import paste_mask


class MaskFormat(PhotoFormat):
    """NAME.mask.png: 0 where nothing is, 1 for the first instance, …; NAME.mask.1.coat.png: 0 or 255.

    Where instances overlap, the one with the better score is on top. Up to 255 instances the picture is 8 bits with a
    palette, so that it can be looked at; with more it is 16 bits of gray.
    """

    suffix = ".mask.png"

    def files(self, result: Result) -> Iterator[tuple[str, bytes]]:
        """See PhotoFormat."""
        from PIL import Image

        found = result.found
        numbers = np.zeros(found.image_size, np.uint8 if len(found) < 256 else np.uint16)
        for index in reversed(range(len(found))):
            y1, x1, y2, x2 = found.rois[index].tolist()
            numbers[y1:y2, x1:x2][found.crops[index]] = index + 1
        picture = Image.fromarray(numbers)
        if numbers.dtype == np.uint8:
            picture = picture.convert("P")
            picture.putpalette([0, 0, 0, *(value for number in range(1, 256) for value in color_of(number))])
        yield self.suffix, _png(picture)
        for index, (crop, roi) in enumerate(zip(found.crops, found.rois, strict=True)):
            mask = paste_mask(crop, roi, found.image_size)
            yield f".mask.{instance_name(found, index)}.png", _png(Image.fromarray(255 * mask.astype(np.uint8)))


def _png(picture: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")  # type: ignore[attr-defined]
    return buffer.getvalue()
