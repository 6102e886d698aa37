"""VGG Image Annotator 1 and 2: its JSON (projects, or annotations alone) and its CSV.

A region of the shapes polygon, polyline, circle and ellipse is an object with a mask; a rectangle has only a box.
Its class is the value of an attribute called class, label, name, … or else of its first attribute.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from blu_export.data.formats.parts import NAMELESS, Numbered, ellipse, folder_of
from blu_export.data.json_text import decode_text
from blu_export.data.storage import Storage, join

CLASS_ATTRIBUTES = ("class", "label", "name", "category", "type", "object", "object_name", "class_name")
_HEAD = 4096


def find(source: str, split: str, storage: Storage, whole: bool) -> str | None:
    """The file of a part: in its folder, or named after it; with ``whole`` the source itself."""
    if source.lower().endswith((".json", ".csv")):
        return source if whole and storage.file(source) and _is_via(source, storage) else None
    folder = folder_of(source, split, storage, whole, lambda folder, storage: _file_in(folder, storage) is not None)
    return folder and _file_in(folder, storage)


def _file_in(folder: str, storage: Storage) -> str | None:
    names = [file.name for file in storage.files(folder) if file.name.lower().endswith((".json", ".csv"))]
    found = [join(folder, name) for name in names if not name.startswith("._")]
    return next((path for path in found[:8] if _is_via(path, storage)), None)


def _is_via(path: str, storage: Storage) -> bool:
    head = storage.read(path, _HEAD).replace(b"\0", b"")
    if path.lower().endswith(".csv"):
        return b"region_shape_attributes" in head
    return b'"_via_' in head or (b'"filename"' in head and b'"regions"' in head)


def entries(path: str, storage: Storage) -> Iterator[tuple[str, int, Any]]:
    """COCO sections of a file of VIA.

    Raises:
        ValueError: it is not such a file.
    """
    text, _ = decode_text(storage.read(path))
    photos = _from_csv(text) if path.lower().endswith(".csv") else _from_json(json.loads(text))
    classes, count = Numbered(), 0
    for number, (name, regions) in enumerate(photos):
        yield "images", number, {"id": number, "file_name": name}
        for region in regions:
            shape, attributes = region.get("shape_attributes") or {}, region.get("region_attributes") or {}
            yield (
                "annotations",
                count,
                {"image_id": number, "category_id": classes(_class(attributes)), **_shape(shape)},
            )
            count += 1
    yield from classes.entries()


def _from_json(content: Any) -> list[tuple[str, list[dict[str, Any]]]]:
    photos = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
    if not isinstance(photos, dict):
        raise ValueError("it is not a file of VIA")
    found = []
    for photo in photos.values():
        if isinstance(photo, dict) and "filename" in photo:
            regions = photo.get("regions") or []
            regions = list(regions.values()) if isinstance(regions, dict) else regions
            found.append((str(photo["filename"]), [each for each in regions if isinstance(each, dict)]))
    return found


def _from_csv(text: str) -> list[tuple[str, list[dict[str, Any]]]]:
    photos: dict[str, list[dict[str, Any]]] = {}
    lines = [line for line in text.splitlines() if line.strip()]
    for row in csv.DictReader(io.StringIO("\n".join(lines))):
        name = row.get("filename") or row.get("#filename")
        if name:
            regions = photos.setdefault(name, [])
            shape = json.loads(row.get("region_shape_attributes") or "{}")
            if shape:
                attributes = json.loads(row.get("region_attributes") or "{}")
                regions.append({"shape_attributes": shape, "region_attributes": attributes})
    return list(photos.items())


def _class(attributes: dict[str, Any]) -> str:
    lower = {key.lower(): value for key, value in attributes.items()}
    value = next((lower[name] for name in CLASS_ATTRIBUTES if lower.get(name)), next(iter(lower.values()), None))
    if isinstance(value, dict):  # checkboxes
        value = next((name for name, ticked in value.items() if ticked), None)
    return str(value).strip() or NAMELESS if value is not None else NAMELESS


def _shape(shape: dict[str, Any]) -> dict[str, Any]:
    kind = shape.get("name")
    if kind in ("polygon", "polyline"):
        xs, ys = shape.get("all_points_x") or [], shape.get("all_points_y") or []
        return {"segmentation": [[side for point in zip(xs, ys, strict=False) for side in point]]}
    if kind == "circle":
        return {"segmentation": [ellipse(shape["cx"], shape["cy"], shape["r"], shape["r"])]}
    if kind == "ellipse":
        # VIA 2 turns by theta, in radians.
        return {"segmentation": [ellipse(shape["cx"], shape["cy"], shape["rx"], shape["ry"], shape.get("theta") or 0)]}
    return {"bbox": [shape.get(side) for side in ("x", "y", "width", "height")]}
