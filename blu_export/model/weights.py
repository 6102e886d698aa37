"""Weights in and out: a file becomes a checked MaskRCNN, and a MaskRCNN a file.

Tensors go to layers by the layer's name and by their order within it. Inner names are not used: they
depend on the Keras version and on what else lived in the session that wrote them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blu_export.errors import ModelFileError, UsageError
from blu_export.extras import GREETING, import_extra
from blu_export.files import atomic_write, sha256_of
from blu_export.model.checkpoints import resolve_weights
from blu_export.model.given import NOTHING, Given
from blu_export.model.h5 import Layers, write_layers
from blu_export.model.layers import Shape, layer_shapes, original_block_names
from blu_export.model.nested import RPN_GROUP, RPN_LAYERS, split_nested
from blu_export.model.report import WeightReport, compare
from blu_export.model.weight_files import read_weight_file
from blu_export.spec import ModelSpec, resnet_name

if TYPE_CHECKING:
    from blu_export.model.mask_rcnn import MaskRCNN

_LITE0_MARK = "block15_project_conv"
"""A layer that only EfficientNet-Lite0 has."""


@dataclass(frozen=True)
class Weights:
    """A weights file in memory.

    Attributes:
        path: the file.
        layers: layer name -> (inner name, float32 tensor), under the names that the model here has.
        stored_spec: JSON of the spec that our own files carry.
        not_float: tensors that were left out, ``layer/tensor`` -> type.
        note: says which file of a folder this is, and where its layers' names come from.
        blocks: of stages 2 to 5 of the ResNet; empty for another backbone.
    """

    path: Path
    layers: Layers
    stored_spec: str | None
    sha256: str
    not_float: dict[str, str] = field(default_factory=dict)
    note: str = ""
    blocks: tuple[int, ...] = ()

    @cached_property
    def spec(self) -> ModelSpec:
        """The spec with default class names; see ``make_spec``."""
        return self.make_spec()

    def make_spec(self, given: Given = NOTHING) -> ModelSpec:
        """The spec of the model these weights belong to.

        Our own files carry it. For others the backbone, the class count and the sizes of pyramid and
        heads follow from the shapes of the tensors; all else is the original's default.

        Class names that are not given are those in the file, COCO's where there are 81, else ``class_1``,
        ``class_2``, … What is neither in the file nor given is listed in ``assumed``.

        Raises:
            ModelFileError: the file does not hold a whole Mask R-CNN.
            UsageError: the names are not as many as the classes, or a setting is impossible.
        """
        count, stored = self._shape("mrcnn_class_logits", 1)[0], None
        if self.stored_spec is not None:
            stored = ModelSpec.from_json(self.stored_spec, str(self.path))
            if stored.num_classes != count:
                raise ModelFileError(
                    f"{self.path} names {stored.num_classes} classes, and its tensors have {count}.",
                    "Take the file from the program that wrote it.",
                )
        spec = given.spec({} if stored else self._sizes(), count, stored)
        anchors = self._shape("rpn_class_raw", 1)[0] // 2
        if len(spec.rpn_anchor_ratios) != anchors:
            raise UsageError(
                f"The RPN of {self.path.name} has {anchors} anchors at each position, and rpn_anchor_ratios has "
                f"{len(spec.rpn_anchor_ratios)} values.",
                "Give the Config it was trained with (--config FILE.py), or --set RPN_ANCHOR_RATIOS=…",
            )
        source = {"weights_file": self.path.name, "weights_sha256": self.sha256}
        return spec.replace(provenance={**spec.provenance, **source})

    def _sizes(self) -> dict[str, Any]:
        if self.blocks:
            backbone = resnet_name(self.blocks)
        elif _LITE0_MARK in self.layers:
            backbone = "efficientnet_lite0"
        else:
            raise ModelFileError(
                f"{self.path} has no backbone that this program knows.",
                "Known are ResNets of bottleneck blocks and EfficientNet-Lite0, with the original's layer names.",
            )
        pool_size, _, _, fc_size = self._shape("mrcnn_class_conv1", 0, rank=4)
        return {
            "backbone": backbone,
            "image_channel_count": self._shape("conv1" if self.blocks else "stem_conv", 0, rank=4)[2],
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
    """Read a ``.h5``, ``.weights.h5`` or ``.keras`` file, or the last one in a folder, from any program.

    Raises:
        ModelFileError: missing, corrupt, of another layout, or refused for safety.
    """
    file, note = resolve_weights(path)
    stored = read_weight_file(file)
    if not stored.named:
        order = "does not name its layers: named by their order in its configuration"
        note = f"{note}; it {order}" if note else f"{file.name} {order}"
    layers = split_nested(stored.layers)
    blocks: tuple[int, ...] = ()
    if any(name.startswith("res") and "_branch" in name for name in layers):
        blocks, names = original_block_names(list(layers), file.name)
        layers = {names.get(name, name): tensors for name, tensors in layers.items()}
    return Weights(file, layers, stored.spec, sha256_of(file), stored.not_float, note, blocks)


def build_model(
    path: str | os.PathLike[str],
    class_names: Sequence[str] | None = None,
    settings: Sequence[str] = (),
    ignore_layers: Sequence[str] = (),
    config: str | os.PathLike[str] | None = None,
) -> tuple[MaskRCNN, WeightReport]:
    """A Keras model with the weights of a file; see ``Given`` for the other arguments.

    Raises:
        ModelFileError: the file cannot be read, a tensor is missing or of a wrong shape, or the file holds
            layers that the model lacks.
        UsageError: the names or settings do not fit.
    """
    weights, given = read_weights(path), Given.of(class_names, settings, ignore_layers, config)
    spec = weights.make_spec(given)
    report = check_weights(weights, spec, given.ignore_layers)
    return keras_model(weights, spec), report


def check_weights(weights: Weights, spec: ModelSpec, ignore_layers: Sequence[str] = ()) -> WeightReport:
    """What becomes of each tensor of a file in a model of that spec.

    Raises:
        ModelFileError: a tensor is missing or of a wrong shape, or the file holds layers that the model lacks;
            the error lists them.
        UsageError: an ignored layer is not in the file.
    """
    report = compare(layer_shapes(spec), weights.layers, ignore_layers, weights.not_float)
    report.require(str(weights.path), f"a {spec.backbone} model with {spec.num_classes} classes")
    return report


def keras_model(weights: Weights, spec: ModelSpec) -> MaskRCNN:
    """The Keras model of a file that passed ``check_weights``.

    Raises:
        MissingDependencyError: TensorFlow is not installed.
    """
    for package in GREETING:  # before anything else imports them, with all that they say
        import_extra(package)
    from blu_export.model.mask_rcnn import MaskRCNN

    model = MaskRCNN(spec)
    _fill(model, weights)
    return model


def load_weights(model: MaskRCNN, weights: Weights | str | os.PathLike[str]) -> WeightReport:
    """Set every tensor of a model; none is set when one does not fit.

    Raises:
        ModelFileError: see ``check_weights``.
    """
    if not isinstance(weights, Weights):
        weights = read_weights(weights)
    report = check_weights(weights, model.spec)
    _fill(model, weights)
    return report


def _fill(model: MaskRCNN, weights: Weights) -> None:
    for name, layer in model.learned_layers().items():
        layer.set_weights([tensor for _, tensor in weights.layers[name]])


def save_weights(model: MaskRCNN, path: str | os.PathLike[str], half: bool = False) -> None:
    """Write a model in the original's layout (flat Keras 2), with its spec in the attribute ``blu_spec``.

    Args:
        half: store kernels in 16 bits, rounded: half the size, for a file that is published.
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
