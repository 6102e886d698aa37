"""Every choice of a training run: frozen dataclasses, which TOML files and ``--set`` map onto."""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from blu_export.data.augment import AugmentConfig
from blu_export.data.photos import MAX_UNREADABLE
from blu_export.errors import UsageError
from blu_export.fields import coerce, field_types
from blu_export.spec import SIZE_MULTIPLE, ModelSpec
from blu_export.train.stages import Stage, change_stages, parse_stages

OPTIMIZERS = ("sgd", "adamw")
PRECISIONS = ("float32", "bfloat16", "float16")
LOSSES = ("rpn_class", "rpn_bbox", "mrcnn_class", "mrcnn_bbox", "mrcnn_mask")
MODEL_FIELDS = tuple(
    f.name for f in dataclasses.fields(ModelSpec) if f.name not in ("class_names", "assumed", "provenance", "version")
)
"""What [model] may set: the spec, without the class names, which come from the data, and the marks of a file."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class DataConfig:
    """Where the photos are."""

    train: str = ""
    """Folder, bucket or COCO file with the training photos."""
    val: str = ""
    """The same for validation; empty: the validation part of ``train``, if it has one."""
    images: str = ""
    """Folder or URL of the photos of a COCO file; empty: beside it."""
    more: tuple[str, ...] = ()
    """Further COCO files with training photos of the same classes; pseudo-labels, for example."""
    cutouts: str = ""
    """JSON file for ``train.augment.scenes``: file name of a training photo to the COCO RLE of the person on it."""
    backgrounds: str = ""
    """COCO file of photos without the classes to find, for ``train.augment.scenes`` and ``empty``; where such
    objects may be, a crowd region."""
    limit: int = 0
    """Photos of each part that are used, the first ones; 0: all."""
    exif: str = "auto"
    """Whether photos are turned as their EXIF says: auto, apply or ignore."""
    strict: bool = False
    """Refuse annotations of which an entry would be left out."""
    keep_empty_classes: bool = False
    """Keep classes without objects."""
    max_pixels: int = 0
    """Height times width of the largest photo that is read; 0: the usual limit."""
    bits: int = 0
    """In use of 16-bit gray photos that do not say: 8 to 16; 0: all."""

    def __post_init__(self) -> None:
        _check(self.exif in ("auto", "apply", "ignore"), "data.exif", "must be auto, apply or ignore")
        _check(self.limit >= 0, "data.limit", "must be at least 1, or 0 for all photos")
        _check(self.max_pixels >= 0, "data.max_pixels", "must be at least 1, or 0 for the usual limit")
        _check(self.bits == 0 or 8 <= self.bits <= 16, "data.bits", "must be 8 to 16, or 0 for all")


@dataclass(frozen=True)
class TargetConfig:
    """How anchors and ROIs become training examples. Defaults are the original's."""

    rpn_anchors_per_image: int = 256
    """Anchors that enter the RPN's loss; at most half of them positive."""
    rpn_positive_iou: float = 0.7
    rpn_negative_iou: float = 0.3
    proposals: int = 2000
    """ROIs kept from the RPN in training."""
    pre_nms_limit: int = 6000
    rois_per_image: int = 200
    """ROIs that enter the heads' losses."""
    roi_positive_share: float = 0.33
    roi_positive_iou: float = 0.5
    fill_negatives: bool = False
    """Take negative ROIs up to ``rois_per_image`` for any number of positive ones, from photos without objects
    too. The original keeps the share of positives, so the heads learn nothing from an empty photo."""
    propose_ground_truth: bool = False
    """Add the annotated boxes to the proposals: the heads learn before the RPN is useful."""
    max_gt_instances: int = 100
    """Objects kept per photo; of more, a random choice."""
    mini_mask_shape: tuple[int, int] = (56, 56)
    """Masks are kept cropped to their boxes at this size, as the original does to save memory."""

    def __post_init__(self) -> None:
        where = "train.targets"
        for name in ("rpn_anchors_per_image", "proposals", "pre_nms_limit", "rois_per_image", "max_gt_instances"):
            _check(getattr(self, name) >= 1, f"{where}.{name}", "must be at least 1")
        _check(min(self.mini_mask_shape) >= 1, f"{where}.mini_mask_shape", "must be height and width, at least 1")
        for name in ("rpn_positive_iou", "roi_positive_iou", "roi_positive_share"):
            _check(0 < getattr(self, name) <= 1, f"{where}.{name}", "must be more than 0 and at most 1")
        fits = 0 <= self.rpn_negative_iou <= self.rpn_positive_iou
        _check(fits, f"{where}.rpn_negative_iou", "must be 0 to train.targets.rpn_positive_iou")
        _check(self.positive_rois >= 1, f"{where}.rois_per_image", "times roi_positive_share must be at least 1")
        # Positive and negative ROIs are each sampled from all candidates.
        lacking = max(self.positive_rois, self.rois_per_image - self.positive_rois) - self.candidates
        rule = f"must be at least {self.proposals + lacking} for rois_per_image {self.rois_per_image}"
        _check(lacking <= 0, f"{where}.proposals", rule)

    @property
    def positive_rois(self) -> int:
        """Most positive ROIs of an image."""
        return int(self.rois_per_image * self.roi_positive_share)

    @property
    def candidates(self) -> int:
        """ROIs of an image before they are sampled."""
        return self.proposals + (self.max_gt_instances if self.propose_ground_truth else 0)


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained."""

    epochs: int = 30
    """Passes; a schedule in ``layers`` that counts its own epochs wins."""
    steps_per_epoch: int = 0
    """Optimizer steps per epoch; 0: one pass over the photos."""
    batch: int = 0
    """Photos per step, over all devices; 0: as many as fit in memory, up to 4."""
    accumulate: int = 1
    """Parts into which a batch is cut, whose gradients are averaged: for batches that do not fit."""
    canvas: tuple[int, ...] = ()
    """(height, width) of the training crop, multiples of 64; empty: the canvas of inference."""
    layers: str = "all"
    """What is trained: one of LAYER_SETS, or stages as in ``heads:5,4+:5,all:20``, with rates of their own as in
    ``heads:5@0.01,all:20@0.001``."""
    seed: int = 0

    optimizer: str = "sgd"
    """``sgd`` (momentum 0.9) or ``adamw``."""
    learning_rate: float = 0.01
    """At the end of a stage's warm-up; falls to zero along a cosine until the stage ends."""
    backbone_rate: float = 1.0
    """The backbone's learning rate relative to that of the pyramid and the heads."""
    warmup_steps: int = 500
    """In which the learning rate rises; at most a fifth of the stage."""
    weight_decay: float = 1e-4
    """Of kernels; biases and normalization are exempt."""
    clip_norm: float = 5.0
    """Largest global norm of the gradient."""
    ema: float = 0.0
    """Decay of the moving average of the weights that is validated and saved; 0: none."""
    loss_weights: dict[str, float] = field(default_factory=dict)
    """Factors of the losses by name; 1 where absent."""
    precision: str = "float32"
    """Of the layers' arithmetic: ``float32``, ``bfloat16`` or ``float16`` (with loss scaling)."""

    balance: float = 0.0
    """Photos with a class that fewer than this share of the photos show are drawn more often."""
    targets: TargetConfig = field(default_factory=TargetConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    cache_bytes: int = 4 << 30
    """Memory for decoded photos; at most a quarter of what is free."""
    unreadable: float = MAX_UNREADABLE
    """Share of the photos of a part that may be unreadable; more stop the run."""
    workers: int = 2
    """Samples made at a time, per process."""

    validate_every: int = 1
    """Epochs between validations."""
    validate_photos: int = 500
    """Photos of the validation set that are used; 0: all."""
    patience: int = 0
    """Stop after this many validations without a better mask AP; 0: never."""
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulate", "workers", "validate_every", "keep_checkpoints"):
            _check(getattr(self, name) >= 1, f"train.{name}", "must be at least 1")
        for name in ("batch", "steps_per_epoch", "seed", "backbone_rate", "warmup_steps", "weight_decay", "balance",
                     "cache_bytes", "validate_photos", "patience"):  # fmt: skip
            _check(getattr(self, name) >= 0, f"train.{name}", "must not be negative")
        for name in ("learning_rate", "clip_norm"):
            _check(getattr(self, name) > 0, f"train.{name}", "must be positive")
        _check(0 <= self.unreadable <= 1, "train.unreadable", "must be 0 to 1")
        _check(0 <= self.ema < 1, "train.ema", "must be 0 or less than 1")
        _check(self.batch % self.accumulate == 0, "train.batch", "must be a multiple of train.accumulate")
        _check(self.optimizer in OPTIMIZERS, "train.optimizer", f"must be one of {', '.join(OPTIMIZERS)}")
        _check(self.precision in PRECISIONS, "train.precision", f"must be one of {', '.join(PRECISIONS)}")
        fits = len(self.canvas) in (0, 2) and all(side > 0 and side % SIZE_MULTIPLE == 0 for side in self.canvas)
        _check(fits, "train.canvas", f"must be height and width, multiples of {SIZE_MULTIPLE}")
        unknown = sorted(set(self.loss_weights) - set(LOSSES))
        _check(not unknown, "train.loss_weights", f"has unknown losses {unknown}; there are {', '.join(LOSSES)}")
        parse_stages(self.layers, self.epochs)
        _check_augment(self.augment)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """``layers`` as stages."""
        return parse_stages(self.layers, self.epochs)

    @property
    def total_epochs(self) -> int:
        """Epochs of all stages."""
        return sum(stage.epochs for stage in self.stages)

    def stage_of(self, epoch: int) -> int:
        """The number of the stage that epoch number ``epoch`` (from 0) belongs to."""
        for number, stage in enumerate(self.stages):
            epoch -= stage.epochs
            if epoch < 0:
                return number
        return len(self.stages) - 1

    def changed(self, done: int, layers: str | None, epochs: int | None, rate: float | None) -> TrainConfig:
        """The settings with other stages after ``done`` epochs, see ``change_stages``."""
        if layers is None and epochs is None and rate is None:
            return self
        stages = change_stages(self.stages, done, self.learning_rate, layers=layers, epochs=epochs, rate=rate)
        total = sum(stage.epochs for stage in stages)
        return replace(self, layers=",".join(map(str, stages)), epochs=total, learning_rate=rate or self.learning_rate)


@dataclass(frozen=True)
class RunConfig:
    """What ``blu train --config`` reads: the tables [data], [model] and [train]."""

    data: DataConfig = field(default_factory=DataConfig)
    model: dict[str, Any] = field(default_factory=dict)
    """Some of MODEL_FIELDS; in a run folder all of them."""
    weights: str = ""
    """What to start from: ``imagenet``, ``coco``, ``last`` or a file."""
    train: TrainConfig = field(default_factory=TrainConfig)
    changes: dict[str, str] = field(default_factory=dict)
    """Epochs that were done when a run was resumed with other settings -> what was changed."""

    def __post_init__(self) -> None:
        for name in self.model:
            _check_known(name, MODEL_FIELDS, "model")

    @classmethod
    def read(
        cls, path: Path | None, settings: Iterable[str] = (), options: Mapping[str, Any] | None = None
    ) -> RunConfig:
        """From a TOML file (None: all defaults).

        Args:
            path: the file.
            settings: ``table.field=value``; they win over ``options``. Those of ``model`` are written as
                ``ModelSpec.with_settings`` takes them.
            options: values by ``table.field``; None: not given. They win over the file.

        Raises:
            UsageError: the file is not TOML, or a name or value is not possible.
        """
        try:
            tables: dict[str, Any] = tomllib.loads(path.read_text("utf-8")) if path else {}
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"The configuration {path} cannot be read: {reason}.", "Give a TOML file.") from error
        for name, value in (options or {}).items():
            if value is not None:
                _set(tables, name, value)
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals or not name.strip():
                raise UsageError(
                    f"'{setting}' is not TABLE.FIELD=VALUE.", "Write for example train.learning_rate=0.001."
                )
            table, _, field = name.strip().partition(".")
            if table == "model":  # as --set of the other commands takes it
                for known, value in ModelSpec(("BG", "any")).parse_settings([f"{field}={text}"]).items():
                    _set(tables, f"model.{known}", value)
            else:
                _set(tables, name.strip(), _parse(text))
        return from_mapping(cls, tables, "")


