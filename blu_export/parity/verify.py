"""How far a model is from its reference: the same photos through both, instance by instance."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blu_export.detections import Detections
from blu_export.errors import CheckFailedError, UsageError
from blu_export.image import Molded, decode, mold, unmold
from blu_export.model.given import assumptions
from blu_export.parity.match import MatchResult, match
from blu_export.runtime.base import Runner
from blu_export.spec import ModelSpec


@dataclass(frozen=True)
class Tolerance:
    """What counts as the same model. Set for trained weights; random ones exaggerate every rounding."""

    matched: float
    """Least share of instances that have a partner."""
    mask_iou: float
    """Least median mask IoU of the pairs."""


TOLERANCES = {
    "float32": Tolerance(0.99, 0.99),
    "fp16": Tolerance(0.97, 0.97),
    "bf16": Tolerance(0.97, 0.97),
    "int8": Tolerance(0.93, 0.95),
}
"""By the precision of the candidate's subnetworks."""

ENOUGH_INSTANCES = 50
"""Fewer say little about a model: one that is lost counts for more than the tolerance."""
THRESHOLD_MARGIN = 0.02
"""A score this little above the threshold may fall below it by a rounding to half or int8."""

NOT_COMPARED = ("assumed", "provenance", "version")
"""Fields of the spec that do not change what a model finds."""


@dataclass(frozen=True)
class Check:
    """One rung of the ladder."""

    name: str
    value: float
    least: float
    """The check passes at this value and above."""

    @property
    def passed(self) -> bool:
        """False also for a value that is not a number."""
        return self.value >= self.least


@dataclass(frozen=True)
class PhotoParity:
    """One photo through both models."""

    name: str
    match: MatchResult
    reference: Detections
    candidate: Detections

    def worst_instance(self) -> str:
        """The instance that differs most, in words: a lone one, else the pair with the least mask IoU."""
        lone = [
            (float(found.scores[i]), f"{_describe(found, int(i))} is in the {side} only")
            for found, rows, side in (
                (self.reference, self.match.only_reference, "reference"),
                (self.candidate, self.match.only_candidate, "candidate"),
            )
            for i in rows
        ]
        if lone:
            return max(lone)[1]
        if not self.match.matched:
            return "none"
        pair = int(np.argmin(self.match.mask_iou))
        return (
            f"{_describe(self.reference, int(self.match.pairs[pair, 0]))}: mask IoU {self.match.mask_iou[pair]:.4f}, "
            f"box {self.match.box_error[pair]:.0f} px, score {self.match.score_error[pair]:.1e} off"
        )


