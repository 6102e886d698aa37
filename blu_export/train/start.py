"""Starting weights: what a run begins with, and what of the model stays random."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np
from numpy.typing import NDArray

from blu_export.errors import ModelFileError, UsageError
from blu_export.model.weights import read_weights
from blu_export.train.imagenet import Tensors, imagenet_tensors, read_lite0
from blu_export.train.schedule import is_backbone
from blu_export.train.step import initialize_outputs

if TYPE_CHECKING:
    from blu_export.model.mask_rcnn import MaskRCNN

COCO_FILE = "mask_rcnn_coco.h5"
COCO_URL = f"https://github.com/matterport/Mask_RCNN/releases/download/v2.0/{COCO_FILE}"
RGB = 3
FIRST_LAYERS = ("conv1", "stem_conv")
WEIGHTS = ("best.h5", "final.h5")
"""Files of a run folder that ``last`` looks for, in this order."""


@dataclass(frozen=True)
class Start:
    """Where the weights came from."""

    source: str
    loaded: tuple[str, ...]
    """Layers that were set."""
    fresh: tuple[str, ...]
    """Layers that keep random weights: absent from the source, or of another shape there."""
    class_names: tuple[str, ...] = ()
    """Of the source; empty where it has no heads."""
    note: str = ""
    """What was changed on the way, for people."""

    def knows(self, class_names: Sequence[str]) -> bool:
        """Whether these are the weights of a whole model for these classes, in this order."""
        return not self.fresh and same_classes(self.class_names, class_names)


def load_start(model: MaskRCNN, weights: str, photos: Sequence[NDArray[np.uint8]], seed: int) -> Start:
    """Give ``model`` its starting weights.

    Args:
        model: any canvas.
        weights: ``imagenet`` (only the backbone), ``coco`` (Matterport's file in the working folder),
            a file (``.h5``, ``.keras``, or ``.npz`` of EfficientNet-Lite0), or ``none``.
        photos: a few photos on canvases of one size, uint8 [H, W, 3], to set the statistics of the
            normalization layers where the backbone starts from nothing.
        seed: of the random output layers.

    Raises:
        UsageError: there is no such source.
        ModelFileError: the backbone in the file is another one, or takes other channels than can be made of it.
    """
    tensors, source, class_names = _tensors(model, weights)
    tensors, note = _fit_channels(tensors, source, model.spec.image_channel_count)
    layers = model.learned_layers()
    loaded, fresh = [], []
    for name, layer in layers.items():
        values = tensors.get(name)
        if values is not None and [v.shape for v in values] == [tuple(w.shape) for w in layer.weights]:
            layer.set_weights(values)
            loaded.append(name)
        else:
            fresh.append(name)
    foreign = [name for name in fresh if is_backbone(name)]
    if foreign and tensors:
        raise ModelFileError(
            f"{source} does not hold the backbone {model.spec.backbone}: {len(foreign)} layers do not fit, "
            f"{foreign[0]} first.",
            "Set model.backbone to the one of the file, or start from other weights.",
        )
    initialize_outputs(model, seed, set(fresh))
    if foreign:
        calibrate(model, photos)
    return Start(source, tuple(loaded), tuple(fresh), class_names, note)


def _fit_channels(tensors: Tensors, source: str, channels: int) -> tuple[Tensors, str]:
    """The tensors with a first layer for that many channels, and what was done to it.

    Of RGB weights one channel gets the sum of the three kernels: what they put out for a gray photo as RGB. Of more
    channels the first three keep theirs, and the kernels of the others begin at zero.

    Raises:
        ModelFileError: the weights take neither RGB nor that many channels.
    """
    name = next((name for name in FIRST_LAYERS if name in tensors), None)
    if name is None or (known := tensors[name][0].shape[2]) == channels:
        return tensors, ""
    if known != RGB:
        raise ModelFileError(
            f"{source} takes {known} channels, and the model {channels}.",
            f"Start from weights of {channels} channels or of RGB, or set model.image_channel_count={known}.",
        )
    kernel, *others = tensors[name]
    if channels < RGB:
        first, did = kernel.sum(axis=2, keepdims=True), "the first has the sum of their kernels"
    else:
        first, did = kernel, "the first three have theirs"
    more = np.zeros((*kernel.shape[:2], channels - first.shape[2], kernel.shape[3]), kernel.dtype)
    did += ", the others begin at zero" if more.size else ""
    fitted = {**tensors, name: [np.concatenate([first, more], axis=2), *others]}
    return fitted, f"{name} takes {channels} channel{'s' * (channels != 1)} where {source} takes RGB: {did}"


def calibrate(model: MaskRCNN, photos: Sequence[NDArray[np.uint8]]) -> None:
    """Set the statistics of the backbone's normalization layers to those of a few photos.

    Training keeps them as they are; with the neutral ones of a new layer the features of an untrained
    deep backbone fade away.
    """
    norms = [layer for layer in model.trunk.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model.trunk(model.preprocess(np.stack(photos)), training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def weights_file(weights: str) -> Path | None:
    """The file of a whole model that ``weights`` means; None for ``imagenet``, ``none`` and bare backbones.

    Raises:
        UsageError: there is no such file.
    """
    if weights in ("", "none", "imagenet"):
        return None
    path = Path(COCO_FILE if weights == "coco" else weights)
    if not path.exists():
        if weights == "coco":
            raise UsageError(f"There is no {COCO_FILE} in this folder.", f"Download {COCO_URL}")
        raise UsageError(f"There are no weights at {path}.", "Give a file, imagenet, coco, last or none.")
    return None if path.suffix == ".npz" else path


def same_classes(source: Sequence[str], class_names: Sequence[str]) -> bool:
    """Whether a model's classes are those of a data set; ``class_1``, ``class_2``, … stand for any."""
    if len(source) != len(class_names):
        return False
    return all(
        a in (b, f"class_{index}") for index, (a, b) in enumerate(zip(source, class_names, strict=True)) if index
    )


def _tensors(model: MaskRCNN, weights: str) -> tuple[Tensors, str, tuple[str, ...]]:
    """Tensors by layer, what to call their source, and its class names."""
    path = weights_file(weights)
    if path is not None:
        found = read_weights(path)
        layers = {name: [tensor for _, tensor in tensors] for name, tensors in found.layers.items()}
        return layers, found.note or str(path), found.spec.class_names if "mrcnn_class_logits" in layers else ()
    if weights in ("", "none"):
        return {}, "nothing", ()
    if weights == "imagenet":
        return imagenet_tensors(model.spec.backbone), "ImageNet", ()
    return read_lite0(weights), weights, ()


def newest_weights(runs: Path) -> Path:
    """The weights of the newest run folder under ``runs``: what ``last`` means when a run begins.

    Raises:
        UsageError: no run there has any.
    """
    found: list[tuple[float, Path]] = []
    for folder in runs.glob("*"):
        files = [folder / name for name in WEIGHTS if (folder / name).exists()]
        found += [(os.path.getmtime(file), file) for file in files[:1]]
    if not found:
        raise UsageError(f"There is no finished run under {runs}.", "Give the file to start training from.")
    return max(found)[1]
