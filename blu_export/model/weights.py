"""Weights in and out: a file becomes a checked MaskRCNN, and a MaskRCNN a file.

Tensors go to layers by the layer's name and by their order within it. Inner names are not used: they
depend on the Keras version and on what else lived in the session that wrote them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blu_export.errors import ModelFileError, UsageError
from blu_export.files import atomic_write, sha256_of
from blu_export.model.coco_classes import COCO_CLASSES
from blu_export.model.h5 import Layers, write_layers
from blu_export.model.weight_files import read_weight_file
from blu_export.spec import ModelSpec

if TYPE_CHECKING:
    from blu_export.model.mask_rcnn import MaskRCNN

RPN_GROUP = "rpn_model"
RPN_LAYERS = ("rpn_conv_shared", "rpn_class_raw", "rpn_bbox_pred")
"""The original keeps its RPN in a nested model, which is one group of the file: kernel and bias of each."""
NESTED_MODELS = ("trunk", "box_head", "mask_head")
"""Groups of our own models in files of ``model.save("x.h5")``: there the inner names are unique."""
LISTED = 8
"""Tensors of each kind that an error lists; the report has all."""

_BACKBONE_MARKS = (
    ("resnet101", "res4w_branch2a"),
    ("resnet50", "res4f_branch2a"),
    ("efficientnet_lite0", "block15_project_conv"),
)
"""A layer that only this backbone and deeper ones have."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class WeightReport:
    """What became of each tensor; names are ``layer/tensor``."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    """Of the model, not in the file."""
    unexpected: tuple[str, ...]
    """In the file, not of the model: harmless leftovers of a training graph, or another program's."""
    wrong_shape: tuple[tuple[str, Shape, Shape], ...]
    """Name, shape in the model, shape in the file."""

    @property
    def complete(self) -> bool:
        """Every tensor of the model was in the file, in its shape."""
        return not self.missing and not self.wrong_shape

    def summary(self) -> str:
        """One line: how many tensors of each kind."""
        counts = [f"{len(self.loaded)} tensors loaded"]
        counts += [
            f"{len(names)} {kind}"
            for kind, names in (
                ("missing", self.missing),
                ("of a wrong shape", self.wrong_shape),
                ("unexpected", self.unexpected),
            )
            if names
        ]
        return ", ".join(counts)

    def details(self, limit: int = LISTED) -> str:
        """The tensors that did not fit, at most ``limit`` of each kind, one a line."""
        wrong = [f"{name} is {list(found)}, not {list(wanted)}" for name, wanted, found in self.wrong_shape]
        kinds = (("missing", self.missing), ("wrong shape", wrong), ("unexpected", self.unexpected))
        lines = []
        for kind, names in kinds:
            lines += [f"  {kind}: {name}" for name in names[:limit]]
            if len(names) > limit:
                lines.append(f"  {kind}: and {len(names) - limit} more")
        return "\n".join(lines)


