"""Detections for other libraries, and in notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from blu_export.draw import overlay
from blu_export.errors import UsageError
from blu_export.extras import import_extra
from blu_export.instances import Instances
from blu_export.results.base import Result, encode_picture
from blu_export.results.csv import COLUMNS, rows

Kind = TypeVar("Kind", bound=Instances)

NOTEBOOK_SIDE = 1280
"""Longest side of a picture in a notebook, whose file holds it."""


def to_pandas(found: Instances) -> Any:
    """See Detections.to_pandas."""
    frame = import_extra("pandas").DataFrame(rows(Result(found, found.photo_name)), columns=list(COLUMNS))
    unused = ["frame"] + ["track"] * (found.track_ids is None)
    return frame.drop(columns=unused).astype({"score": float})


def to_supervision(found: Instances) -> Any:
    """See Detections.to_supervision."""
    y1, x1, y2, x2 = found.rois.T.astype(np.float32)
    names = np.array([found.class_names[class_id] for class_id in found.class_ids.tolist()], dtype=np.str_)
    return import_extra("supervision").Detections(
        xyxy=np.stack([x1, y1, x2, y2], axis=1),
        mask=np.ascontiguousarray(np.moveaxis(found.masks, -1, 0)),
        confidence=found.scores.copy(),
        class_id=found.class_ids.astype(np.int64),
        tracker_id=None if found.track_ids is None else found.track_ids.astype(np.int64),
        data={"class_name": names},
    )


def from_supervision(
    kind: type[Kind], given: Any, class_names: Sequence[str], image_size: tuple[int, int] | None
) -> Kind:
    """See Detections.from_supervision; ``kind`` is that class."""
    if not len(given) and image_size is not None:
        return kind.empty(image_size, class_names)
    missing = [name for name in ("mask", "confidence", "class_id") if getattr(given, name) is None]
    if missing:
        raise UsageError(f"These detections of supervision have no {missing[0]}.", "Instances here have all three.")
    masks: NDArray[np.bool_] = np.asarray(given.mask, np.bool_)
    height, width = image_size or masks.shape[1:]
    far = np.array([width, height, width, height])
    low = np.floor(given.xyxy[:, :2]).clip(0, far[:2] - 1)
    high = np.ceil(given.xyxy[:, 2:]).clip(low + 1, far[2:])
    values = {
        "rois": np.concatenate([low[:, ::-1], high[:, ::-1]], axis=1).astype(np.int32),
        "class_ids": given.class_id,
        "scores": given.confidence,
        "masks": np.moveaxis(masks, 0, -1),
    }
    found = kind.from_dict(values, class_names)
    return found if given.tracker_id is None else found.with_tracks(given.tracker_id)


def notebook_picture(found: Instances) -> bytes:
    """The overlay as PNG, no larger than NOTEBOOK_SIDE."""
    from PIL import Image

    picture = Image.fromarray(overlay(Result(found, "").picture(), found))
    picture.thumbnail((NOTEBOOK_SIDE, NOTEBOOK_SIDE), Image.Resampling.LANCZOS)
    return encode_picture(np.asarray(picture), "PNG")


def notebook_table(found: Instances) -> str:
    """The instances as an HTML table."""
    columns = ("class", "score", "x", "y", "width", "height", "area")
    places = [COLUMNS.index(name) for name in columns]
    head = "".join(f"<th>{name}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(row[place]))}</td>" for place in places) + "</tr>"
        for row in rows(Result(found, ""))
    )
    return f"<p>{html.escape(repr(found))}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
