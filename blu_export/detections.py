"""Detections: the instances of one photo, and all the forms in which they come and go."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blu_export.instances import Detection, Instances

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Detection", "Detections"]


class Detections(Instances):
    """What was found on one photo, best score first: see Instances for its fields.

    Raises:
        UsageError: the values contradict each other; the message names the instance.
    """

    def to_coco(self, image_id: int | str = 1) -> list[dict[str, Any]]:
        """COCO results: image_id, category_id, bbox [x, y, width, height], area, score, segmentation, track_id."""
        from blu_export.results.coco import coco_annotations

        return coco_annotations(self, image_id)

    def to_json(self) -> dict[str, Any]:
        """JSON values: ``image_size``, ``class_names`` and one object per instance, its mask as COCO RLE."""
        from blu_export.results.json import to_json

        return to_json(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Detections:
        """The inverse of ``to_json``; other keys are ignored.

        Raises:
            UsageError: the values are not such JSON.
        """
        from blu_export.results.load import from_json

        return from_json(cls, values)

    def save(
        self, path: str | os.PathLike[str], format: str | None = None, *, image: NDArray[np.uint8] | None = None
    ) -> list[Path]:
        """Write a file in the format that its suffix says.

        .jpg, .png (the overlay), .json, .coco.json, .labelme.json, .npz, .csv, .geojson, .txt (YOLO), .xml (VOC),
        .mask.png, .cutout.png, .crop.jpg; the last three write one file per instance beside it. ``load`` reads .json
        and .npz.

        Args:
            path: of the file.
            format: by name, as ``blu infer --format`` takes it, where the suffix does not say it.
            image: uint8 [H, W, 3] RGB, for formats that draw on the photo; by default what was detected on.

        Returns:
            The files.

        Raises:
            UsageError: the suffix or the format is unknown, or the photo is needed and not known.
            OSError: it cannot be written.
        """
        from blu_export.results import save
        from blu_export.results.base import Result

        return save(Result(self, self.photo_name, image=image), path, format)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Detections:
        """Read a .json or .npz file that ``save`` or ``blu infer`` wrote; nothing in the file is executed.

        Raises:
            UsageError: it is not such a file.
            OSError: it cannot be read.
        """
        from blu_export.results.load import load

        return load(cls, Path(path))

    def plot(self, image: NDArray[np.uint8] | None = None, **options: Any) -> Image:
        """The photo with masks, boxes and labels, as a PIL image.

        Args:
            image: uint8 [H, W, 3] RGB; by default what was detected on.
            options: of ``draw.overlay``.

        Raises:
            UsageError: the photo is not known.
        """
        from PIL import Image

        from blu_export.draw import overlay
        from blu_export.results.base import Result

        return Image.fromarray(overlay(Result(self, self.photo_name, image=image).picture(), self, **options))

    def to_pandas(self) -> Any:
        """A pandas DataFrame with a row per instance: class, score, box, area; the columns of the format csv."""
        from blu_export.results.convert import to_pandas

        return to_pandas(self)

    def to_supervision(self) -> Any:
        """The same as supervision.Detections: class ids stay, names are in ``data["class_name"]``."""
        from blu_export.results.convert import to_supervision

        return to_supervision(self)

    @classmethod
    def from_supervision(
        cls, detections: Any, class_names: Sequence[str], image_size: tuple[int, int] | None = None
    ) -> Detections:
        """The inverse of ``to_supervision``; mask pixels outside their box are lost.

        Args:
            detections: supervision.Detections with masks, scores and class ids.
            class_names: by class id; the first is the background's.
            image_size: (height, width), which masks tell by themselves.

        Raises:
            UsageError: masks, scores or class ids are missing.
        """
        from blu_export.results.convert import from_supervision

        return from_supervision(cls, detections, class_names, image_size)

    def _repr_png_(self) -> bytes | None:
        """The picture in a notebook; None where the photo is not known."""
        from blu_export.results.convert import notebook_picture

        return None if self.photo is None else notebook_picture(self)

    def _repr_html_(self) -> str | None:
        """The table in a notebook, where there is no picture: notebooks prefer HTML to pictures."""
        from blu_export.results.convert import notebook_table

        return notebook_table(self) if self.photo is None else None
