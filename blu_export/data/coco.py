"""COCO annotation files (``instances_*.json``): polygons, RLE, crowds."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

from blu_export.data.dataset import Annotation, Dataset, Record, read_local
from blu_export.data.storage import Storage, join, open_storage, parent
from blu_export.errors import DatasetError
from blu_export.rle import MAX_PIXELS

BACKGROUND = "BG"
MAX_SIDE = 65_535
"""Longest side of a photo, pixels: JPEG's limit. Drawing a polygon takes memory by the length of its edges."""

T = TypeVar("T")


def load_coco(
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    *,
    storage: Storage | None = None,
) -> Dataset:
    """Read a COCO instances file.

    Args:
        annotations: path or URL of the JSON file.
        images: folder or URL of the photos; by default ``images`` beside the JSON file where there
            is such a folder, else the file's own folder.
        storage: reads it; by default what the path or URL asks for.

    Raises:
        DatasetError: the file is missing, not COCO, or refers to photos or categories it lacks.
    """
    source = os.fspath(annotations)
    storage = storage or open_storage(source)
    found = storage.file(source)
    try:
        content = json.loads(storage.fetch(source, found.version) if found else storage.read(source))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{source} cannot be read as JSON: {error}.", "Give a COCO instances file.") from error
    folder = os.fspath(images) if images is not None else _folder_beside(source, storage)
    photos = storage if ("://" in folder) == ("://" in source) else open_storage(folder)
    return parse_coco(content, folder, source, photos.fetch)


def parse_coco(content: Any, folder: str, source: str, read: Callable[[str], bytes] = read_local) -> Dataset:
    """The data set of a decoded COCO file.

    Category ids may have gaps (COCO's have); they are numbered 1, 2, … in ascending order, as the
    original does. Photos keep the file's order, photos without annotations included.

    Raises:
        DatasetError: it is not such a file; the message names the first entry that is wrong.
    """
    place = "categories"
    try:
        names: dict[int, str] = {}
        for number, category in enumerate(content["categories"]):
            place = f"categories[{number}]"
            _add(names, category["id"], str(category["name"]))
        index_of = {key: index for index, key in enumerate(sorted(names), start=1)}
        place = "images"
        photos: dict[int, tuple[str, int, int]] = {}
        for number, image in enumerate(content["images"]):
            place = f"images[{number}]"
            _add(photos, image["id"], (join(folder, image["file_name"]), *_size(image)))
        place = "annotations"
        found: defaultdict[int, list[Annotation]] = defaultdict(list)
        for number, annotation in enumerate(content["annotations"]):
            place = f"annotations[{number}]"
            if annotation["image_id"] not in photos or annotation["category_id"] not in index_of:
                raise DatasetError(
                    f"Annotation {annotation.get('id')} of {source} refers to photo {annotation['image_id']} or "
                    f"category {annotation['category_id']}, which the file does not list.",
                    "Correct the file.",
                )
            x, y, width, height = map(_number, annotation["bbox"])
            found[annotation["image_id"]].append(
                Annotation(
                    category=index_of[annotation["category_id"]],
                    box=(y, x, y + height, x + width),
                    segmentation=annotation["segmentation"],
                    iscrowd=bool(annotation.get("iscrowd", 0)),
                    area=_number(annotation["area"]) if "area" in annotation else None,
                )
            )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        reason = f"{error} is absent" if isinstance(error, KeyError) else error
        raise DatasetError(
            f"{source} is not a COCO instances file: {place}: {reason}.",
            "It needs images, annotations and categories as in COCO's instances_val2017.json.",
        ) from error
    records = tuple(Record(key, *photo, tuple(found[key])) for key, photo in photos.items())
    class_names = (BACKGROUND, *(names[key] for key in index_of))
    return Dataset(class_names, records, source, read, category_ids=(0, *index_of))


def _add(known: dict[int, T], key: int, value: T) -> None:
    if key in known:
        raise ValueError(f"the id {key} is there twice")
    known[key] = value


def _size(image: dict[str, Any]) -> tuple[int, int]:
    height, width = int(image["height"]), int(image["width"])
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE and height * width <= MAX_PIXELS):
        raise ValueError(f"no photo is {width}x{height}")
    return height, width


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is no number of pixels")
    return number


def _folder_beside(source: str, storage: Storage) -> str:
    folder = join(parent(source), "images")
    return folder if storage.is_folder(folder) else parent(source)
