"""What a canvas of its own costs a model: the same network on that canvas and on the square one.

An approximation, measured. The network sees the padding around a photo, so with less of it the numbers at the
photo's edges differ; the exact comparison is that with Keras on the same canvas (``parity.verify``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from blu_export.data.dataset import Dataset
from blu_export.detector import Detector
from blu_export.errors import UsageError
from blu_export.evaluate.coco import KINDS, Evaluator
from blu_export.evaluate.detect import detect
from blu_export.parity.match import MatchResult, match
from blu_export.spec import ModelSpec


@dataclass(frozen=True)
class CanvasComparison:
    """A model on its own canvas beside itself on the square one, the reference."""

    canvas: str
    """As people name it: ``fit``, ``576x1024``."""
    square: str
    matches: tuple[MatchResult, ...]
    """Of each photo."""
    average_precision: dict[str, tuple[float, float]]
    """By KINDS: (square, own), 0..1; empty where the photos are not annotated."""
    annotated: int = 0
    """Photos that the average precision is of."""

    @property
    def instances(self) -> int:
        """The larger set of each photo, summed."""
        return sum(result.total for result in self.matches)

    @property
    def matched(self) -> int:
        """Pairs."""
        return sum(result.matched for result in self.matches)

    def to_json(self) -> dict[str, Any]:
        """JSON values, as stored in the artifact."""
        ious = np.concatenate([result.mask_iou for result in self.matches]) if self.matches else np.zeros(0)
        values: dict[str, Any] = {
            "approximation": True,
            "canvas": self.canvas,
            "reference": self.square,
            "images": len(self.matches),
            "instances": self.instances,
            "matched": self.matched,
            "median_mask_iou": float(np.median(ious)) if len(ious) else None,
        }
        if self.average_precision:
            values["annotated_images"] = self.annotated
            values["average_precision"] = {
                kind: {"square": square, "own": own, "delta": own - square}
                for kind, (square, own) in self.average_precision.items()
            }
        return values

    def lines(self) -> list[str]:
        """For people."""
        values = self.to_json()
        photos = "1 photo" if len(self.matches) == 1 else f"{len(self.matches)} photos"
        lines = [f"canvas {self.canvas} against {self.square}, an approximation, on {photos}"]
        iou = "" if values["median_mask_iou"] is None else f", median mask IoU {values['median_mask_iou']:.4f}"
        lines.append(f"    {self.matched} of {self.instances} instances matched{iou}")
        for kind, (square, own) in self.average_precision.items():
            lines.append(f"    {kind} AP {square:.4f} → {own:.4f} ({100 * (own - square):+.2f} points)")
        if not self.average_precision:
            lines.append("    average precision not measured: give an annotated data set with --images")
        return lines


def compare_canvases(
    own: Detector, square: Detector, photos: Sequence[Any], dataset: Dataset | None = None
) -> CanvasComparison:
    """Run photos on both canvases.

    Args:
        own, square: one network, on its canvas and on the square one.
        photos: what ``image.decode`` takes; their instances are matched.
        dataset: annotated photos, on which average precision is measured.

    Raises:
        UsageError: the two differ in more than the canvas, or the data set's classes are not the model's.
        ImageError: a photo cannot be read.
    """
    if on_square(own.spec) != square.spec:
        raise UsageError("These two differ in more than their canvas.", "Export both from the same weights.")
    pairs = zip(square.stream(photos), own.stream(photos), strict=True)
    matches = tuple(match(first.result(), second.result()) for first, second in pairs)
    precision: dict[str, tuple[float, float]] = {}
    if dataset is not None:
        judge = Evaluator(dataset)
        found = [judge(list(chain.from_iterable(detect(each, dataset)))).scores for each in (square, own)]
        precision = {kind: (found[0][kind].summary["ap"], found[1][kind].summary["ap"]) for kind in KINDS}
    names = (canvas_name(own.spec), canvas_name(square.spec))
    return CanvasComparison(*names, matches, precision, len(dataset) if dataset is not None else 0)


def on_square(spec: ModelSpec) -> ModelSpec:
    """The same model on the square canvas."""
    return spec.replace(image_resize_mode="square", image_canvas=(0, 0))


def has_own_canvas(spec: ModelSpec) -> bool:
    """Whether a model's canvas stands for the square one: ``fit`` and ``rectangle`` scale as it does."""
    return spec.image_resize_mode in ("fit", "rectangle")


def canvas_name(spec: ModelSpec) -> str:
    """``fit``, ``square 1024x1024``, ``576x1024``."""
    size = "x".join(map(str, spec.canvas or ()))
    return size if spec.image_resize_mode == "rectangle" else f"{spec.image_resize_mode} {size}".strip()
