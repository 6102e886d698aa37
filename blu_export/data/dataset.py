"""Dataset: what training, evaluation and ``blu data check`` need to know about annotated photos."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blu_export.data.heads import is_turn_unknown, read_head
from blu_export.data.options import AS_USUAL, Decoding
from blu_export.data.problems import Problem
from blu_export.errors import DatasetError, ImageError
from blu_export.rle import Rle, decode_rle, run_lengths

POLYGON_MARGIN = 1.0
"""Photo sizes by which a polygon may pass the photo's edge. pycocotools takes memory by coordinate: one of 3e8, or one
that is not a number, ends the process."""

Segmentation = Sequence[Any] | dict[str, Any]
"""Polygons [[x1, y1, x2, y2, …], …] in pixels (their union is the object), or a COCO RLE."""


CUTOUT = 0
"""Category of an annotation that is not an object but a cut-out: a person with all objects on it, which training pastes
onto other photos."""

_EXIF_PLACE = 4096
"""Bytes from the beginning of a photo in which EXIF begins."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object, or one crowd of objects, in a photo."""

    category: int
    """Index into ``Dataset.class_names``: 1 and up; or CUTOUT."""
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

    image_id: int | str
    """As the source gives it."""
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
        exif: ``apply``: photos are turned as their EXIF says; ``ignore``: they are taken as stored; ``auto``: turned,
            unless the annotated size is that of the photo as stored.
        problems: what reading the annotations left out.
        notes: what it supposed, in lines for people.
        decoding: how photos become pixels.
    """

    class_names: tuple[str, ...]
    records: tuple[Record, ...]
    name: str = "data set"
    read: Callable[[str], bytes] = read_local
    category_ids: tuple[int | str, ...] = ()
    exif: str = "auto"
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    decoding: Decoding = AS_USUAL

    def __len__(self) -> int:
        return len(self.records)

    def limited(self, count: int | None) -> Dataset:
        """The first ``count`` photos; all of them for None."""
        return self if count is None else replace(self, records=self.records[:count])

    def with_channels(self, channels: int) -> Dataset:
        """The same photos, read with that many channels; 3: always as RGB."""
        return replace(self, decoding=replace(self.decoding, channels=channels))

    def joined(self, other: Dataset) -> Dataset:
        """The photos of both, these first.

        Raises:
            DatasetError: the other has other classes.
        """
        self.require_classes_of(other)
        theirs = {record.uri for record in other.records}

        def read(uri: str) -> bytes:
            return other.read(uri) if uri in theirs else self.read(uri)

        problems = self.problems + other.problems
        return replace(self, records=self.records + other.records, read=read, problems=problems)

    def require_classes_of(self, other: Dataset) -> None:
        """Refuse another data set whose classes are not those of this one.

        Raises:
            DatasetError: the names or their order differ.
        """
        if other.class_names != self.class_names:
            raise DatasetError(
                f"{other.name} has other classes ({', '.join(other.class_names[1:])}) than {self.name} "
                f"({', '.join(self.class_names[1:])}).",
                "Give sets with the same categories.",
            )

    def with_cutouts(self, cutouts: Mapping[str, Rle]) -> Dataset:
        """The same photos, with an annotation CUTOUT on each whose file name is in ``cutouts``.

        Raises:
            DatasetError: no photo is named.
        """

        def extended(record: Record) -> Record:
            rle = cutouts.get(record.uri.rpartition("/")[2])
            if rle is None:
                return record
            whole = (0.0, 0.0, float(record.height), float(record.width))
            cutout = Annotation(CUTOUT, whole, {"size": rle["size"], "counts": rle["counts"]})
            return replace(record, annotations=(*record.annotations, cutout))

        result = replace(self, records=tuple(map(extended, self.records)))
        if not result.cutouts():
            raise DatasetError(f"No cut-out belongs to a photo of {self.name}.", "Name cut-outs as their photos.")
        return result

    def cutouts(self) -> list[int]:
        """The photos with a cut-out, by index."""
        return [
            index
            for index, record in enumerate(self.records)
            if any(annotation.category == CUTOUT for annotation in record.annotations)
        ]

    def load_image(self, index: int) -> NDArray[np.uint8]:
        """Photo ``index`` as uint8 [H, W, 3], RGB; of other channels where ``decoding`` asks for them.

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
        image, _ = orient_photo(content, record, self.exif, self.decoding)
        if image.shape[:2] != (record.height, record.width):
            swapped = image.shape[1::-1] == (record.height, record.width)
            raise DatasetError(
                f"{record.uri} is {image.shape[1]}x{image.shape[0]}, its annotation says "
                f"{record.width}x{record.height}{': width and height are swapped' if swapped else ''}.",
                "Write height and width of the images in their places."
                if swapped
                else "Correct the annotation, or remove the photo from it.",
            )
        return image

    def load_masks(self, index: int) -> NDArray[np.bool_]:
        """Masks of photo ``index``: bool [N, H, W] in the order of ``records[index].annotations``.

        Raises:
            DatasetError: an annotation cannot be a mask of this photo.
        """
        record = self.records[index]
        encoded = encode_masks(record)
        masks = np.zeros((len(encoded), record.height, record.width), bool)
        for number, rle in enumerate(encoded):
            masks[number] = decode_rle(rle, (record.height, record.width))
        return masks


