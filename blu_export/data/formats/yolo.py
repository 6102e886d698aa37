"""YOLO segments: a text file for each photo, a line per object: class, then the outline as shares of the photo.

Folders are ``images/train`` and ``labels/train``, or ``train/images`` and ``train/labels``, or ``images`` and
``labels``. Class names come from data.yaml or classes.txt. A line of four numbers is only a box.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from blu_export.data.finder import photo_head
from blu_export.data.formats.parts import photos_in
from blu_export.data.layout import PART_NAMES
from blu_export.data.storage import Storage, join, parent
from blu_export.errors import DatasetError
from blu_export.extras import import_extra

_NAMES = ("classes.txt", "obj.names", "labels.txt")


def find(source: str, split: str, storage: Storage, whole: bool) -> str | None:
    """The folder of photos of a part; with ``whole`` that of a set without parts."""
    if source.lower().endswith((".yaml", ".yml")):
        source = parent(source)
    if source.lower().endswith((".json", ".csv")) or not storage.is_folder(source):
        return None
    places = [join(source, place) for name in PART_NAMES[split] for place in (f"images/{name}", f"{name}/images", name)]
    for place in [*places, join(source, "images"), source] if whole else places:
        if photos_in(place, storage) and _labels_of(place, storage):
            return place
    return None


def _labels_of(photos: str, storage: Storage) -> str | None:
    """The folder of labels of a folder of photos: its last "images" is "labels" there; or the same."""
    stems = {name.rpartition(".")[0] for name in photos_in(photos, storage)}
    head, found, tail = photos.rpartition("images")
    places = [f"{head}labels{tail}"] if found else []
    for place in [*places, photos]:
        if storage.is_folder(place):
            labels = {file.name.removesuffix(".txt") for file in storage.files(place) if file.name.endswith(".txt")}
            if labels & stems:
                return place
    return None


def entries(photos: str, storage: Storage) -> Iterator[tuple[str, int, Any]]:
    """COCO sections of a folder of photos with labels; photos without a file of labels show nothing.

    Raises:
        ValueError: the names of the classes cannot be read.
    """
    labels = _labels_of(photos, storage)
    assert labels is not None
    names, highest, count = _names(photos, storage), -1, 0
    known = {file.name for file in storage.files(labels)}
    for number, name in enumerate(photos_in(photos, storage)):
        path, file = join(photos, name), f"{name.rpartition('.')[0]}.txt"
        if file not in known:
            yield "images", number, {"id": number, "file_name": path}
            continue
        try:
            height, width = photo_head(storage, path).turned
        except DatasetError as error:
            yield "images", number, f"{name}: {error.what}"
            continue
        yield "images", number, {"id": number, "file_name": path, "height": height, "width": width}
        for line in storage.read(join(labels, file)).decode("utf-8-sig", "replace").splitlines():
            if line.strip():
                entry = _object(line, height, width)
                if isinstance(entry, dict):
                    highest = max(highest, entry["category_id"])
                    entry["image_id"] = number
                yield "annotations", count, entry
                count += 1
    for index in range(max(highest + 1, len(names))):
        yield "categories", index, {"id": index, "name": names.get(index, f"class_{index}")}


def _object(line: str, height: int, width: int) -> dict[str, Any] | str:
    try:
        category, *shares = map(float, line.split())
    except ValueError:
        return line[:60]
    if not category.is_integer() or category < 0 or len(shares) < 4 or len(shares) == 5 or len(shares) % 2:
        return line[:60]
    if len(shares) == 4:
        x, y, w, h = shares
        return {
            "category_id": int(category),
            "bbox": [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height],
        }
    outline = [share * (height if i % 2 else width) for i, share in enumerate(shares)]
    return {"category_id": int(category), "segmentation": [outline]}


def _names(photos: str, storage: Storage) -> dict[int, str]:
    """Class names by number, of the nearest file that has them."""
    for folder in (photos, parent(photos), parent(parent(photos))):
        if not storage.is_folder(folder):
            continue
        files = [file.name for file in storage.files(folder)]
        for name in files:
            if re.fullmatch(r".*\.ya?ml", name.lower()):
                yaml = import_extra("yaml")
                try:
                    content = yaml.safe_load(storage.read(join(folder, name)))
                except yaml.YAMLError as error:
                    raise ValueError(f"{name} cannot be read: {error}") from error
                names = content.get("names") if isinstance(content, dict) else None
                if isinstance(names, list | tuple):
                    return {index: str(each) for index, each in enumerate(names)}
                if isinstance(names, dict):
                    return {int(index): str(each) for index, each in names.items()}
        for name in _NAMES:
            if name in files:
                lines = storage.read(join(folder, name)).decode("utf-8-sig", "replace").splitlines()
                return {index: line.strip() for index, line in enumerate(lines) if line.strip()}
    return {}
