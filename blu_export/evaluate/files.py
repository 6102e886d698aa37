"""The pictures of an evaluation: precision-recall plots, the worst photos."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from blu_export.data.augment import mask_box
from blu_export.data.dataset import Dataset, Record, decode_mask
from blu_export.detections import Detections
from blu_export.draw import contact_sheet, overlay
from blu_export.evaluate.coco import KINDS, SHOWN_SCORE, Evaluation
from blu_export.evaluate.results import Rows
from blu_export.extras import import_extra
from blu_export.files import atomic_write
from blu_export.rle import crop_mask

LEGEND_CLASSES = 20
"""With more classes than this, a plot shows only their mean."""
TILE = 640
"""Side of a picture of the worst photos, pixels."""


def plot_precision_recall(path: Path, evaluation: Evaluation) -> None:
    """Precision over recall at IoU 0.5 of every class, and of their mean at IoU 0.5, 0.75 and over all (PNG).

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figure = import_extra("matplotlib.figure").Figure(figsize=(6.5 * len(KINDS), 5), layout="constrained")
    colors = import_extra("matplotlib").colormaps["tab20"].colors
    recall = np.linspace(0, 1, 101)
    names = evaluation.class_names[1:]
    for axes, (kind, scores) in zip(
        figure.subplots(1, len(KINDS), sharey=True), evaluation.scores.items(), strict=False
    ):
        precision = np.where(scores.precision > -1, scores.precision, np.nan)  # [IoU, recall, class]
        for k, name in enumerate(names if len(names) <= LEGEND_CLASSES else ()):
            label = f"{name} {scores.classes[name]['ap50']:.2f}"
            axes.plot(recall, precision[0, :, k], color=colors[k], linewidth=1, label=label)
        there = ~np.isnan(precision[0, 0])
        for label, values, style in (
            (f"mean, IoU 0.5: {scores.summary['ap50']:.3f}", precision[0], "-"),
            (f"mean, IoU 0.75: {scores.summary['ap75']:.3f}", precision[5], "--"),
            (f"mean, IoU 0.5 to 0.95: {scores.summary['ap']:.3f}", precision.mean(axis=0), ":"),
        ):
            axes.plot(recall, values[:, there].mean(axis=1), style, color="black", linewidth=2, label=label)
        axes.set(title=f"{kind}: precision over recall", xlabel="recall", xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        axes.legend(title="average precision", fontsize="small", loc="lower left")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)


def draw_worst(folder: Path, evaluation: Evaluation, results: Rows, dataset: Dataset, count: int) -> list[Path]:
    """Draw the ``count`` worst photos, what is annotated beside what was found: ``01-NAME.jpg``, worst first.

    Raises:
        DatasetError: a photo cannot be read.
    """
    found: defaultdict[int | str, Rows] = defaultdict(list)
    for row in results:
        if row["score"] >= SHOWN_SCORE:
            found[row["image_id"]].append(row)
    places = {record.image_id: index for index, record in enumerate(dataset.records)}
    paths = []
    for rank, (image_id, errors) in enumerate(evaluation.worst(count), start=1):
        index = places[image_id]
        record, image = dataset.records[index], dataset.load_image(index)
        pictures = [
            overlay(image, as_detections(rows, record, dataset.class_names))
            for rows in (_annotated(record), found[image_id])
        ]
        titles = [f"annotated: {record.uri.rpartition('/')[2]}", f"found: {errors.missed} missed, {errors.false} false"]
        paths.append(folder / f"{rank:02d}-{Path(record.uri).stem}.jpg")
        write_picture(paths[-1], contact_sheet(pictures, titles, columns=2, tile=TILE))
    return paths


def write_picture(path: Path, image: NDArray[np.uint8]) -> None:
    """Write uint8 [H, W, 3] RGB in the format that the suffix names."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(cv2.imencode(path.suffix, image[..., ::-1])[1].tobytes())


def as_detections(rows: Iterable[dict[str, Any]], record: Record, class_names: tuple[str, ...]) -> Detections:
    """COCO results of one photo as Detections, best first; empty masks are left out."""
    kept = []
    for row in sorted(rows, key=lambda row: -row["score"]):
        mask = _mask_of(row, record)
        if (box := mask_box(mask)) is not None:
            kept.append((box, row["category_id"], min(1.0, max(0.0, row["score"])), crop_mask(mask, box)))
    if not kept:
        return Detections.empty((record.height, record.width), class_names)
    boxes, class_ids, scores, crops = zip(*kept, strict=True)
    size = record.height, record.width
    return Detections(np.array(boxes), np.array(class_ids), np.array(scores, np.float32), crops, size, class_names)


def _mask_of(row: dict[str, Any], record: Record) -> NDArray[np.bool_]:
    if "segmentation" in row:
        return decode_mask(row["segmentation"], record.height, record.width)
    mask = np.zeros((record.height, record.width), np.bool_)
    x, y, width, height = row["bbox"]
    mask[max(0, round(y)) : max(0, round(y + height)), max(0, round(x)) : max(0, round(x + width))] = True
    return mask


def _annotated(record: Record) -> Rows:
    return [
        {"category_id": a.category, "score": 1.0, "segmentation": a.segmentation}
        for a in record.annotations
        if not a.iscrowd
    ]