@dataclass(frozen=True)
class Weights:
    """A weights file in memory.

    Attributes:
        layers: layer name -> (inner name, float32 tensor) in the order of the file.
        stored_spec: JSON of the spec that our own files carry.
    """

    path: Path
    layers: Layers
    stored_spec: str | None
    sha256: str

    @cached_property
    def spec(self) -> ModelSpec:
        """The spec with default class names; see ``make_spec``."""
        return self.make_spec()

    def make_spec(self, class_names: Sequence[str] | None = None, settings: Sequence[str] = ()) -> ModelSpec:
        """The spec of the model these weights belong to.

        Our own files carry it. For others the backbone, the class count and the sizes of pyramid and
        heads follow from the shapes of the tensors; all else is the original's default.

        Args:
            class_names: names by class id; the background's, id 0, may be left out. Default: those in the
                file, COCO's where there are 81, else ``class_1``, ``class_2``, …
            settings: ``FIELD=VALUE`` changes.

        Raises:
            ModelFileError: the file does not hold a whole Mask R-CNN.
            UsageError: the names are not as many as the classes, or a setting is impossible.
        """
        count = self._shape("mrcnn_class_logits", 1)[0]
        if self.stored_spec is not None:
            spec = ModelSpec.from_json(self.stored_spec, str(self.path))
            if spec.num_classes != count:
                raise ModelFileError(
                    f"{self.path} names {spec.num_classes} classes, and its tensors have {count}.",
                    "Take the file from the program that wrote it.",
                )
        else:
            spec = ModelSpec(class_names=_default_names(count), **self._sizes())
        if class_names is not None:
            spec = spec.replace(class_names=_given_names(class_names, count))
        spec = spec.with_settings(list(settings))
        anchors = self._shape("rpn_class_raw", 1)[0] // 2
        if len(spec.rpn_anchor_ratios) != anchors:
            raise UsageError(
                f"The RPN of {self.path.name} has {anchors} anchors at each position, and rpn_anchor_ratios has "
                f"{len(spec.rpn_anchor_ratios)} values.",
                "Set the ratios it was trained with: --set rpn_anchor_ratios=…",
            )
        source = {"weights_file": self.path.name, "weights_sha256": self.sha256}
        return spec.replace(provenance={**spec.provenance, **source})

    def _sizes(self) -> dict[str, Any]:
        backbone = next((name for name, mark in _BACKBONE_MARKS if mark in self.layers), None)
        if backbone is None:
            raise ModelFileError(
                f"{self.path} has no backbone that this program knows.",
                f"Known are {', '.join(name for name, _ in _BACKBONE_MARKS)}, with the original's layer names.",
            )
        pool_size, _, _, fc_size = self._shape("mrcnn_class_conv1", 0, rank=4)
        return {
            "backbone": backbone,
            "top_down_pyramid_size": self._shape("fpn_p2", 0, rank=4)[-1],
            "rpn_channels": self._shape("rpn_conv_shared", 0, rank=4)[-1],
            "pool_size": pool_size,
            "fpn_classif_fc_layers_size": fc_size,
            "mask_channels": self._shape("mrcnn_mask_conv1", 0, rank=4)[-1],
        }

    def _shape(self, layer: str, index: int, rank: int = 1) -> Shape:
        tensors = self.layers.get(layer, [])
        if index >= len(tensors) or len(tensors[index][1].shape) != rank:
            raise ModelFileError(
                f"{self.path} is not a whole Mask R-CNN: layer {layer} is absent or of another kind.",
                "Give weights of a complete model in Matterport's or this program's layout.",
            )
        return tensors[index][1].shape


def read_weights(path: str | os.PathLike[str]) -> Weights:
    """Read a ``.h5``, ``.weights.h5`` or ``.keras`` file, whatever it comes from.

    Raises:
        ModelFileError: missing, corrupt, of another layout, or refused for safety.
    """
    layers, spec = read_weight_file(path)
    return Weights(Path(path), _split_nested(layers), spec, sha256_of(path))


def build_model(
    path: str | os.PathLike[str], class_names: Sequence[str] | None = None, settings: Sequence[str] = ()
) -> tuple[MaskRCNN, WeightReport]:
    """A model with the weights of a file; see ``Weights.make_spec`` for the other arguments.

    Raises:
        ModelFileError: the file cannot be read, or a tensor is missing or of a wrong shape.
        UsageError: the names or settings do not fit.
    """
    weights = read_weights(path)
    spec = weights.make_spec(class_names, settings)
    from blu_export.model.mask_rcnn import MaskRCNN

    model = MaskRCNN(spec)
    return model, load_weights(model, weights)


