"""What is confused with what: the confusion matrix of detections, and the score from which each class is best shown."""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blu_export.evaluate.results import Rows
from blu_export.extras import import_extra
from blu_export.files import atomic_write

if TYPE_CHECKING:
    from pycocotools.coco import COCO

MATCH_IOU = 0.5
"""IoU from which a detection and an object are the same thing."""
NUMBERED_CLASSES = 30
"""With more classes than this, the picture has no numbers in its cells."""


@dataclass(frozen=True)
class Operating:
    """A class shown from one score on, at IoU MATCH_IOU. Values are 0..1."""

    score: float
    f1: float
    precision: float
    recall: float


def best_scores(judge: Any) -> list[Operating | None]:
    """The score with the best F1 of each class, of a pycocotools COCOeval that has evaluated; None: nothing to find."""
    found: defaultdict[int, list[Any]] = defaultdict(list)
    for each in judge.evalImgs:
        if each is not None and each["aRng"] == judge.params.areaRng[0]:
            found[each["category_id"]].append(each)
    place = int(np.argmin(np.abs(judge.params.iouThrs - MATCH_IOU)))
    return [_best(found[category], place) for category in judge.params.catIds]


def _best(photos: list[Any], place: int) -> Operating | None:
    objects = sum(int((np.asarray(photo["gtIgnore"]) == 0).sum()) for photo in photos)
    if not objects:
        return None
    counted = [~np.asarray(photo["dtIgnore"][place], bool) for photo in photos]
    scores = np.concatenate([np.asarray(p["dtScores"], float)[c] for p, c in zip(photos, counted, strict=True)] or [[]])
    right = np.concatenate([np.asarray(p["dtMatches"][place])[c] > 0 for p, c in zip(photos, counted, strict=True)])
    if not len(scores):
        return Operating(1.0, 0.0, 0.0, 0.0)
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(right[order])
    shown = np.arange(1, len(scores) + 1)
    f1 = 2 * hits / (shown + objects)
    f1[:-1][scores[1:] == scores[:-1]] = -1  # a score shows all that have it
    best = int(np.argmax(f1))
    recall = float(hits[best] / objects)
    return Operating(float(scores[best]), float(f1[best]), float(hits[best] / shown[best]), recall)


def confusion_matrix(truth: COCO, results: Rows, shown_score: float) -> NDArray[np.int64]:
    """Objects by what they are and what they are taken for: int64 [classes + 1, classes + 1].

    Row and column 0 are the background: row 0 counts detections of nothing, column 0 objects that are missed. A
    detection and an object are paired from MATCH_IOU on, of the same class first, then by IoU. Crowds do not count,
    nor do detections on them.

    Args:
        truth: the annotations, with class ids 1 and up.
        results: detections with image ids of the truth.
        shown_score: detections below it do not count.
    """
    classes = len(truth.dataset["categories"])
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    found: defaultdict[Any, Rows] = defaultdict(list)
    for row in results:
        if row["score"] >= shown_score:
            found[row["image_id"]].append(row)
    for image in truth.dataset["images"]:
        _count(matrix, truth.imgToAnns[image["id"]], found[image["id"]])
    return matrix


def _count(matrix: NDArray[np.int64], objects: Rows, found: Rows) -> None:
    from pycocotools import mask as coco_mask

    key = "segmentation" if all("segmentation" in row for row in found) else "bbox"
    crowd = [each["iscrowd"] for each in objects]
    overlaps = np.zeros((len(found), len(objects)))
    if found and objects:
        overlaps = np.asarray(coco_mask.iou([row[key] for row in found], [each[key] for each in objects], crowd))
    pairs = [(i, j) for i, j in np.argwhere(overlaps >= MATCH_IOU).tolist() if not crowd[j]]
    pairs.sort(key=lambda pair: (found[pair[0]]["category_id"] != objects[pair[1]]["category_id"], -overlaps[pair]))
    free_found, free_objects = set(range(len(found))), {j for j, is_crowd in enumerate(crowd) if not is_crowd}
    for i, j in pairs:
        if i in free_found and j in free_objects:
            free_found.remove(i)
            free_objects.remove(j)
            matrix[objects[j]["category_id"], found[i]["category_id"]] += 1
    for j in free_objects:
        matrix[objects[j]["category_id"], 0] += 1
    for i in free_found:
        if not any(crowd[j] and overlaps[i, j] >= MATCH_IOU for j in range(len(objects))):
            matrix[0, found[i]["category_id"]] += 1


def write_confusion(csv_path: Path, picture: Path, matrix: NDArray[np.int64], class_names: tuple[str, ...]) -> None:
    """The matrix as a table (CSV) and as a picture of shares of each row (PNG).

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    names = ("background", *class_names[1:])
    with atomic_write(csv_path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["annotated \\ found", *names])
        writer.writerows([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))
    side = 2.5 + 0.45 * min(len(names), NUMBERED_CLASSES)
    figure = import_extra("matplotlib.figure").Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= NUMBERED_CLASSES:
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                color = "white" if share[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set(xlabel="found", ylabel="annotated", title=f"IoU {MATCH_IOU:g} and more")
    with atomic_write(picture) as temporary:
        figure.savefig(temporary, dpi=110)
