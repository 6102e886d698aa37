"""Dataset: what training, evaluation and ``blu data check`` need to know about annotated photos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blu_export.errors import DatasetError, ImageError

Segmentation = Sequence[Sequence[float]] | dict[str, Any]
"""Polygons [[x1, y1, x2, y2, …], …] in pixels (their union is the object), or a COCO RLE."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object, or one crowd of objects, in a photo."""

    category: int
    """Index into ``Dataset.class_names``: 1 and up."""
    box: tuple[float, float, float, float]
    """(y1, x1, y2, x2) in pixels of the photo; the far edge lies outside."""
    segmentation: Segmentation
    iscrowd: bool = False
    """A region where objects are not told apart: neither a positive nor a negative example."""
    area: float | None = None
    """Pixels, as the source gives it (COCO tells small from large objects by it); None: those of the mask."""


@dataclass(frozen=True, slots=True)
class Record:
    """One photo and its annotations."""

    image_id: int
    uri: str
    """Path or URL, as ``Dataset.read`` understands it."""
    height: int
    width: int
    annotations: tuple[Annotation, ...]


def read_local(path: str) -> bytes:
    """The bytes of a local file."""
    with open(path, "rb") as file:
        return file.read()


@dataclass(frozen=True)
class Dataset:
    """Annotated photos; pixels and masks are decoded when asked for.

    Args:
        class_names: names by category index; index 0 is the background.
        records: the photos.
        name: where it came from, for messages.
        read: gives the bytes of a ``Record.uri``; a reader with a cache for buckets.
        category_ids: the source's own id of each class, by category index, for files of results that other
            programs read; empty: the index itself.
    """

    class_names: tuple[str, ...]
    records: tuple[Record, ...]
    name: str = "data set"
    read: Callable[[str], bytes] = read_local
    category_ids: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def limited(self, count: int | None) -> Dataset:
        """The first ``count`` photos; all of them for None."""
        return self if count is None else replace(self, records=self.records[:count])

    def load_image(self, index: int) -> NDArray[np.uint8]:
        """Photo ``index`` as uint8 [H, W, 3], RGB.

        Raises:
            DatasetError: the file cannot be read, or its size is not the annotated one.
        """
        record = self.records[index]
        try:
            content = self.read(record.uri)
        except OSError as error:
            raise DatasetError(
                f"The photo {record.uri} cannot be read: {error}.", "Run 'blu data check' on the data set."
            ) from error
        image = decode_photo(content, record.uri)
        if image.shape[:2] != (record.height, record.width):
            raise DatasetError(
                f"{record.uri} is {image.shape[1]}x{image.shape[0]}, its annotation says "
                f"{record.width}x{record.height}.",
                "Correct the annotation, or remove the photo from it.",
            )
        return image

    def load_masks(self, index: int) -> NDArray[np.bool_]:
        """Masks of photo ``index``: bool [N, H, W] in the order of ``records[index].annotations``.

        Raises:
            DatasetError: an annotation cannot be a mask of this photo.
        """
        record = self.records[index]
        masks = np.zeros((len(record.annotations), record.height, record.width), bool)
        for number, annotation in enumerate(record.annotations):
            try:
                masks[number] = decode_mask(annotation.segmentation, record.height, record.width)
            except (ValueError, KeyError, TypeError) as error:
                raise DatasetError(
                    f"The mask of object {number + 1} on {record.uri} cannot be read: {error}.",
                    "Correct the annotation.",
                ) from error
        return masks


def decode_photo(content: bytes, uri: str) -> NDArray[np.uint8]:
    """The photo ``uri`` from its bytes: uint8 [H, W, 3], RGB.

    Raises:
        DatasetError: it is no image, or damaged.
    """
    from blu_export.image import decode

    try:
        return decode(content)
    except ImageError as error:
        raise DatasetError(
            f"The photo {uri} cannot be decoded. {error.what}", "Run 'blu data check' on the data set."
        ) from error


def encode_mask(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """The compressed COCO RLE of polygons or an RLE, compressed or not."""
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, dict):
        rle: dict[str, Any] = segmentation
        return coco_mask.frPyObjects(rle, height, width) if isinstance(rle["counts"], list) else rle
    polygons = [list(polygon) for polygon in segmentation if len(polygon) >= 6]
    rle = coco_mask.merge(coco_mask.frPyObjects(polygons or [[0.0] * 6], height, width))
    return rle


def decode_mask(segmentation: Segmentation, height: int, width: int) -> NDArray[np.bool_]:
    """Bool [height, width] of polygons or an RLE, compressed or not.

    Raises:
        ValueError: the run lengths are not of a mask of this size.
    """
    from pycocotools import mask as coco_mask

    from blu_export.rle import decode_rle

    if isinstance(segmentation, dict):
        encoded: Any = segmentation
        if isinstance(encoded["counts"], list):
            encoded = {"size": encoded["size"], "counts": encode_mask(encoded, height, width)["counts"].decode()}
        return decode_rle(encoded, (height, width))
    return np.asarray(coco_mask.decode(encode_mask(segmentation, height, width)), bool)
