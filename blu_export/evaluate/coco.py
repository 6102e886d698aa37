"""COCO average precision of boxes and masks. pycocotools is the judge: this prepares its input and names its output.

Class ids are the data set's (``Dataset.class_names``) throughout; ids of the source appear in files only.
"""

from __future__ import annotations

import contextlib
import io
import math
import operator
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blu_export.data.dataset import Dataset, encode_masks
from blu_export.detector import Detector, map_ahead
from blu_export.errors import UsageError

if TYPE_CHECKING:
    from pycocotools.coco import COCO


Rows = list[dict[str, Any]]
"""COCO results: image_id, category_id, score, and bbox [x, y, width, height] or segmentation (RLE) or both."""

KINDS = {"box": "bbox", "mask": "segm"}
"""What is judged -> pycocotools's name for it."""
STATS = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
"""pycocotools's twelve numbers, in its order: AP over IoU 0.5 to 0.95, at 0.5, at 0.75, of objects below 32², below
96² and above; recall with 1, 10, 100 detections per photo, and by size."""
NAMES = tuple(f"{kind}_{stat}" for kind in KINDS for stat in STATS)
"""``box_ap`` … ``mask_ar_large``: what ``Expectation`` compares."""

READERS = 4
"""Photos read at a time: enough for a bucket's latency."""
SHOWN_SCORE = 0.5
"""Detections from this score on count as found when photos are ranked and drawn."""

_AREAS = ("all", "small", "medium", "large")  # pycocotools's areaRng, in its order
_IOU50, _IOU75 = 0, 5  # positions in pycocotools's iouThrs


@dataclass(frozen=True)
class Errors:
    """One photo at IoU 0.5 and score SHOWN_SCORE; crowds do not count."""

    right: int
    missed: int
    false: int

    @property
    def f1(self) -> float:
        """2 right / (2 right + missed + false), 0..1; 1 where nothing is to be found and nothing was."""
        wrong = self.missed + self.false
        return 2 * self.right / (2 * self.right + wrong) if self.right or wrong else 1.0


@dataclass(frozen=True)
class Scores:
    """Boxes or masks of a data set. Values are 0..1, nan where there is no object to find."""

    summary: dict[str, float]
    """By STATS."""
    classes: dict[str, dict[str, float]]
    """The same by class name, but ``ar1`` and ``ar10``."""
    precision: NDArray[np.float64]
    """[10, 101, classes]: precision at IoU 0.5, 0.55, … 0.95 and recall 0, 0.01, … 1; -1: nothing to find."""
    errors: dict[int, Errors]
    """By image id."""


@dataclass(frozen=True)
class Evaluation:
    """What a set of results is worth on a data set."""

    class_names: tuple[str, ...]
    photos: int
    objects: dict[str, int]
    """Annotated objects by class name, without crowds."""
    detections: int
    scores: dict[str, Scores]
    """By KINDS; no ``mask`` for results without masks."""

    @property
    def values(self) -> dict[str, float]:
        """By NAMES."""
        return {f"{kind}_{stat}": value for kind, found in self.scores.items() for stat, value in found.summary.items()}

    def worst(self, count: int) -> list[tuple[int, Errors]]:
        """(image id, errors) of the photos with the least F1, of masks where there are any; flawless ones excepted."""
        errors = self.scores["mask" if "mask" in self.scores else "box"].errors
        wrong = [(image, e) for image, e in errors.items() if e.missed or e.false]
        return sorted(wrong, key=lambda item: (item[1].f1, -item[1].missed - item[1].false))[:count]

    def to_json(self) -> dict[str, Any]:
        """JSON values; null where there is no object to find."""
        return {
            "photos": self.photos,
            "objects": sum(self.objects.values()),
            "detections": self.detections,
            **{kind: _finite(found.summary) for kind, found in self.scores.items()},
            "classes": {
                name: {
                    "objects": self.objects[name],
                    **{kind: _finite(found.classes[name]) for kind, found in self.scores.items()},
                }
                for name in self.class_names[1:]
            },
        }


