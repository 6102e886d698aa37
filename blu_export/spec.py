"""ModelSpec: everything that a runtime must know about a Mask R-CNN, in one JSON value.

The spec travels inside every artifact (ONNX metadata, engine sidecar, saved weights), so class
names and thresholds cannot get lost between training and serving. Field names are those of the
original program's ``Config`` in lower case.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from blu_export.errors import ModelFileError, UsageError
from blu_export.fields import coerce, field_types

SPEC_VERSION = 1
RESNETS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}
"""Bottleneck blocks of stages 2 to 5, by name. Others are named by them: ``resnet-3-4-8-3``."""
BACKBONES = (*RESNETS, "efficientnet_lite0")
RESIZE_MODES = ("square", "fit", "rectangle", "pad64", "none")
SIZE_MULTIPLE = 64
"""Canvas sides are multiples of this: the pyramid halves the canvas six times."""
PYRAMID_STRIDES = (4, 8, 16, 32, 64)
NONE_IS_ZERO = ("image_min_dim", "image_min_scale")
"""Fields whose rule the original switches off with None or 0."""
MAX_CANVAS = 8192
MAX_CLASSES = 10_000
MAX_CHANNELS = 8
MAX_BLOCKS = 200
"""Of one stage of a ResNet; ResNet-200 has 66."""


@dataclass(frozen=True)
class ModelSpec:
    """A Mask R-CNN: its classes, its input canvas, its architecture and its thresholds.

    Lengths are pixels of the canvas unless said otherwise. Defaults are the original's
    ``Config`` (Matterport Mask_RCNN, commit 3deaec5), which its COCO weights were trained with.
    """

    class_names: tuple[str, ...]
    """Names by class id; index 0 is the background."""
    backbone: str = "resnet101"
    """One of BACKBONES, or ``resnet-`` and the blocks of stages 2 to 5: ``resnet-3-4-8-3``."""

    # Input
    image_resize_mode: str = "square"
    """``square``: scale, then pad to image_max_dim on both sides. ``fit``: scale as ``square``, then pad each side
    to the next multiple of 64 only. ``rectangle``: scale into image_canvas. ``pad64``: pad to multiples of 64,
    with no largest side. ``none``: photos as they are."""
    image_min_dim: int = 800
    """The short side is scaled up to this, unless the long side would pass image_max_dim (0: no such rule)."""
    image_max_dim: int = 1024
    """Side of the square canvas; the largest side in the mode ``fit``."""
    image_canvas: tuple[int, int] = (0, 0)
    """(height, width) of the canvas in the mode ``rectangle``; unused in the others."""
    image_min_scale: float = 0.0
    """Scale by at least this factor (0: no such rule)."""
    image_channel_count: int = 3
    """3 is RGB, 1 gray, 4 RGBA; others are given as arrays [H, W, C]."""
    mean_pixel: tuple[float, ...] = (123.7, 116.8, 103.9)
    """Mean of each channel that is subtracted; padding becomes minus the mean."""

    # Anchors and proposals
    backbone_strides: tuple[int, ...] = PYRAMID_STRIDES
    """Pixels per cell of P2..P6; the backbones here have no others."""
    rpn_anchor_scales: tuple[float, ...] = (32, 64, 128, 256, 512)
    rpn_anchor_ratios: tuple[float, ...] = (0.5, 1, 2)
    """Width over height."""
    rpn_anchor_stride: int = 1
    rpn_bbox_std_dev: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    pre_nms_limit: int = 6000
    rpn_nms_threshold: float = 0.7
    post_nms_rois_inference: int = 1000

    # Detection
    bbox_std_dev: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    detection_min_confidence: float = 0.7
    detection_nms_threshold: float = 0.3
    detection_max_instances: int = 100

    # Pyramid and heads
    top_down_pyramid_size: int = 256
    """Channels of P2..P6."""
    rpn_channels: int = 512
    pool_size: int = 7
    mask_pool_size: int = 14
    mask_shape: tuple[int, int] = (28, 28)
    fpn_classif_fc_layers_size: int = 1024
    mask_channels: int = 256

    assumed: tuple[str, ...] = ()
    """Fields that neither the weights nor the user gave: they hold the original's defaults."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Where the weights came from: ``weights_sha256``, ``weights_file``, ``blu_version``, …"""
    version: int = SPEC_VERSION

    def __post_init__(self) -> None:
        for name, kind in field_types(ModelSpec).items():
            try:
                object.__setattr__(self, name, coerce(getattr(self, name), kind))
            except ValueError as error:
                raise UsageError(f"The spec field {name} {error}.") from None
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))
        self._validate()

    @property
    def num_classes(self) -> int:
        """Number of classes, the background included."""
        return len(self.class_names)

    @property
    def canvas(self) -> tuple[int, int] | None:
        """(height, width) of the canvas, or None where it follows the photo (``fit``, ``pad64``, ``none``)."""
        if self.image_resize_mode == "square":
            return self.image_max_dim, self.image_max_dim
        return self.image_canvas if self.image_resize_mode == "rectangle" else None

    @property
    def largest_canvas(self) -> tuple[int, int] | None:
        """(height, width) that every canvas fits in, or None where there is no such limit (``pad64``, ``none``)."""
        return (self.image_max_dim, self.image_max_dim) if self.image_resize_mode == "fit" else self.canvas

    def replace(self, **changes: Any) -> ModelSpec:
        """A copy with some fields changed; raises UsageError for a field that does not exist."""
        known = {f.name for f in dataclasses.fields(self)}
        if unknown := sorted(set(changes) - known):
            raise UsageError(
                f"There is no spec field {', '.join(unknown)}.", f"Fields are: {', '.join(sorted(known))}."
            )
        return dataclasses.replace(self, **changes)

    def with_settings(self, settings: list[str]) -> ModelSpec:
        """A copy with ``FIELD=VALUE`` settings applied, as ``--set`` takes them.

        FIELD may be in upper case and VALUE as a ``Config`` has it: a number, a word, quoted or not, a tuple or
        list with or without its brackets, None.
        """
        return self.replace(**self.parse_settings(settings))

    def parse_settings(self, settings: Iterable[str]) -> dict[str, Any]:
        """The changes that ``FIELD=VALUE`` settings ask for; see ``with_settings``.

        Raises:
            UsageError: one is not of that form.
        """
        changes: dict[str, Any] = {}
        for setting in settings:
            name, equals, text = setting.partition("=")
            name = name.strip().lower()
            if not equals:
                raise UsageError(f"'{setting}' is not FIELD=VALUE.", "Write for example image_max_dim=512.")
            changes[name] = self._setting(name, text.strip())
        return changes

    def _setting(self, name: str, text: str) -> Any:
        """The value that the text of a setting stands for."""
        value = _literal(text)
        if isinstance(getattr(self, name, None), tuple) and not isinstance(value, tuple | list | dict):
            items = tuple(item for item in text.split(",") if item.strip())
            value = tuple(_literal(item.strip()) for item in items)
        return 0 if value is None and name in NONE_IS_ZERO else value

    def to_json(self) -> str:
        """The spec as one line of JSON."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return json.dumps(values | {"provenance": dict(self.provenance)})

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "spec") -> ModelSpec:
        """Read a spec; ``source`` names the file in errors.

        Raises:
            ModelFileError: the text is not a valid spec.
        """
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                raise TypeError("not a JSON object")
            if values.get("version", SPEC_VERSION) > SPEC_VERSION:
                raise ModelFileError(
                    f"{source} was written by a newer blu (spec version {values['version']}).", "Upgrade blu-export."
                )
            return cls(**values)
        except (TypeError, ValueError, UsageError, RecursionError) as error:
            raise ModelFileError(f"{source} holds no valid model spec: {error}.", "Export the model again.") from error

    def _validate(self) -> None:
        _check(2 <= self.num_classes <= MAX_CLASSES, "class_names", "needs the background and at least one class")
        for name in self.class_names:
            # A name is a line of a list, a field of a table, a header: it holds no line ends and no control characters.
            good = not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name)
            _check(good, "class_names", f"must be names on one line each, not {name[:80]!a}")
        known = self.backbone in BACKBONES or resnet_blocks(self.backbone) is not None
        _check(known, "backbone", f"must be one of {', '.join(BACKBONES)}, or as resnet-3-4-6-3")
        _check(self.image_resize_mode in RESIZE_MODES, "image_resize_mode", f"must be one of {', '.join(RESIZE_MODES)}")
        _check(0 <= self.image_min_dim <= MAX_CANVAS, "image_min_dim", f"must be 0 to {MAX_CANVAS}")
        _check(0 < self.image_max_dim <= MAX_CANVAS, "image_max_dim", f"must be 1 to {MAX_CANVAS}")
        if self.image_resize_mode == "rectangle":
            _check(
                all(0 < side <= MAX_CANVAS and side % SIZE_MULTIPLE == 0 for side in self.image_canvas),
                "image_canvas",
                f"must be height and width, multiples of {SIZE_MULTIPLE} up to {MAX_CANVAS}",
            )
        if self.image_resize_mode in ("square", "fit"):
            _check(
                self.image_max_dim % SIZE_MULTIPLE == 0,
                "image_max_dim",
                f"must be a multiple of {SIZE_MULTIPLE}: the pyramid halves the canvas six times",
            )
        _check(0 <= self.image_min_scale <= 64, "image_min_scale", "must be 0 to 64")
        _check(self.backbone_strides == PYRAMID_STRIDES, "backbone_strides", f"must be {PYRAMID_STRIDES}")
        _check(
            len(self.rpn_anchor_scales) == len(PYRAMID_STRIDES),
            "rpn_anchor_scales",
            "needs one scale for each of the five strides",
        )
        for name in ("rpn_anchor_scales", "rpn_anchor_ratios", "rpn_bbox_std_dev", "bbox_std_dev"):
            _check(all(0 < v < math.inf for v in getattr(self, name)), name, "must be positive and finite")
        _check(all(0 <= v <= 255 for v in self.mean_pixel), "mean_pixel", "must be 0 to 255")
        channels = self.image_channel_count
        _check(1 <= channels <= MAX_CHANNELS, "image_channel_count", f"must be 1 to {MAX_CHANNELS}")
        _check(len(self.mean_pixel) == channels, "mean_pixel", f"needs a value for each of the {channels} channels")
        _check(0 < len(self.rpn_anchor_ratios) <= 16, "rpn_anchor_ratios", "needs 1 to 16 ratios")
        for name in ("rpn_nms_threshold", "detection_nms_threshold", "detection_min_confidence"):
            _check(0 <= getattr(self, name) <= 1, name, "must be 0 to 1")
        for name, top in _LIMITS.items():
            _check(1 <= getattr(self, name) <= top, name, f"must be 1 to {top}")
        _check(
            self.mask_shape == (2 * self.mask_pool_size,) * 2,
            "mask_shape",
            "must be twice mask_pool_size on both sides",
        )


def canvas_settings(name: str) -> list[str]:
    """The settings (see ``with_settings``) for a canvas as options name it: ``square``, ``fit``, ``576x1024``.

    Raises:
        UsageError: that is not a canvas.
    """
    if name in ("square", "fit"):
        return [f"image_resize_mode={name}", "image_canvas=0,0"]
    size = re.fullmatch(r"(\d{1,5})x(\d{1,5})", name.strip().lower())
    if size is None:
        raise UsageError(f"'{name}' is not a canvas.", "Write fit, square, or HEIGHTxWIDTH such as 576x1024.")
    return ["image_resize_mode=rectangle", f"image_canvas={size[1]},{size[2]}"]


_LIMITS = {
    "rpn_anchor_stride": 64,
    "pre_nms_limit": 100_000,
    "post_nms_rois_inference": 20_000,
    "detection_max_instances": 2000,
    "top_down_pyramid_size": 2048,
    "rpn_channels": 4096,
    "pool_size": 64,
    "mask_pool_size": 64,
    "fpn_classif_fc_layers_size": 8192,
    "mask_channels": 2048,
}


def resnet_blocks(backbone: str) -> tuple[int, ...] | None:
    """Blocks of stages 2 to 5 of a ResNet of that name; None where it is another backbone."""
    if backbone in RESNETS:
        return RESNETS[backbone]
    match = re.fullmatch(r"resnet-(\d{1,3})-(\d{1,3})-(\d{1,3})-(\d{1,3})", backbone)
    blocks = tuple(map(int, match.groups())) if match else ()
    return blocks if blocks and all(1 <= count <= MAX_BLOCKS for count in blocks) else None


def resnet_name(blocks: tuple[int, ...]) -> str:
    """What a ResNet with these blocks in stages 2 to 5 is called."""
    usual = next((name for name, each in RESNETS.items() if each == blocks), None)
    return usual or "-".join(["resnet", *map(str, blocks)])


def _literal(text: str) -> Any:
    """A value as JSON or Python writes it; any other text stands for itself."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # also: too many digits or brackets
            continue
    return text


def _check(holds: bool, name: str, rule: str) -> None:
    if not holds:
        raise UsageError(f"The spec field {name} {rule}.")