@dataclass(frozen=True)
class ParityReport:
    """Two models on the same photos. Errors are over all pairs of all photos."""

    reference: str
    candidate: str
    tolerance: Tolerance
    photos: tuple[PhotoParity, ...]
    threshold: float = 0.0
    """Score below which the models drop detections."""
    assumed: str = ""
    """Settings that neither the weights nor the user gave, with their values; both models assume them alike."""

    @property
    def matched(self) -> int:
        """Pairs."""
        return sum(photo.match.matched for photo in self.photos)

    @property
    def total(self) -> int:
        """Instances, the larger set of each photo."""
        return sum(photo.match.total for photo in self.photos)

    @property
    def checks(self) -> tuple[Check, ...]:
        """The ladder: something to compare, enough of it matched, masks alike.

        Of few instances one that is on the threshold of being dropped may be in one model only.
        """
        masks = self._all("mask_iou")
        judged = self.total - (1 if self.is_few and self._near_threshold else 0)
        share = self.matched / judged if judged else np.nan
        return (
            Check("instances to compare", self.total, 1),
            Check("matched instances", share, self.tolerance.matched),
            Check("median mask IoU", float(np.median(masks)) if len(masks) else np.nan, self.tolerance.mask_iou),
        )

    @property
    def is_few(self) -> bool:
        """Whether there are too few instances to judge a model by."""
        return self.total < ENOUGH_INSTANCES

    @property
    def _near_threshold(self) -> bool:
        """Whether an instance is in one model only whose score is hardly above what both drop."""
        lone = [
            float(found.scores[row])
            for photo in self.photos
            for found, rows in (
                (photo.reference, photo.match.only_reference),
                (photo.candidate, photo.match.only_candidate),
            )
            for row in rows
        ]
        return any(score < self.threshold + THRESHOLD_MARGIN for score in lone)

    @property
    def passed(self) -> bool:
        """All checks hold."""
        return all(check.passed for check in self.checks)

    @property
    def worst(self) -> PhotoParity:
        """The photo with the least share of matches; among equals the one with the worst mask."""
        return min(
            self.photos,
            key=lambda photo: (
                photo.match.matched / max(photo.match.total, 1) if photo.match.total else 1.0,
                photo.match.mask_iou.min(initial=1.0),
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """JSON values, as stored in the artifact under ``blu_parity``.

        Of the worst image only the file's name: the path of its folder is private.
        """
        boxes, scores, masks = (self._all(name) for name in ("box_error", "score_error", "mask_iou"))
        values: dict[str, Any] = {
            "reference": self.reference,
            "candidate": self.candidate,
            "passed": self.passed,
            "images": len(self.photos),
            "instances": self.total,
            "matched": self.matched,
        }
        if self.assumed:
            values["assumed"] = self.assumed
        if self.is_few:
            values["few"] = self._few()
        values["checks"] = [
            {
                "name": check.name,
                "value": None if np.isnan(check.value) else check.value,
                "least": check.least,
                "passed": check.passed,
            }
            for check in self.checks
        ]
        if self.matched:
            values |= {
                "median_mask_iou": float(np.median(masks)),
                "min_mask_iou": float(masks.min()),
                "median_box_error_px": float(np.median(boxes)),
                "max_box_error_px": float(boxes.max()),
                "max_score_error": float(scores.max()),
            }
        return values | {"worst_image": Path(self.worst.name).name, "worst_instance": self.worst.worst_instance()}

    def lines(self) -> list[str]:
        """The ladder for people."""
        photos = "1 photo" if len(self.photos) == 1 else f"{len(self.photos)} photos"
        lines = [f"{self.candidate} against {self.reference} on {photos}"]
        for check in self.checks:
            lines.append(f"  {'✓' if check.passed else '✗'} {check.name:<22} {_show(check)}")
        if self.matched:
            values = self.to_json()
            lines.append(
                f"    boxes within {values['max_box_error_px']:.0f} px, scores within "
                f"{values['max_score_error']:.1e}, masks IoU {values['min_mask_iou']:.4f} and up"
            )
        lines.append(f"    worst image {self.worst.name}: {self.worst.worst_instance()}")
        if self.is_few:
            lines.append(f"    {self._few()}")
        if self.assumed and self.passed:
            lines.append(f"    equal to {self.reference.partition(' ')[0]} with these assumptions: {self.assumed}")
        return lines

    def _few(self) -> str:
        photos = "1 photo" if len(self.photos) == 1 else f"{len(self.photos)} photos"
        instances = "1 instance" if self.total == 1 else f"{self.total} instances"
        return f"judged on {instances} of {photos}: give --images"

    def require(self) -> None:
        """Raise CheckFailedError unless all checks pass; it names those that do not."""
        if failed := [f"{check.name} {_show(check)}" for check in self.checks if not check.passed]:
            raise CheckFailedError(
                f"{self.candidate} is not {self.reference}: {'; '.join(failed)}.",
                "To find the first diverging stage, run: blu verify --stages",
            )

    def _all(self, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.concatenate([getattr(photo.match, name) for photo in self.photos])


def verify(
    reference: Runner, candidate: Runner, images: Iterable[Any], tolerance: Tolerance | None = None
) -> ParityReport:
    """Run the same photos through two models and compare what they find.

    Args:
        images: what ``image.decode`` takes.
        tolerance: default: the one of the candidate's precision.

    Raises:
        UsageError: the two are not the same model, or there are no images.
        ImageError: a photo cannot be read.
    """
    require_same_model(reference.spec, candidate.spec)
    photos = []
    for number, source in enumerate(images):
        molded = mold(decode(source, channels=candidate.spec.image_channel_count), candidate.spec)
        found = [_detect(runner, molded) for runner in (reference, candidate)]
        name = str(source) if isinstance(source, str) or hasattr(source, "__fspath__") else f"image {number}"
        photos.append(PhotoParity(name, match(found[0], found[1]), found[0], found[1]))
    if not photos:
        raise UsageError("There are no images to verify on.", "Name photos or a folder of them with --images.")
    return ParityReport(
        describe(reference),
        describe(candidate),
        tolerance or TOLERANCES[candidate.precision],
        tuple(photos),
        candidate.spec.detection_min_confidence,
        assumptions(candidate.spec) or assumptions(reference.spec),
    )


def _detect(runner: Runner, molded: Molded) -> Detections:
    detections, masks = runner.run(molded.canvas[None], molded.window[None])
    return unmold(detections[0], masks[0], molded, runner.spec)


def describe(runner: Runner) -> str:
    """``onnxruntime fp16 on CPU``."""
    return f"{runner.runtime} {runner.precision} on {runner.device}"


def require_same_model(reference: ModelSpec, candidate: ModelSpec) -> None:
    """Raise UsageError, naming the fields, when two specs would find different things."""
    if differing := spec_differences(reference, candidate):
        raise UsageError(
            f"These two are not the same model: they differ in {', '.join(differing)}.",
            "Compare a model with what was exported from it, with the same settings.",
        )


def spec_differences(a: ModelSpec, b: ModelSpec) -> list[str]:
    """Names of the fields that differ and matter."""
    first, second = (json.loads(spec.to_json()) for spec in (a, b))
    return [name for name in first if first[name] != second[name] and name not in NOT_COMPARED]


def settings_of(spec: ModelSpec) -> list[str]:
    """Every field as ``FIELD=VALUE``, as ``Weights.make_spec`` takes them; class names excepted."""
    values = json.loads(spec.to_json())
    return [f"{name}={json.dumps(values[name])}" for name in values if name not in (*NOT_COMPARED, "class_names")]


def _describe(found: Detections, index: int) -> str:
    y1, x1, y2, x2 = (int(v) for v in found.rois[index])
    name = found.class_names[int(found.class_ids[index])]
    return f"{name} {found.scores[index]:.4f} at ({y1}, {x1}, {y2}, {x2})"


def _show(check: Check) -> str:
    if check.least >= 1:
        return f"{check.value:.0f} (at least {check.least:.0f})"
    return f"{check.value:.4f} (at least {check.least:g})"
