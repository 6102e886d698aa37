"""CVAT's own XML, "CVAT for images": annotations.xml with an element for each photo.

Polygons, ellipses and masks are objects with masks; those of one label and one group are one object. Boxes are boxes
alone; points, polylines, skeletons and tags are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from blu_export.data.formats.parts import Numbered, ellipse, encode_picture, folder_of
from blu_export.data.storage import Storage, join
from blu_export.rle import MAX_PIXELS

FILE = "annotations.xml"
_HEAD = 65_536


def find(source: str, split: str, storage: Storage, whole: bool) -> str | None:
    """The file of a part; with ``whole`` the source itself, or the file in it."""
    if source.lower().endswith(".xml"):
        return source if whole and storage.file(source) and _is_cvat(source, storage) else None
    folder = folder_of(source, split, storage, whole, _holds)
    return None if folder is None else join(folder, FILE)


def _holds(folder: str, storage: Storage) -> bool:
    path = join(folder, FILE)
    return storage.file(path) is not None and _is_cvat(path, storage)


def _is_cvat(path: str, storage: Storage) -> bool:
    head = storage.read(path, _HEAD)
    return b"<annotations" in head and (b"<image " in head or b"<task>" in head or b"<project>" in head)


def entries(path: str, storage: Storage) -> Iterator[tuple[str, int, Any]]:
    """COCO sections of such a file.

    Raises:
        ValueError: it is not XML.
    """
    try:
        root = ElementTree.fromstring(storage.read(path))
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from error
    classes, count = Numbered(), 0
    for number, photo in enumerate(root.iter("image")):
        size = {"height": photo.get("height"), "width": photo.get("width")}
        yield "images", number, {"id": number, "file_name": photo.get("name"), **size}
        for entry in _objects(photo):
            if isinstance(entry, dict):
                entry |= {"image_id": number, "category_id": classes(entry.pop("label"))}
            yield "annotations", count, entry
            count += 1
    yield from classes.entries()


def _objects(photo: ElementTree.Element) -> list[Any]:
    """COCO annotations of a photo's shapes, with their label; the polygons of a group are one."""
    found: list[Any] = []
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for shape in photo:
        try:
            outline = _outline(shape, photo)
            label = shape.attrib["label"].strip() if outline else ""
        except (KeyError, ValueError) as error:
            found.append(f"{shape.tag} on {photo.get('name')}: {error!r}")
            continue
        if outline is None:
            continue
        group = shape.get("group_id", "0")
        known = groups.get((label, group)) if group != "0" else None
        if known is not None and isinstance(known.get("segmentation"), list) and "segmentation" in outline:
            known["segmentation"] += outline["segmentation"]
            continue
        entry = {"label": label, **outline}
        found.append(entry)
        if shape.tag == "polygon":
            groups[label, group] = entry
    return found


def _outline(shape: ElementTree.Element, photo: ElementTree.Element) -> dict[str, Any] | None:
    if shape.tag == "polygon":
        points = [point.split(",") for point in shape.attrib["points"].split(";") if point.strip()]
        return {"segmentation": [[float(side) for x, y in points for side in (x, y)]]}
    if shape.tag == "ellipse":
        x, y, across, down = (float(shape.attrib[name]) for name in ("cx", "cy", "rx", "ry"))
        return {"segmentation": [ellipse(x, y, across, down)]}
    if shape.tag == "mask":
        return {"segmentation": encode_picture(_mask(shape, photo))}
    if shape.tag == "box":
        x1, y1, x2, y2 = (float(shape.attrib[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
        return {"bbox": [x1, y1, x2 - x1, y2 - y1]}
    return None


def _mask(shape: ElementTree.Element, photo: ElementTree.Element) -> NDArray[np.bool_]:
    """Bool [H, W] of run lengths along the rows of the mask's box, background first."""
    size = int(photo.attrib["height"]), int(photo.attrib["width"])
    left, top, width, height = (int(float(shape.attrib[name])) for name in ("left", "top", "width", "height"))
    runs = np.array([int(run) for run in shape.attrib["rle"].split(",")], np.int64)
    if min(*size, width, height) < 1 or max(size[0] * size[1], width * height) > MAX_PIXELS:
        raise ValueError("a mask without pixels, or with too many")
    if runs.min() < 0 or runs.sum() != width * height or left < 0 or top < 0:
        raise ValueError(f"the runs do not add up to {width}x{height}")
    crop = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    mask = np.zeros(size, bool)
    part = mask[top : top + height, left : left + width]
    part[:] = crop[: part.shape[0], : part.shape[1]]
    return mask