def from_mapping(cls: type[_T], values: Mapping[str, Any], where: str) -> _T:
    """Build the dataclass ``cls``, nested ones included; ``where`` prefixes names in errors.

    Raises:
        UsageError: a field that does not exist, or a value of another type.
    """
    hints: Mapping[str, Any] = field_types(cls)  # type: ignore[arg-type]
    arguments = {}
    for name, value in values.items():
        path = f"{where}.{name}".lstrip(".")
        _check_known(name, hints, where)
        kind = hints[name]
        if dataclasses.is_dataclass(kind):
            _check(isinstance(value, Mapping), path, "must be a table")
            arguments[name] = from_mapping(typing.cast(type[Any], kind), value, path)
            continue
        try:
            arguments[name] = coerce(value, kind)
        except ValueError as error:
            raise UsageError(f"The setting {path} {error}.") from None
    return cls(**arguments)


def _set(tables: dict[str, Any], path: str, value: Any) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        tables = tables.setdefault(parent, {})
        _check(isinstance(tables, dict), path, "is not inside a table")
    tables[name] = value


def _parse(text: str) -> Any:
    """JSON, numbers separated by commas, or a text without quotes."""
    for form in (text, f"[{text}]"):
        try:
            return json.loads(form)
        except json.JSONDecodeError:
            continue
    return text


def _check_augment(config: AugmentConfig) -> None:
    where = "train.augment"
    for name in ("flip", "copy_paste", "brightness", "tint", "gray", "scenes", "empty"):
        _check(0 <= getattr(config, name) <= 1, f"{where}.{name}", "must be 0 to 1")
    _check(config.scenes + config.empty <= 1, f"{where}.scenes", "and train.augment.empty must be at most 1 together")
    for name in ("scale", "person"):
        low, high = getattr(config, name)
        _check(0 < low <= high < math.inf, f"{where}.{name}", "must be a smallest and a largest factor, both positive")
    _check(config.smallest >= 0, f"{where}.smallest", "must not be negative")
    _check(0 <= config.rotation <= 180, f"{where}.rotation", "must be 0 to 180")


def _check_known(name: str, known: Iterable[str], where: str) -> None:
    if name not in known:
        path = f"{where}.{name}".lstrip(".")
        raise UsageError(f"There is no setting {path}.", f"In [{where or 'the file'}]: {', '.join(known)}.")


def _check(holds: bool, name: str, rule: str) -> None:
    if not holds:
        raise UsageError(f"The setting {name} {rule}.")
