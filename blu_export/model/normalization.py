"""Batch normalization at inference is a factor and an offset, which the layer before it can take over."""

from __future__ import annotations

import numpy as np
from keras import Model, layers
from numpy.typing import NDArray

from blu_export.model.mask_rcnn import MaskRCNN


def norms_by_layer(model: Model) -> dict[str, layers.BatchNormalization]:
    """The normalization after each layer that has one, by the layer's name."""
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    return {norm.input._keras_history.operation.name: norm for norm in norms}


def folded(layer: layers.Layer, norm: layers.BatchNormalization | None) -> list[NDArray[np.float32]]:
    """Kernel and bias of a layer with the normalization after it folded in (in float64)."""
    kernel, *rest = (np.asarray(w, np.float64) for w in layer.get_weights())
    if norm is not None:
        mean, variance = (np.asarray(v, np.float64) for v in (norm.moving_mean, norm.moving_variance))
        scale = 1 / np.sqrt(variance + norm.epsilon)
        if norm.scale:
            scale = scale * np.asarray(norm.gamma, np.float64)
        bias = (rest[0] if rest else 0.0) - mean
        bias = bias * scale + (np.asarray(norm.beta, np.float64) if norm.center else 0.0)
        depthwise = isinstance(layer, layers.DepthwiseConv2D)
        kernel = kernel * (scale.reshape(kernel.shape[2:]) if depthwise else scale)
        rest = [bias]
    return [np.asarray(w, np.float32) for w in (kernel, *rest)]


def fold_normalization(model: MaskRCNN) -> None:
    """Give every normalization's factor to the kernel before it; the normalization keeps only the offset.

    The model computes the same. A kernel that is rounded afterwards, to be stored in 16 bits, is then the very
    one that is exported, so that both files hold one model.
    """
    for part in (model.trunk, model.box_head, model.mask_head):
        for name, norm in norms_by_layer(part).items():
            layer = part.get_layer(name)
            kernel, bias = folded(layer, norm)
            layer.set_weights([kernel, np.zeros_like(bias)][: len(layer.weights)])
            ones, zeros = np.ones_like(bias), np.zeros_like(bias)
            norm.set_weights([ones, bias, zeros, ones - norm.epsilon])
