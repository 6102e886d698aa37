"""Validation during training: COCO average precision of a model, and pictures of what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from blu_export.data.dataset import Dataset
from blu_export.detector import Detector
from blu_export.evaluate.coco import SHOWN_SCORE, Evaluator, Rows, detect
from blu_export.evaluate.files import as_detections, write_picture
from blu_export.runtime.keras import KerasRunner

if TYPE_CHECKING:
    from blu_export.model.mask_rcnn import MaskRCNN

VALUES = ("box_ap", "box_ap50", "mask_ap", "mask_ap50")
"""What a validation adds to the history."""
PICTURES = 6
"""Validation photos whose predictions are drawn."""
PICTURE_HEIGHT = 480


class Validator:
    """Measures a model on a data set; call it with the model.

    Args:
        dataset: the validation photos.
        batch: photos that go through the model at once, where its canvas is fixed.
        watch: passes the photos' results on, as they come; for a progress line.
    """

    def __init__(
        self, dataset: Dataset, batch: int = 4, watch: Callable[[Iterable[Rows], int], Iterator[Rows]] | None = None
    ) -> None:
        self.dataset = dataset
        self.batch = batch
        self.watch = watch or (lambda rows, total: iter(rows))
        self.evaluator = Evaluator(dataset)

    def __call__(self, model: MaskRCNN, picture: Path | None = None) -> dict[str, float]:
        """AP by VALUES, 0..1; ``picture`` gets the predictions on the first few photos."""
        found = detect(Detector(KerasRunner.of_model(model)), self.dataset, self.batch)
        rows = list(self.watch(found, len(self.dataset)))
        if picture is not None:
            self._draw(picture, rows[:PICTURES])
        values = self.evaluator(list(chain.from_iterable(rows))).values
        return {name: values[name] for name in VALUES}

    def _draw(self, path: Path, rows: list[Rows]) -> None:
        from blu_export.draw import contact_sheet, overlay

        drawn = []
        for index, found in enumerate(rows):
            shown = [row for row in found if row["score"] >= SHOWN_SCORE]
            detections = as_detections(shown, self.dataset.records[index], self.dataset.class_names)
            drawn.append(overlay(self.dataset.load_image(index), detections))
        write_picture(path, contact_sheet(drawn, columns=len(drawn), tile=PICTURE_HEIGHT))
