"""Backbones: feature maps C2..C5 at strides 4, 8, 16 and 32 (NHWC)."""

from __future__ import annotations

from typing import Any

from keras import layers

from blu_export.errors import UsageError
from blu_export.model.layers import (
    EXPANSION,
    LITE0_OUTPUTS,
    LITE0_STEM,
    RESNET_STAGES,
    RESNET_WIDTHS,
    InvertedResidual,
    block_name,
    lite0_blocks,
)
from blu_export.spec import resnet_blocks


def backbone(name: str, image: Any) -> list[Any]:
    """C2, C3, C4, C5 of ``image`` (float32 [B, H, W, 3], mean subtracted)."""
    if blocks := resnet_blocks(name):
        return _resnet(image, blocks)
    if name == "efficientnet_lite0":
        return _efficientnet_lite0(image)
    raise UsageError(f"There is no backbone '{name}'.")


def _resnet(image: Any, blocks: tuple[int, ...]) -> list[Any]:
    """ResNet v1 with the stride in the first 1×1 convolution (He et al. 2015), named as the original."""
    x = layers.ZeroPadding2D(3, name="conv1_pad")(image)
    x = layers.Conv2D(64, 7, strides=2, name="conv1")(x)
    x = layers.Activation("relu")(_batch_norm("bn_conv1")(x))
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    outputs = []
    for stage, width, count in zip(RESNET_STAGES, RESNET_WIDTHS, blocks, strict=True):
        for block in range(count):
            x = _bottleneck(x, width, block_name(stage, block), stage, first=block == 0)
        outputs.append(x)
    return outputs


def _bottleneck(x: Any, width: int, suffix: str, stage: int, first: bool) -> Any:
    stride = 2 if first and stage > 2 else 1
    y = layers.Conv2D(width, 1, strides=stride, name=f"res{suffix}_branch2a")(x)
    y = layers.Activation("relu")(_batch_norm(f"bn{suffix}_branch2a")(y))
    y = layers.Conv2D(width, 3, padding="same", name=f"res{suffix}_branch2b")(y)
    y = layers.Activation("relu")(_batch_norm(f"bn{suffix}_branch2b")(y))
    y = layers.Conv2D(EXPANSION * width, 1, name=f"res{suffix}_branch2c")(y)
    y = _batch_norm(f"bn{suffix}_branch2c")(y)
    if first:
        x = layers.Conv2D(EXPANSION * width, 1, strides=stride, name=f"res{suffix}_branch1")(x)
        x = _batch_norm(f"bn{suffix}_branch1")(x)
    return layers.Activation("relu", name=f"res{suffix}_out")(layers.Add()([y, x]))


def _efficientnet_lite0(image: Any) -> list[Any]:
    x = layers.Rescaling(1 / 128, name="stem_scale")(image)
    x = layers.Conv2D(LITE0_STEM, 3, strides=2, padding="same", use_bias=False, name="stem_conv")(x)
    x = layers.ReLU(6)(_batch_norm("stem_bn")(x))
    outputs = []
    for number, block in enumerate(lite0_blocks()):
        x = _inverted_residual(x, block)
        if number in LITE0_OUTPUTS:
            outputs.append(x)
    return outputs


def _inverted_residual(x: Any, block: InvertedResidual) -> Any:
    y, name = x, block.name
    if block.expansion > 1:
        y = layers.Conv2D(block.expansion * block.inputs, 1, use_bias=False, name=f"{name}_expand_conv")(y)
        y = layers.ReLU(6)(_batch_norm(f"{name}_expand_bn")(y))
    y = layers.DepthwiseConv2D(
        block.kernel, strides=block.stride, padding="same", use_bias=False, name=f"{name}_depthwise_conv"
    )(y)
    y = layers.ReLU(6)(_batch_norm(f"{name}_depthwise_bn")(y))
    y = layers.Conv2D(block.outputs, 1, use_bias=False, name=f"{name}_project_conv")(y)
    y = _batch_norm(f"{name}_project_bn")(y)
    return layers.Add()([y, x]) if block.is_residual else y


def _batch_norm(name: str) -> layers.BatchNormalization:
    return layers.BatchNormalization(epsilon=1e-3, momentum=0.99, name=name)
