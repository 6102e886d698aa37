"""Validation during training: COCO average precision of a model, and pictures of what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from blu_export.data.dataset import Dataset, encode_masks
from blu_export.data.photos import MAX_UNREADABLE, Unreadable
from blu_export.detector import Detector
from blu_export.errors import BluError
from blu_export.evaluate.coco import SHOWN_SCORE, Evaluator
from blu_export.evaluate.detect import detect
from blu_export.evaluate.files import as_detections, write_picture
from blu_export.evaluate.results import Rows
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

    Photos that cannot be read, or whose masks cannot, are left out.

    Args:
        dataset: the validation photos.
        batch: photos that go through the model at once, where its canvas is fixed.
        watch: passes the photos' results on, as they come; for a progress line.
        unreadable: share of the photos that may be left out.

    Raises:
        DatasetError: too many are to be left out.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch: int = 4,
        watch: Callable[[Iterable[Rows], int], Iterator[Rows]] | None = None,
        unreadable: float = MAX_UNREADABLE,
    ) -> None:
        self.dataset = dataset
        self.batch = batch
        self.watch = watch or (lambda rows, total: iter(rows))
        self.unreadable = Unreadable(dataset, unreadable)
        for index, record in enumerate(dataset.records):
            try:
                encode_masks(record)
            except BluError as error:
                self.unreadable.add(index, error)
        self._evaluator: tuple[Dataset, Evaluator] | None = None

    def __call__(self, model: MaskRCNN, picture: Path | None = None) -> dict[str, float]:
        """AP by VALUES, 0..1; ``picture`` gets the predictions on the first few photos.

        Raises:
            DatasetError: too many photos cannot be read.
        """
        indices = self._readable()
        detector, part = Detector(KerasRunner.of_model(model)), self._part(indices)
        found = detect(detector, part, self.batch, lambda n, error: self.unreadable.add(indices[n], error))
        rows = list(self.watch(found, len(part)))
        if picture is not None:
            self._draw(picture, dict(zip(self._readable()[:PICTURES], rows, strict=False)))
        values = self._judge()(list(chain.from_iterable(rows))).values
        return {name: values[name] for name in VALUES}

    def _readable(self) -> list[int]:
        return [index for index in range(len(self.dataset)) if index not in self.unreadable]

    def _part(self, indices: list[int]) -> Dataset:
        return replace(self.dataset, records=tuple(self.dataset.records[index] for index in indices))

    def _judge(self) -> Evaluator:
        """The evaluator of the photos that can be read; the truth is prepared once for the same ones."""
        part = self._part(self._readable())
        if self._evaluator is None or len(self._evaluator[0]) != len(part):
            self._evaluator = part, Evaluator(part)
        return self._evaluator[1]

    def _draw(self, path: Path, found: dict[int, Rows]) -> None:
        from blu_export.draw import contact_sheet, overlay

        drawn = []
        for index, rows in found.items():
            shown = [row for row in rows if row["score"] >= SHOWN_SCORE]
            detections = as_detections(shown, self.dataset.records[index], self.dataset.class_names)
            drawn.append(overlay(self.dataset.load_image(index), detections))
        write_picture(path, contact_sheet(drawn, columns=len(drawn), tile=PICTURE_HEIGHT))
