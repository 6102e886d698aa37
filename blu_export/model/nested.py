"""Layers of nested models under their own names: a file may keep a whole model, or the RPN, as one layer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from blu_export.model.h5 import Layers, Tensor
from blu_export.model.layers import is_layer

RPN_GROUP = "rpn_model"
RPN_LAYERS = ("rpn_conv_shared", "rpn_class_raw", "rpn_bbox_pred")
"""The original keeps its RPN in a nested model, which is one group of the file: kernel and bias of each."""
_KINDS = ("kernel", "depthwise_kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")
"""Tensors of one layer in Keras' order."""

Tensors = Sequence[tuple[str, Tensor]]


def split_nested(layers: Layers) -> Layers:
    """Every layer of nested models under its own name, its tensors in Keras' order.

    Inner names say which layer a tensor belongs to, in any order: ``mask_rcnn`` of a
    multi-GPU wrapper has ``conv1/kernel:0``, and Keras puts frozen layers of a nested model last. An RPN
    whose inner names say nothing is taken in the original's order.
    """
    flat: Layers = {}
    for group, tensors in layers.items():
        for layer, members in _split(group, tensors).items():
            flat.setdefault(layer, []).extend(members)
    return {layer: in_order(tensors) for layer, tensors in flat.items()}


def _split(group: str, tensors: Tensors) -> Layers:
    if is_layer(group):
        return {group: list(tensors)}
    owners = [owner(name) for name, _ in tensors]
    if group == RPN_GROUP and not any(owners):
        # What is beyond the three layers stays under the group's name, as unexpected.
        owners = [*(layer for layer in RPN_LAYERS for _ in range(2)), *(None for _ in tensors)][: len(tensors)]
    split: Layers = {}
    for layer, (name, tensor) in zip(owners, tensors, strict=True):
        split.setdefault(layer or group, []).append((name, tensor))
    return split


def owner(name: str) -> str | None:
    """The layer that an inner name tells, the nearest one: ``rpn_conv_shared`` of ``rpn_conv_shared_1/kernel:0``."""
    for scope in reversed(name.split("/")[:-1]):
        for layer in (scope, re.sub(r"_\d+$", "", scope)):
            if is_layer(layer):
                return layer
    return None


def in_order(tensors: Tensors) -> list[tuple[str, Tensor]]:
    """A layer's tensors in Keras' order where their names tell, else as they are."""
    kinds = [re.sub(r"(_\d+)?(:\d+)?$", "", name.rpartition("/")[2]) for name, _ in tensors]
    if len(set(kinds)) < len(kinds) or not set(kinds) <= set(_KINDS):
        return list(tensors)
    return [tensor for _, tensor in sorted(zip(kinds, tensors, strict=True), key=lambda pair: _KINDS.index(pair[0]))]
