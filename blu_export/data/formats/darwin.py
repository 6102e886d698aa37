"""V7 Darwin's own JSON 2.0: a file for each photo.

Polygons with all their paths are one object; paths that lie inside others are holes. Annotations with only a box are
boxes; tags, lines, keypoints and the like are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from blu_export.data.dataset import decode_mask
from blu_export.data.formats.parts import JsonPerPhoto, Numbered, encode_picture
from blu_export.data.json_text import decode_text
from blu_export.data.storage import Storage
from blu_export.rle import MAX_PIXELS, Rle


def _is_darwin(head: bytes) -> bool:
    return b'"item"' in head and b'"slots"' in head and b'"images"' not in head


_FORMAT = JsonPerPhoto(_is_darwin, ("annotations", "ann", "json"))
find = _FORMAT.find


def entries(path: str, storage: Storage) -> Iterator[tuple[str, int, Any]]:
    """COCO sections of Darwin's files; one that cannot be read becomes an invalid entry."""
    classes, count = Numbered(), 0
    for number, file in enumerate(_FORMAT.files(path, storage)):
        try:
            content = json.loads(decode_text(storage.read(file))[0])
            item, shapes = content["item"], list(content["annotations"])
            slot = item["slots"][0]
            size = {"height": slot.get("height"), "width": slot.get("width")}
            name = f"{str(item.get('path') or '').strip('/')}/{item['name']}".strip("/")
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            yield "images", number, f"{file}: {error!r}"
            continue
        yield "images", number, {"id": number, "file_name": name, **size}
        for shape in shapes:
            try:
                outline = _outline(shape, size)
                label = str(shape["name"]).strip()
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                yield "annotations", count, f"annotation {str(shape)[:40]}: {error!r}"
                count += 1
                continue
            if outline is not None:
                entry = {"image_id": number, "category_id": classes(label), **outline}
                yield "annotations", count, entry
                count += 1
    yield from classes.entries()


def _outline(shape: dict[str, Any], size: dict[str, Any]) -> dict[str, Any] | None:
    if "polygon" in shape:
        polygon = shape["polygon"]
        paths = polygon["paths"] if "paths" in polygon else [polygon["path"]]  # paths: of 2.0; path: of 1.0
        rings = [[float(side) for point in path for side in (point["x"], point["y"])] for path in paths]
        return {"segmentation": rings if len(rings) == 1 else _even_odd(rings, size)}
    if "bounding_box" in shape:
        return {"bbox": [float(shape["bounding_box"][key]) for key in ("x", "y", "w", "h")]}
    return None


def _even_odd(rings: list[list[float]], size: dict[str, Any]) -> Rle:
    """The mask of several paths: what an odd number of them covers, as SVG's rule and Darwin's have it."""
    height, width = int(size["height"]), int(size["width"])
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"a photo cannot be {width}x{height}")
    mask = np.zeros((height, width), bool)
    for ring in rings:
        mask ^= decode_mask([ring], height, width)
    return encode_picture(mask)
