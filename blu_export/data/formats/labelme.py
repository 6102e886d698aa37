"""LabelMe: a JSON file for each photo, beside it or not.

Polygons, circles and masks are objects with masks; those of one label and one group are one object. Rectangles have
only a box; points and lines are left out.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from blu_export.data.finder import name_parts
from blu_export.data.formats.parts import JsonPerPhoto, Numbered, ellipse, encode_picture, read_mask_picture
from blu_export.data.json_text import decode_text
from blu_export.data.storage import Storage


def _is_labelme(head: bytes) -> bool:
    return b'"shapes"' in head and b'"images"' not in head and (b'"imagePath"' in head or b'"flags"' in head)


_FORMAT = JsonPerPhoto(_is_labelme, ("annotations", "labels", "json"))
find = _FORMAT.find


def entries(path: str, storage: Storage) -> Iterator[tuple[str, int, Any]]:
    """COCO sections of LabelMe's files; one that cannot be read becomes an invalid entry."""
    classes, count = Numbered(), 0
    for number, file in enumerate(_FORMAT.files(path, storage)):
        try:
            content = json.loads(decode_text(storage.read(file))[0])
            shapes, photo = list(content["shapes"]), name_parts(str(content["imagePath"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            yield "images", number, f"{file}: {error!r}"
            continue
        size = {"height": content.get("imageHeight"), "width": content.get("imageWidth")}
        name = "/".join(part for part in photo if part != "..")
        yield "images", number, {"id": number, "file_name": name, **size}
        for entry in _objects(shapes, size):
            if isinstance(entry, dict):
                entry |= {"image_id": number, "category_id": classes(entry.pop("label"))}
            yield "annotations", count, entry
            count += 1
    yield from classes.entries()


def _objects(shapes: list[Any], size: dict[str, Any]) -> list[Any]:
    """COCO annotations of shapes, with their label; the polygons of a group are one."""
    found: list[Any] = []
    groups: dict[tuple[str, Any], dict[str, Any]] = {}
    for shape in shapes:
        try:
            label, group = str(shape["label"]).strip(), shape.get("group_id")
            outline = _outline(shape, size)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            found.append(f"shape {str(shape)[:40]}: {error!r}")
            continue
        if outline is None:
            continue
        known = groups.get((label, group)) if group is not None else None
        if known is not None and "segmentation" in outline and isinstance(known.get("segmentation"), list):
            known["segmentation"] += outline["segmentation"]
            continue
        entry = {"label": label, **outline}
        found.append(entry)
        if group is not None:
            groups[label, group] = entry
    return found


def _outline(shape: dict[str, Any], size: dict[str, Any]) -> dict[str, Any] | None:
    kind, points = shape.get("shape_type") or "polygon", [[float(x), float(y)] for x, y in shape["points"]]
    if kind == "polygon":
        return {"segmentation": [[side for point in points for side in point]]}
    if kind == "circle":
        (x, y), (edge_x, edge_y) = points
        radius = float(np.hypot(edge_x - x, edge_y - y))
        return {"segmentation": [ellipse(x, y, radius, radius)]}
    if kind == "mask":
        crop = read_mask_picture(base64.b64decode(shape["mask"])) > 0
        x, y = (int(side) for side in points[0])
        mask = np.zeros((int(size["height"]), int(size["width"])), bool)
        part = mask[y : y + crop.shape[0], x : x + crop.shape[1]]
        part[:] = crop[: part.shape[0], : part.shape[1]]
        return {"segmentation": encode_picture(mask)}
    if kind == "rectangle":
        (x1, y1), (x2, y2) = points[:2] if len(points) == 2 else (points[0], points[2])
        return {"bbox": [min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1)]}
    return None