@dataclass(frozen=True)
class Expectation:
    """A demand such as ``mask_ap>=0.30``."""

    name: str
    comparison: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Expectation:
        """Read NAME>=VALUE (or >, <=, <), NAME of NAMES.

        Raises:
            UsageError: it is nothing of the kind.
        """
        found = re.fullmatch(r"\s*(\w+)\s*(>=|<=|>|<)\s*(\d*\.?\d+)\s*", text)
        if found is None or found[1] not in NAMES:
            raise UsageError(
                f"'{text}' is no expectation.", f"Write for example mask_ap>=0.30. Names are {', '.join(NAMES)}."
            )
        return cls(found[1], found[2], float(found[3]))

    def holds(self, values: dict[str, float]) -> bool:
        """Whether it is met; never by a value that is not there."""
        compare = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}[self.comparison]
        return bool(compare(values.get(self.name, math.nan), self.bound))

    def __str__(self) -> str:
        return f"{self.name}{self.comparison}{self.bound:g}"


class Evaluator:
    """Judges results on a data set; the truth is prepared once.

    Raises:
        UsageError: the data set has no photos.
        DatasetError: one of its annotations cannot be a mask of its photo.
    """

    def __init__(self, dataset: Dataset) -> None:
        if not len(dataset):
            raise UsageError(f"There are no photos in {dataset.name} to evaluate on.", "Give a data set with photos.")
        self.dataset = dataset
        self.truth = coco_truth(dataset)

    def __call__(self, results: Rows) -> Evaluation:
        """Average precision of results with the data set's class and image ids."""
        annotations = self.truth.dataset["annotations"]
        objects = Counter(row["category_id"] for row in annotations if not row["iscrowd"])
        names = self.dataset.class_names
        # Results without masks are judged by their boxes alone.
        kinds = [kind for kind in KINDS if kind == "box" or all("segmentation" in row for row in results)]
        return Evaluation(
            class_names=names,
            photos=len(self.dataset),
            objects={name: objects[index] for index, name in enumerate(names) if index},
            detections=len(results),
            scores={kind: _judge(self.truth, results, kind, names) for kind in kinds},
        )


def coco_truth(dataset: Dataset) -> COCO:
    """The data set for pycocotools: category ids are class indices, masks RLE.

    Raises:
        DatasetError: an annotation cannot be a mask of its photo.
    """
    from pycocotools import mask as coco_mask

    annotations: Rows = []
    for record in dataset.records:
        for annotation, rle in zip(record.annotations, encode_masks(record), strict=True):
            y1, x1, y2, x2 = annotation.box
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools takes a match with id 0 for none
                    "image_id": record.image_id,
                    "category_id": annotation.category,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(coco_mask.area(rle)) if annotation.area is None else annotation.area,
                    "segmentation": rle,
                    "iscrowd": int(annotation.iscrowd),
                }
            )
    images = [{"id": r.image_id, "height": r.height, "width": r.width} for r in dataset.records]
    categories = [{"id": index, "name": name} for index, name in enumerate(dataset.class_names) if index]
    return _coco({"images": images, "categories": categories, "annotations": annotations})


def detect(detector: Detector, dataset: Dataset, batch: int = 1) -> Iterator[Rows]:
    """The results of each photo of a data set, in order, under the data set's ids.

    Raises:
        UsageError: the model lacks a class of the data set.
        BluError: a photo cannot be read.
    """
    class_ids = map_classes(detector.spec.class_names, dataset.class_names)
    with ThreadPoolExecutor(READERS, "blu-read") as pool:
        images = map_ahead(pool, dataset.load_image, range(len(dataset)), 2 * READERS)
        for record, photo in zip(dataset.records, detector.stream(images, batch=batch), strict=True):
            found = photo.result()
            ids = class_ids[found.class_ids]
            known = replace(found, class_ids=np.maximum(ids, 1), class_names=dataset.class_names)[ids > 0]
            yield known.to_coco(record.image_id)