def decode_photo(content: bytes, uri: str, *, turn: bool = True, decoding: Decoding = AS_USUAL) -> NDArray[np.uint8]:
    """The photo ``uri`` from its bytes: uint8 [H, W, C], usually RGB; turned as its EXIF says, or not.

    Raises:
        DatasetError: it is not an image, or damaged.
    """
    from blu_export.image import MAX_PIXELS, decode

    limit = decoding.max_pixels or MAX_PIXELS
    try:
        return decode(content, turn=turn, max_pixels=limit, bits=decoding.bits, channels=decoding.channels)
    except ImageError as error:
        fix = error.fix if "--max-pixels" in error.fix else "Run 'blu data check' on the data set."
        raise DatasetError(f"The photo {uri} cannot be decoded. {error.what}", fix) from error


def orient_photo(
    content: bytes, record: Record, exif: str = "auto", decoding: Decoding = AS_USUAL
) -> tuple[NDArray[np.uint8], bool]:
    """A record's photo from its bytes, uint8 [H, W, C], usually RGB, and whether it was annotated unturned.

    Raises:
        DatasetError: it is not an image, or damaged.
    """
    image = decode_photo(content, record.uri, turn=exif != "ignore", decoding=decoding)
    size = (record.height, record.width)
    if exif == "auto" and image.shape[:2] != size and image.shape[1::-1] == size:
        stored = decode_photo(content, record.uri, turn=False, decoding=decoding)
        if stored.shape[:2] == size:
            _say_unturned()
            return stored, True
    if exif == "auto" and b"Exif" in content[:_EXIF_PLACE]:
        head = read_head(content)
        if head is not None and is_turn_unknown(head):
            _say_turn_unknown()
    return image, False


@lru_cache(maxsize=1)
def _say_unturned() -> None:
    """Logged once per process."""
    log.info("photos annotated as they are stored, unturned by their EXIF, are taken so; blu data check lists them")


@lru_cache(maxsize=1)
def _say_turn_unknown() -> None:
    """Logged once per process."""
    log.info(
        "EXIF turns photos by half, mirrors them or turns squares: their size does not tell if that was annotated; "
        "they are taken as turned (--exif ignore: as stored), and blu data check lists them"
    )


def encode_masks(record: Record) -> list[Rle]:
    """The masks of a photo in the order of its annotations.

    Raises:
        DatasetError: an annotation cannot be a mask of this photo.
    """
    masks = []
    for number, annotation in enumerate(record.annotations, start=1):
        try:
            masks.append(encode_mask(annotation.segmentation, record.height, record.width))
        except ValueError as error:
            raise DatasetError(
                f"The mask of object {number} on {record.uri} cannot be read: {error}.", "Correct the annotation."
            ) from error
    return masks


def encode_mask(segmentation: Segmentation, height: int, width: int) -> Rle:
    """Polygons or an RLE, compressed or not, as compressed run lengths of a photo of this size.

    Raises:
        ValueError: it cannot be a mask of this photo.
    """
    try:
        if isinstance(segmentation, dict):
            return _encode_runs(segmentation, height, width)
        return _encode_polygons(segmentation, height, width)
    except KeyError as error:
        raise ValueError(f"{error} is absent") from error
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error


def _encode_runs(segmentation: dict[str, Any], height: int, width: int) -> Rle:
    from pycocotools import mask as coco_mask

    size, counts = [height, width], segmentation["counts"]
    if isinstance(counts, list):
        counts = coco_mask.frPyObjects({"size": size, "counts": counts}, height, width)["counts"]
    rle: Rle = {"size": size, "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
    run_lengths({**rle, "size": segmentation["size"]}, (height, width))
    return rle


def _encode_polygons(segmentation: Sequence[Sequence[float]], height: int, width: int) -> Rle:
    from pycocotools import mask as coco_mask

    polygons = [np.asarray(polygon, np.float64) for polygon in segmentation]
    if any(polygon.ndim != 1 for polygon in polygons):
        raise ValueError("it is not a list of polygons [x1, y1, x2, y2, …]")
    for polygon in polygons:
        for side, values in ((width, polygon[::2]), (height, polygon[1::2])):
            near = (values >= -POLYGON_MARGIN * side) & (values <= (1 + POLYGON_MARGIN) * side)  # False for NaN
            if not near.all():
                raise ValueError(f"the coordinate {values[~near][0]:g} is not near a photo of {width}x{height}")
    drawn = [polygon for polygon in polygons if len(polygon) >= 6] or [np.zeros(6)]
    rle = coco_mask.merge(coco_mask.frPyObjects(drawn, height, width))
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def decode_mask(segmentation: Segmentation, height: int, width: int) -> NDArray[np.bool_]:
    """Bool [height, width] of polygons or an RLE, compressed or not.

    Raises:
        ValueError: it cannot be a mask of this photo.
    """
    return decode_rle(encode_mask(segmentation, height, width), (height, width))
