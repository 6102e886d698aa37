"""Detections from files: the inverse of the formats json and npz."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np

from blu_export.errors import UsageError
from blu_export.instances import Instances
from blu_export.rle import crop_mask, decode_rle

Kind = TypeVar("Kind", bound=Instances)


def load(kind: type[Kind], path: Path) -> Kind:
    """See Detections.load; ``kind`` is that class."""
    try:
        if path.suffix.lower() == ".json":
            values = json.loads(path.read_bytes())
            if not isinstance(values, dict):
                raise ValueError("no JSON object")
            return from_json(kind, values)
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            names = [str(name) for name in json.loads(str(file["class_names"]))]
            found = kind.from_dict(file, names)
            if list(found.image_size) != file["image_size"].tolist():
                raise ValueError("masks of another size than the photo")
            return found.with_tracks(file["track_ids"]) if "track_ids" in file else found
    except (KeyError, TypeError, ValueError, IndexError, EOFError, BadZipFile) as error:
        raise UsageError(f"{path} holds no saved detections: {error!r}.") from error
    except UsageError as error:
        raise UsageError(f"{path} holds no saved detections: {error}") from error


def from_json(kind: type[Kind], values: Mapping[str, Any]) -> Kind:
    """See Detections.from_json; ``kind`` is that class."""
    try:
        height, width = (int(side) for side in values["image_size"])
        objects = list(values["detections"])
        rois = np.array([each["box"] for each in objects], np.int32).reshape(-1, 4)
        tracks = [each["track"] for each in objects if "track" in each]
        return kind(
            rois,
            np.array([each["class_id"] for each in objects], np.int32),
            np.array([each["score"] for each in objects], np.float32),
            tuple(
                crop_mask(decode_rle(each["mask"], (height, width)), roi)
                for each, roi in zip(objects, rois, strict=True)
            ),
            (height, width),
            tuple(str(name) for name in values["class_names"]),
            np.array(tracks, np.int32) if tracks else None,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"This is not the JSON of detections: {error!r}.") from error
