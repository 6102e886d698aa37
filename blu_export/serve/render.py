"""Answers made of detections: JSON with RLE or polygons, an overlay PNG, npz."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blu_export.detections import Detections
from blu_export.serve.errors import BadRequestError, NotAcceptableError
from blu_export.serve.oip import check_mask_size
from blu_export.serve.service import Found

MASKS = ("rle", "polygon", "none")
JSON, PNG, NPZ = "application/json", "image/png", "application/x-npz"
MEDIA_TYPES = (JSON, PNG, NPZ)
"""What ``/v1/predict`` can answer with, by ``Accept``."""


@dataclass(frozen=True)
class Options:
    """What a caller wants of the detections."""

    min_score: float = 0.0
    classes: tuple[str, ...] = ()
    """Names or ids; empty: all."""
    masks: str = "rle"
    media_type: str = JSON
    request_id: str = ""

    def check(self, class_names: tuple[str, ...]) -> None:
        """Raise BadRequestError for a class that the model does not know."""
        for name in self.classes:
            if name not in class_names[1:] and not (name.isdecimal() and 0 < int(name) < len(class_names)):
                raise BadRequestError(
                    f"The model knows no class '{name[:80]}'.", f"It knows {', '.join(class_names[1:21])}."
                )

    def keep(self, found: Detections) -> Detections:
        """The detections that are wanted."""
        wanted = found.scores >= self.min_score
        if self.classes:
            ids = [found.class_names.index(name) if name in found.class_names else int(name) for name in self.classes]
            wanted &= np.isin(found.class_ids, ids)
        return found if wanted.all() else found[wanted]


def render(found: Found, options: Options) -> bytes:
    """The body of an answer, of type ``options.media_type``."""
    kept = options.keep(found.detections)
    if options.media_type == PNG:
        assert found.photo is not None
        return overlay_png(found.photo, kept)
    if options.media_type == NPZ:
        return npz(kept)
    return json.dumps(as_json(found, kept, options)).encode()


def as_json(found: Found, kept: Detections, options: Options) -> dict[str, Any]:
    """The detections as JSON values; boxes are (y1, x1, y2, x2) in pixels of the photo."""
    height, width = kept.image_size
    objects: list[dict[str, Any]] = [
        {
            "class": kept.class_names[class_id],
            "class_id": int(class_id),
            "score": round(float(score), 6),
            "box": [int(side) for side in box],
        }
        for box, class_id, score in zip(kept.rois, kept.class_ids, kept.scores, strict=True)
    ]
    if options.masks == "rle":
        for each, rle in zip(objects, kept.rles(), strict=True):
            each["mask"] = rle
    elif options.masks == "polygon":
        for each, box, crop in zip(objects, kept.rois, kept.crops, strict=True):
            each["polygons"] = polygons(crop, box)
    return {
        "request_id": options.request_id,
        "model": {"name": found.info.name, "sha256": found.info.sha256},
        "image": {"height": height, "width": width},
        "classes": list(kept.class_names[1:]),
        "detections": objects,
        "seconds": {stage: round(seconds, 5) for stage, seconds in found.seconds.items()},
        "batch": found.batch,
        **({} if found.tiles is None else {"tiles": asdict(found.tiles)}),
    }


def polygons(crop: NDArray[np.bool_], box: NDArray[np.int32]) -> list[list[int]]:
    """Outlines of a mask: a list of [x, y, x, y, …] in pixels of the photo; holes are left out, as in COCO."""
    import cv2

    contours, _ = cv2.findContours(crop.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    corner = np.array([box[1], box[0]])
    return [(contour[:, 0] + corner).ravel().tolist() for contour in contours]


def overlay_png(photo: NDArray[np.uint8], kept: Detections) -> bytes:
    """The photo with masks, boxes and labels drawn on it, as PNG."""
    from PIL import Image

    from blu_export.draw import overlay

    buffer = io.BytesIO()
    Image.fromarray(overlay(photo, kept)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def npz(kept: Detections) -> bytes:
    """The original's dict (rois, class_ids, scores, masks [H, W, N]) as a compressed .npz file.

    Raises:
        TooLargeError: the masks have more than MAX_MASK_BYTES.
    """
    check_mask_size(kept, f"Ask for {JSON}, or for fewer detections with min_score or classes.")
    buffer = io.BytesIO()
    arrays: dict[str, Any] = kept.to_dict()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def negotiate(accept: str | None, offered: Iterable[str] = MEDIA_TYPES) -> str:
    """The offered type that an Accept header prefers; the first for none or ``*/*``.

    Raises:
        NotAcceptableError: none is accepted.
    """
    offered = tuple(offered)
    ranges = [part for part in (accept or "*/*").split(",") if part.strip()] or ["*/*"]
    # For each type the most specific range decides; between types the quality does, then our order.
    quality = {kind: max((_quality(part, kind) for part in ranges), key=lambda found: found[1])[0] for kind in offered}
    best = max(offered, key=lambda kind: quality[kind])
    if not quality[best]:
        raise NotAcceptableError("None of the accepted types can be made.", f"Types are {', '.join(offered)}.")
    return best


def _quality(media_range: str, media_type: str) -> tuple[float, int]:
    """(quality, how specific) of a range like ``image/*;q=0.5`` for a type; quality 0 where it does not match."""
    name, *parameters = (part.strip().lower() for part in media_range.split(";"))
    specific = {"*/*": 1, media_type.partition("/")[0] + "/*": 2, media_type: 3}.get(name, 0)
    quality = 1.0
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key == "q":
            try:
                quality = min(max(float(value), 0.0), 1.0)
            except ValueError:
                quality = 0.0
    return (quality if specific else 0.0), specific
