"""COCO annotation files (``instances_*.json``): polygons, RLE, crowds."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from blu_export.data.dataset import Annotation, Dataset, Record, read_local
from blu_export.data.storage import Storage, join, open_storage, parent
from blu_export.errors import DatasetError

BACKGROUND = "BG"


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
    """
    try:
        categories = sorted(content["categories"], key=lambda category: category["id"])
        class_names = (BACKGROUND, *(category["name"] for category in categories))
        index_of = {category["id"]: index for index, category in enumerate(categories, start=1)}
        images = {image["id"]: image for image in content["images"]}
        found: defaultdict[int, list[Annotation]] = defaultdict(list)
        for annotation in content["annotations"]:
            if annotation["image_id"] not in images or annotation["category_id"] not in index_of:
                raise DatasetError(
                    f"Annotation {annotation.get('id')} of {source} refers to photo {annotation['image_id']} or "
                    f"category {annotation['category_id']}, which the file does not list.",
                    "Correct the file.",
                )
            x, y, width, height = annotation["bbox"]
            found[annotation["image_id"]].append(
                Annotation(
                    category=index_of[annotation["category_id"]],
                    box=(y, x, y + height, x + width),
                    segmentation=annotation["segmentation"],
                    iscrowd=bool(annotation.get("iscrowd", 0)),
                    area=float(annotation["area"]) if "area" in annotation else None,
                )
            )
        records = tuple(
            Record(key, join(folder, image["file_name"]), image["height"], image["width"], tuple(found[key]))
            for key, image in images.items()
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(
            f"{source} is not a COCO instances file: {error!r}.",
            "It needs images, annotations and categories as in COCO's instances_val2017.json.",
        ) from error
    return Dataset(class_names, records, source, read, category_ids=(0, *index_of))


def _folder_beside(source: str, storage: Storage) -> str:
    folder = join(parent(source), "images")
    return folder if storage.is_folder(folder) else parent(source)
