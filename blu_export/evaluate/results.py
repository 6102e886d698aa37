"""COCO results in and out: lists of rows as pycocotools takes them, and files of ``blu infer`` and ``blu batch``."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from blu_export.boxes import suppress
from blu_export.data.classes import match_names
from blu_export.data.dataset import Dataset, Record, encode_mask
from blu_export.data.finder import name_key, name_parts
from blu_export.data.ids import Ids
from blu_export.data.segmentation import normalize
from blu_export.errors import DatasetError
from blu_export.files import atomic_write

Rows = list[dict[str, Any]]
"""COCO results: image_id, category_id, score, and bbox [x, y, width, height] or segmentation (RLE) or both."""


def write_results(path: Path, results: Rows, dataset: Dataset) -> None:
    """Write a COCO results file, with the category ids of the data set's source."""
    ids = dataset.category_ids or range(len(dataset.class_names))
    rows = [row | {"category_id": ids[row["category_id"]]} for row in results]
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(rows) + "\n", encoding="utf-8")


def read_results(path: Path, dataset: Dataset) -> tuple[Rows, list[str]]:
    """Read a results file of any program, with the data set's class ids.

    A list of rows has the data set's ids of photos and categories. An object with images, annotations and categories
    has its own: photos are matched by file name, from its end, and categories by name.

    Returns:
        the rows; and a sentence on each that is left out because it is broken or of another photo or category.

    Raises:
        DatasetError: it is not such a file, or none of it belongs to the data set.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path} cannot be read as JSON: {error}.", "Give a COCO results file.") from error
    fix = "Give a list of results, or what blu infer --format coco writes."
    photos, classes = _photos_by_id(dataset), _classes_by_id(dataset)
    if isinstance(content, dict):
        if not isinstance(content.get("annotations"), list):
            raise DatasetError(f"{path} is not a COCO results file: it holds no annotations.", fix)
        try:
            photos = _photos_by_name(content["images"], dataset) if content.get("images") else photos
            classes = _classes_by_name(content["categories"], dataset) if content.get("categories") else classes
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DatasetError(f"{path} is not a COCO results file: {error!r}.", fix) from error
        content = content["annotations"]
    if not isinstance(content, list):
        raise DatasetError(f"{path} is not a COCO results file: it holds no list.", fix)
    rows, left_out = [], []
    for number, entry in enumerate(content):
        try:
            rows.append(_read_entry(entry, photos, classes))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            left_out.append(f"[{number}]: {f'{error} is absent' if isinstance(error, KeyError) else error}")
    if content and not rows:
        raise DatasetError(f"No result in {path} belongs to {dataset.name}: {left_out[0]}.", fix)
    return _alike(rows, left_out), left_out


def nms_across_classes(rows: Rows, threshold: float) -> Rows:
    """Rows of any photos without those whose box has an IoU above the threshold with a better one of the same photo,
    of any class.
    """
    from pycocotools import mask as coco_mask

    of_photo: defaultdict[Any, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        of_photo[row["image_id"]].append(index)
    kept: list[int] = []
    for indices in of_photo.values():
        sides = [rows[i]["bbox"] if "bbox" in rows[i] else coco_mask.toBbox(rows[i]["segmentation"]) for i in indices]
        x, y, width, height = np.array(sides, np.float64).T
        boxes = np.stack([y, x, y + height, x + width], axis=1)
        chosen = suppress(boxes, np.array([rows[i]["score"] for i in indices]), threshold)
        kept += [indices[i] for i in chosen]
    return [rows[index] for index in sorted(kept)]


def _photos_by_id(dataset: Dataset) -> Ids[Record]:
    photos: Ids[Record] = Ids()
    for record in dataset.records:
        photos.add(record.image_id, record)
    return photos


def _classes_by_id(dataset: Dataset) -> Ids[int]:
    classes: Ids[int] = Ids()
    for index, key in enumerate(dataset.category_ids or range(len(dataset.class_names))):
        if index:
            classes.add(key, index)
    return classes


def _classes_by_name(categories: list[dict[str, Any]], dataset: Dataset) -> Ids[int]:
    found = match_names([str(each["name"]) for each in categories], dataset.class_names[1:])
    classes: Ids[int] = Ids()
    for category, index in zip(categories, found, strict=True):
        if index is not None:
            classes.add(category["id"], index + 1)
    return classes


def _photos_by_name(images: list[dict[str, Any]], dataset: Dataset) -> Ids[Record]:
    """The data set's photo of each id of the results: the one whose path agrees for the most parts from the end."""
    by_name: defaultdict[str, list[tuple[list[str], Record]]] = defaultdict(list)
    for record in dataset.records:
        parts = [name_key(part) for part in name_parts(record.uri)][::-1]
        by_name[parts[0]].append((parts, record))
    photos: Ids[Record] = Ids()
    for image in images:
        wanted = [name_key(part) for part in name_parts(str(image["file_name"]))][::-1]
        ranked = sorted(
            (
                (_agreeing(wanted, parts), number)
                for number, (parts, _) in enumerate(by_name.get(wanted[0] if wanted else "", []))
            ),
            reverse=True,
        )
        if ranked and (len(ranked) == 1 or ranked[0][0] > ranked[1][0]):
            photos.add(image["id"], by_name[wanted[0]][ranked[0][1]][1])
    return photos


def _agreeing(first: list[str], second: list[str]) -> int:
    """How many entries two lists begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _read_entry(entry: Any, photos: Ids[Record], classes: Ids[int]) -> dict[str, Any]:
    record, category = photos.find(entry["image_id"]), classes.find(entry["category_id"])
    if record is None:
        raise ValueError(f"there is no photo {entry['image_id']}")
    if category is None:
        raise ValueError(f"there is no category {entry['category_id']}")
    score = entry["score"]
    if isinstance(score, bool) or not math.isfinite(score := float(score)):
        raise ValueError(f"the score {entry['score']!r} is not a number")
    row: dict[str, Any] = {"image_id": record.image_id, "category_id": category, "score": score}
    if entry.get("bbox"):
        row["bbox"] = [float(side) for side in entry["bbox"]]
        if len(row["bbox"]) != 4 or not all(map(math.isfinite, row["bbox"])):
            raise ValueError(f"the bbox {entry['bbox']} is not x, y, width, height")
    if entry.get("segmentation"):
        row["segmentation"] = encode_mask(normalize(entry["segmentation"]), record.height, record.width)
    if len(row) == 3:
        raise KeyError("bbox")
    return row


def _alike(rows: Rows, left_out: list[str]) -> Rows:
    """Rows that all have what most of them have of bbox and segmentation; others are left out, and named."""
    for key in ("segmentation", "bbox"):
        having = sum(key in row for row in rows)
        if having > len(rows) / 2:
            left_out += [f"a result of photo {row['image_id']}: {key} is absent" for row in rows if key not in row]
            rows = [row for row in rows if key in row]
        else:
            rows = [{name: value for name, value in row.items() if name != key} for row in rows]
    return rows