def load_weights(model: MaskRCNN, weights: Weights | str | os.PathLike[str]) -> WeightReport:
    """Set every tensor of a model; none is set when one does not fit.

    Raises:
        ModelFileError: a tensor is missing or of a wrong shape; the error lists them.
    """
    if not isinstance(weights, Weights):
        weights = read_weights(weights)
    learned = model.learned_layers()
    wanted = {name: [(weight.name, tuple(weight.shape)) for weight in layer.weights] for name, layer in learned.items()}
    report = compare(wanted, weights.layers)
    if not report.complete:
        raise ModelFileError(
            f"{weights.path} does not fit a {model.spec.backbone} model with {model.spec.num_classes} classes: "
            f"{report.summary()}.\n{report.details()}\n",
            "Check that the file holds the weights of a whole Mask R-CNN, and the settings it was trained with.",
        )
    for name, layer in learned.items():
        layer.set_weights([tensor for _, tensor in weights.layers[name]])
    return report


def save_weights(model: MaskRCNN, path: str | os.PathLike[str], half: bool = False) -> None:
    """Write a model in the original's layout (flat Keras 2), with its spec in the attribute ``blu_spec``.

    Args:
        half: store kernels in 16 bits, rounded: half the size, for a file that is given away.
    """
    layers: Layers = {}
    for name, layer in model.learned_layers().items():
        group = RPN_GROUP if name in RPN_LAYERS else name
        values = zip(layer.weights, layer.get_weights(), strict=True)
        layers.setdefault(group, []).extend((f"{name}/{weight.name}:0", value) for weight, value in values)
    if [name.split("/")[0] for name, _ in layers[RPN_GROUP][::2]] != list(RPN_LAYERS):
        raise AssertionError("the RPN's layers are not in the file's order")
    with atomic_write(path) as temporary:
        write_layers(temporary, layers, model.spec.to_json(), half)


def compare(wanted: Mapping[str, Sequence[tuple[str, Shape]]], found: Layers) -> WeightReport:
    """Which tensors of a model (layer -> name and shape of each) a file can fill."""
    loaded, missing, wrong = [], [], []
    unexpected = [f"{layer}/{name}" for layer in found if layer not in wanted for name, _ in found[layer]]
    for layer, tensors in wanted.items():
        stored = found.get(layer, [])
        unexpected += [f"{layer}/{name}" for name, _ in stored[len(tensors) :]]
        for index, (name, shape) in enumerate(tensors):
            full = f"{layer}/{name}"
            if index >= len(stored):
                missing.append(full)
            elif stored[index][1].shape != shape:
                wrong.append((full, shape, stored[index][1].shape))
            else:
                loaded.append(full)
        # More tensors than the layer has: it is another kind of layer, and their order means nothing.
        if len(stored) > len(tensors):
            wrong.append((layer, (len(tensors),), (len(stored),)))
    return WeightReport(tuple(loaded), tuple(missing), tuple(unexpected), tuple(wrong))


def _split_nested(layers: Layers) -> Layers:
    """Layers of nested models under their own names."""
    flat: Layers = {}
    for group, tensors in layers.items():
        if group == RPN_GROUP:
            # By order; what is beyond the three layers stays under the group's name, as unexpected.
            split = {name: tensors[2 * i : 2 * i + 2] for i, name in enumerate(RPN_LAYERS)}
            split[group] = tensors[2 * len(RPN_LAYERS) :]
        elif group in NESTED_MODELS:
            split = {}
            for name, tensor in tensors:
                layer, _, inner = name.rpartition("/")
                split.setdefault(layer, []).append((inner, tensor))
        else:
            split = {group: tensors}
        for layer, members in split.items():
            if members:
                flat.setdefault(layer, []).extend(members)
    return flat


def _default_names(count: int) -> tuple[str, ...]:
    if count == len(COCO_CLASSES):
        return COCO_CLASSES
    return ("BG", *(f"class_{i}" for i in range(1, count)))


def _given_names(names: Sequence[str], count: int) -> tuple[str, ...]:
    if len(names) == count - 1:
        names = ["BG", *names]
    if len(names) != count:
        raise UsageError(
            f"There are {len(names)} class names, and the weights have {count} classes with the background.",
            "Give one name for each, in the order of training; the background's may be left out.",
        )
    return tuple(names)
