"""Cut-outs: the photo without its background, and each instance by itself."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from blu_export.results.base import PhotoFormat, Result, encode_picture, instance_name


class CutoutFormat(PhotoFormat):
    """NAME.cutout.png: all instances on nothing; NAME.cutout.1.coat.png, …: one instance in its box. RGBA."""

    suffix = ".cutout.png"
    for_people = True

    def files(self, result: Result) -> Iterator[tuple[str, bytes]]:
        """See PhotoFormat."""
        image, found = result.picture(), result.found
        together = np.zeros(found.image_size, np.bool_)
        for crop, (y1, x1, y2, x2) in zip(found.crops, found.rois.tolist(), strict=True):
            together[y1:y2, x1:x2] |= crop
        yield self.suffix, encode_picture(cut_out(image, together), "PNG")
        for index, (crop, (y1, x1, y2, x2)) in enumerate(zip(found.crops, found.rois.tolist(), strict=True)):
            picture = cut_out(image[y1:y2, x1:x2], crop)
            yield f".cutout.{instance_name(found, index)}.png", encode_picture(picture, "PNG")


def cut_out(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """uint8 [H, W, 4] RGBA: the pixels under a mask, transparent black elsewhere."""
    return np.dstack([image * mask[..., None], 255 * mask.astype(np.uint8)])
