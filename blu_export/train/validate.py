"""Validation during training: COCO average precision of a model, and pictures of what it finds."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blu_export.data.dataset import Dataset

if TYPE_CHECKING:
    from blu_export.detections import Detections
    from blu_export.model.mask_rcnn import MaskRCNN

PICTURES = 6
"""Validation photos whose predictions are drawn."""
PICTURE_MIN_SCORE = 0.5
PICTURE_HEIGHT = 480


class Validator:
    """Measures a model on a data set; call it with the model.

    Args:
        dataset: the validation photos.
        batch: photos that go through the model at once, where its canvas is fixed.
    """

    def __init__(self, dataset: Dataset, batch: int = 4) -> None:
        self.dataset = dataset
        self.batch = batch
        self.truth = coco_truth(dataset)

    def __call__(self, model: MaskRCNN, picture: Path | None = None) -> dict[str, float]:
        """AP of boxes and masks; ``picture`` gets the predictions on the first few photos.

        Returns:
            ``box_ap``, ``box_ap50``, ``mask_ap``, ``mask_ap50``, 0..1.
        """
        from blu_export.draw import overlay
        from blu_export.files import atomic_write

        results, drawn = [], []
        for index, found in enumerate(detect_all(model, self.dataset, self.batch)):
            results += found.to_coco(self.dataset.records[index].image_id)
            if picture is not None and index < PICTURES:
                drawn.append(overlay(self.dataset.load_image(index), found[found.scores >= PICTURE_MIN_SCORE]))
        if drawn and picture is not None:
            with atomic_write(picture) as temporary:
                _write_row(temporary, drawn)
        return average_precision(self.truth, results)


def detect_all(model: MaskRCNN, dataset: Dataset, batch: int) -> Iterator[Detections]:
    """Detections of each photo, in order."""
    from blu_export.image import mold, unmold

    size = batch if model.spec.canvas is not None else 1
    for start in range(0, len(dataset), size):
        indices = range(start, min(start + size, len(dataset)))
        molded = [mold(dataset.load_image(index), model.spec) for index in indices]
        windows = np.stack([photo.window for photo in molded]).astype(np.float32)
        detections, masks, _ = model.detect(np.stack([photo.canvas for photo in molded]), windows)
        for rows, mask, photo in zip(detections, masks, molded, strict=True):
            yield unmold(rows, mask, photo, model.spec)


def coco_truth(dataset: Dataset) -> dict[str, Any]:
    """The data set as a COCO instances file: category ids are class indices."""
    from pycocotools import mask as coco_mask

    annotations: list[dict[str, Any]] = []
    for index, record in enumerate(dataset.records):
        for annotation, mask in zip(record.annotations, dataset.load_masks(index), strict=True):
            rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
            y1, x1, y2, x2 = annotation.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.image_id,
                    "category_id": annotation.category,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(coco_mask.area(rle)),
                    "segmentation": rle,
                    "iscrowd": int(annotation.iscrowd),
                }
            )
    return {
        "info": {},
        "images": [{"id": r.image_id, "height": r.height, "width": r.width} for r in dataset.records],
        "categories": [{"id": i, "name": name} for i, name in enumerate(dataset.class_names) if i],
        "annotations": annotations,
    }


def average_precision(truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float]:
    """COCO AP (IoU 0.5 to 0.95) and AP50 of boxes and masks, by pycocotools; 0 without results."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    names = {"bbox": ("box_ap", "box_ap50"), "segm": ("mask_ap", "mask_ap50")}
    if not results:
        return {name: 0.0 for pair in names.values() for name in pair}
    values = {}
    with contextlib.redirect_stdout(io.StringIO()):
        expected = COCO()
        expected.dataset = truth
        expected.createIndex()
        found = expected.loadRes(results)
        for kind, (ap, ap50) in names.items():
            evaluation = COCOeval(expected, found, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            values[ap], values[ap50] = (float(evaluation.stats[i]) for i in (0, 1))
    return values


def _write_row(path: Path, images: list[Any]) -> None:
    import cv2

    tiles = []
    for image in images:
        width = max(1, round(image.shape[1] * PICTURE_HEIGHT / image.shape[0]))
        tiles.append(cv2.resize(image, (width, PICTURE_HEIGHT), interpolation=cv2.INTER_AREA))
    path.write_bytes(cv2.imencode(path.suffix, np.hstack(tiles)[..., ::-1])[1].tobytes())
