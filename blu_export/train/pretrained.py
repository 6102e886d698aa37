"""ImageNet weights to start from."""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blu_export.errors import ModelFileError

_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def load_lite0(model: Any, path: str | os.PathLike[str]) -> list[str]:
    """Load EfficientNet-Lite0's PyTorch weights (an ``.npz`` of OIHW tensors) into the backbone.

    Returns:
        The names of the layers that were set: all of the backbone's.

    Raises:
        ModelFileError: the file lacks a tensor or one has a wrong shape.
    """
    layers = {name: layer for name, layer in model.learned_layers().items() if re.match(r"stem_|block\d", name)}
    with np.load(path) as archive:
        for name, layer in layers.items():
            source = _source_name(name)
            try:
                if name.endswith("_bn"):
                    values = [archive[f"{source}.{part}"] for part in _BATCH_NORM]
                else:
                    values = [_kernel(archive[f"{source}.weight"], depthwise="depthwise" in name)]
                layer.set_weights(values)
            except (KeyError, ValueError) as error:
                raise ModelFileError(
                    f"{os.fspath(path)} does not fit layer {name}: {error}.", "Give EfficientNet-Lite0 weights."
                ) from error
    return list(layers)


def _source_name(name: str) -> str:
    if name.startswith("stem"):
        return {"stem_conv": "_conv_stem", "stem_bn": "_bn0"}[name]
    block, part, kind = re.fullmatch(r"block(\d+)_(expand|depthwise|project)_(conv|bn)", name).groups()  # type: ignore[union-attr]
    number = {"expand": 0, "depthwise": 1, "project": 2}[part]
    return f"_blocks.{block}." + (f"_bn{number}" if kind == "bn" else f"_{part}_conv")


def _kernel(tensor: NDArray[np.float32], depthwise: bool) -> NDArray[np.float32]:
    """OIHW to HWIO; the depthwise form [C, 1, h, w] to [h, w, C, 1]."""
    return tensor.transpose(2, 3, 0, 1) if depthwise else tensor.transpose(2, 3, 1, 0)
