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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blu_export.data.dataset import Dataset, encode_mask, encode_masks
from blu_export.errors import UsageError
from blu_export.evaluate.confusion import Operating, best_scores, confusion_matrix
from blu_export.evaluate.results import Rows

if TYPE_CHECKING:
    from pycocotools.coco import COCO


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

MAX_DETS = 100
"""Best detections of a photo that count, as in COCO."""
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
    errors: dict[int | str, Errors]
    """By image id."""
    best_scores: dict[str, Operating | None]
    """The score from which each class is best shown, by class name; None: nothing to find."""


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
    confusion: NDArray[np.int64]
    """[classes + 1, classes + 1], see ``confusion_matrix``."""
    crowded: int
    """Photos with more objects than detections that count."""

    @property
    def values(self) -> dict[str, float]:
        """By NAMES."""
        return {f"{kind}_{stat}": value for kind, found in self.scores.items() for stat, value in found.summary.items()}

    def worst(self, count: int) -> list[tuple[int | str, Errors]]:
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
                    "best_score": _operating(self.scores, name),
                }
                for name in self.class_names[1:]
            },
            "confusion": self.confusion.tolist(),
            "crowded_photos": self.crowded,
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
            UsageError: it is not such a text.
        """
        found = re.fullmatch(r"\s*(\w+)\s*(>=|<=|>|<)\s*(\d*\.?\d+)\s*", text)
        if found is None or found[1] not in NAMES:
            raise UsageError(
                f"'{text}' is not an expectation.", f"Write for example mask_ap>=0.30. Names are {', '.join(NAMES)}."
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

    def __init__(self, dataset: Dataset, max_dets: int = MAX_DETS) -> None:
        if not len(dataset):
            raise UsageError(f"There are no photos in {dataset.name} to evaluate on.", "Give a data set with photos.")
        self.dataset, self.max_dets = dataset, max_dets
        self.truth = self.mask_truth = coco_truth(dataset)
        if any(not len(each.segmentation) for record in dataset.records for each in record.annotations):
            self.mask_truth = coco_truth(dataset, ignore_maskless=True)
        self._numbers = number_photos(dataset)

    def __call__(self, results: Rows) -> Evaluation:
        """Average precision of results with the data set's class and image ids."""
        annotations = self.truth.dataset["annotations"]
        objects = Counter(row["category_id"] for row in annotations if not row["iscrowd"])
        of_photo = Counter(row["image_id"] for row in annotations if not row["iscrowd"])
        names = self.dataset.class_names
        rows = [row | {"image_id": self._numbers[row["image_id"]]} for row in results]
        # Results without masks are judged by their boxes alone.
        kinds = [kind for kind in KINDS if kind == "box" or all("segmentation" in row for row in rows)]
        return Evaluation(
            class_names=names,
            photos=len(self.dataset),
            objects={name: objects[index] for index, name in enumerate(names) if index},
            detections=len(rows),
            scores={kind: self._judge(rows, kind) for kind in kinds},
            confusion=confusion_matrix(self.truth, rows, SHOWN_SCORE),
            crowded=sum(count > self.max_dets for count in of_photo.values()),
        )

    def _judge(self, rows: Rows, kind: str) -> Scores:
        judge = run_pycocotools(self.mask_truth if kind == "mask" else self.truth, rows, kind, self.max_dets)
        names = self.dataset.class_names[1:]
        ids = {number: image_id for image_id, number in self._numbers.items()}
        errors = {ids[number]: errors for number, errors in _errors(judge).items()}
        best = dict(zip(names, best_scores(judge), strict=True))
        return Scores(_summary(judge, self.max_dets), _by_class(judge, names), _precision(judge), errors, best)


def number_photos(dataset: Dataset) -> dict[int | str, int]:
    """The numbers from 1 that pycocotools knows the photos by, in the order in which it would sort their ids: the
    order decides between detections of one score.
    """
    ids = [record.image_id for record in dataset.records]
    ordered = sorted(ids, key=str) if any(isinstance(each, str) for each in ids) else sorted(ids)
    return {image_id: number for number, image_id in enumerate(ordered, start=1)}