def map_classes(model: Sequence[str], dataset: Sequence[str]) -> NDArray[np.int32]:
    """The data set's class id for each of the model's, by name; 0 for one that the data set lacks.

    Weights of other programs have no names; theirs are ``class_1``, ``class_2``, …, which stand for the
    data set's classes in order.

    Raises:
        UsageError: the model lacks a class of the data set.
    """
    nameless = all(name == f"class_{index}" for index, name in enumerate(model) if index)
    if nameless and len(model) == len(dataset):
        return np.arange(len(model), dtype=np.int32)
    if missing := [name for name in dataset[1:] if name not in model[1:]]:
        raise UsageError(
            f"The data set has classes that the model does not: {', '.join(missing)}. The model's are "
            f"{', '.join(model[1:])}.",
            "Evaluate on data annotated with the model's class names.",
        )
    ids = {name: index for index, name in enumerate(dataset) if index}
    return np.array([0, *(ids.get(name, 0) for name in model[1:])], np.int32)


def _judge(truth: COCO, results: Rows, kind: str, names: Sequence[str]) -> Scores:
    from pycocotools.cocoeval import COCOeval

    # With a bbox in it pycocotools takes a mask's size from its box: small and large would be others.
    dropped = "bbox" if kind == "mask" else "segmentation" if all("bbox" in row for row in results) else ""
    rows = [{key: value for key, value in row.items() if key != dropped} for row in results]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        # It cannot load an empty list.
        found = truth.loadRes(rows) if rows else _coco(truth.dataset | {"annotations": []})
        judge = COCOeval(truth, found, KINDS[kind])
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    precision, recall = judge.eval["precision"], judge.eval["recall"]  # [T, R, K, A, M], [T, K, A, M]
    classes = {}
    for k, name in enumerate(names[1:]):
        by_size = {
            f"{short}_{area}" if a else f"{short}{suffix}": _mean(values[..., k, a, -1])
            for short, suffix, values in (("ap", "", precision), ("ar", "100", recall))
            for a, area in enumerate(_AREAS)
        }
        at = {f"ap{iou}": _mean(precision[t, :, k, 0, -1]) for iou, t in ((50, _IOU50), (75, _IOU75))}
        classes[name] = {stat: value for stat in STATS if (value := (by_size | at).get(stat)) is not None}
    summary = {stat: _or_nan(value) for stat, value in zip(STATS, judge.stats, strict=True)}
    return Scores(summary, classes, precision[..., 0, -1], _errors(judge))


def _errors(judge: Any) -> dict[int, Errors]:
    counts: dict[int, list[int]] = {int(image): [0, 0, 0] for image in judge.params.imgIds}
    for each in judge.evalImgs:
        if each is None or each["aRng"] != judge.params.areaRng[0]:
            continue
        shown = (np.array(each["dtScores"]) >= SHOWN_SCORE) & ~each["dtIgnore"][_IOU50].astype(bool)
        right = int((shown & (each["dtMatches"][_IOU50] > 0)).sum())
        count = counts[int(each["image_id"])]
        count[0] += right
        count[1] += int((np.array(each["gtIgnore"]) == 0).sum()) - right
        count[2] += int(shown.sum()) - right
    return {image: Errors(*count) for image, count in counts.items()}


def _coco(content: dict[str, Any]) -> COCO:
    from pycocotools.coco import COCO

    made = COCO()
    made.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        made.createIndex()
    return made


def _mean(values: NDArray[np.float64]) -> float:
    """As pycocotools: of those that are not -1."""
    there = values[values > -1]
    return float(np.mean(there)) if there.size else math.nan


def _or_nan(value: float) -> float:
    return math.nan if value == -1 else float(value)


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}