def coco_truth(dataset: Dataset, ignore_maskless: bool = False) -> COCO:
    """The data set for pycocotools: image ids are numbers from 1, category ids class indices, masks RLE.

    With ``ignore_maskless`` objects that have only a box become crowds that fill it: their masks are not known, so
    detections there are neither right nor wrong.

    Raises:
        DatasetError: an annotation cannot be a mask of its photo.
    """
    from pycocotools import mask as coco_mask

    annotations: Rows = []
    numbers = number_photos(dataset)
    for record in dataset.records:
        for annotation, rle in zip(record.annotations, encode_masks(record), strict=True):
            y1, x1, y2, x2 = annotation.box
            ignored = ignore_maskless and not len(annotation.segmentation)
            if ignored:
                rle = encode_mask([[x1, y1, x2, y1, x2, y2, x1, y2]], record.height, record.width)
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools treats a match with id 0 as none
                    "image_id": numbers[record.image_id],
                    "category_id": annotation.category,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(coco_mask.area(rle)) if annotation.area is None else annotation.area,
                    "segmentation": rle,
                    "iscrowd": int(annotation.iscrowd or ignored),
                }
            )
    images = [{"id": numbers[r.image_id], "height": r.height, "width": r.width} for r in dataset.records]
    categories = [{"id": index, "name": name} for index, name in enumerate(dataset.class_names) if index]
    return _coco({"images": images, "categories": categories, "annotations": annotations})


def run_pycocotools(truth: COCO, results: Rows, kind: str, max_dets: int) -> Any:
    """A COCOeval of boxes or masks that has evaluated and accumulated."""
    from pycocotools.cocoeval import COCOeval

    # With a bbox in it pycocotools takes a mask's size from its box: small and large would be others.
    dropped = "bbox" if kind == "mask" else "segmentation" if all("bbox" in row for row in results) else ""
    rows = [{key: value for key, value in row.items() if key != dropped} for row in results]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        # It cannot load an empty list.
        found = truth.loadRes(rows) if rows else _coco(truth.dataset | {"annotations": []})
        judge = COCOeval(truth, found, KINDS[kind])
        judge.params.maxDets = [1, 10, max_dets]
        judge.evaluate()
        judge.accumulate()
        if max_dets == MAX_DETS:  # it cannot summarize any other
            judge.summarize()
    return judge


def _precision(judge: Any) -> NDArray[np.float64]:
    precision: NDArray[np.float64] = judge.eval["precision"][..., 0, -1]
    return precision


def _summary(judge: Any, max_dets: int) -> dict[str, float]:
    """By STATS; with COCO's own maxDets what pycocotools says, else what it would."""
    if max_dets == MAX_DETS:
        return {stat: _or_nan(value) for stat, value in zip(STATS, judge.stats, strict=True)}
    precision, recall = judge.eval["precision"], judge.eval["recall"]  # [T, R, K, A, M], [T, K, A, M]
    values = [_mean(precision[..., 0, -1]), *(_mean(precision[t, :, :, 0, -1]) for t in (_IOU50, _IOU75))]
    values += [_mean(precision[..., area, -1]) for area in (1, 2, 3)]
    values += [_mean(recall[..., 0, m]) for m in (0, 1, 2)]
    values += [_mean(recall[..., area, -1]) for area in (1, 2, 3)]
    return dict(zip(STATS, values, strict=True))


def _by_class(judge: Any, names: Sequence[str]) -> dict[str, dict[str, float]]:
    precision, recall = judge.eval["precision"], judge.eval["recall"]
    classes = {}
    for k, name in enumerate(names):
        by_size = {
            f"{short}_{area}" if a else f"{short}{suffix}": _mean(values[..., k, a, -1])
            for short, suffix, values in (("ap", "", precision), ("ar", "100", recall))
            for a, area in enumerate(_AREAS)
        }
        at = {f"ap{iou}": _mean(precision[t, :, k, 0, -1]) for iou, t in ((50, _IOU50), (75, _IOU75))}
        classes[name] = {stat: value for stat in STATS if (value := (by_size | at).get(stat)) is not None}
    return classes


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


def _operating(scores: dict[str, Scores], name: str) -> dict[str, float] | None:
    """The best score of a class for masks where there are any, else for boxes."""
    best = scores["mask" if "mask" in scores else "box"].best_scores[name]
    return None if best is None else asdict(best)


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}
