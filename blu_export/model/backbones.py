"""Backbones: feature maps C2..C5 at strides 4, 8, 16 and 32 (NHWC)."""

from __future__ import annotations

from typing import Any

from keras import layers

from blu_export.errors import UsageError

_RESNET_STAGE4_BLOCKS = {"resnet50": 6, "resnet101": 23}

# Blocks of EfficientNet-Lite0 (Tan & Le 2019, without squeeze-and-excitation, ReLU6):
# kernel, stride of the first, expansion, output channels, repeats.
_LITE0_STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3),
                 (5, 1, 6, 112, 3), (5, 2, 6, 192, 4), (3, 1, 6, 320, 1))  # fmt: skip
_LITE0_OUTPUTS = (2, 4, 10, 15)
"""Blocks whose output is C2, C3, C4, C5."""


def backbone(name: str, image: Any) -> list[Any]:
    """C2, C3, C4, C5 of ``image`` (float32 [B, H, W, 3], mean subtracted)."""
    if name in _RESNET_STAGE4_BLOCKS:
        return _resnet(image, _RESNET_STAGE4_BLOCKS[name])
    if name == "efficientnet_lite0":
        return _efficientnet_lite0(image)
    raise UsageError(f"There is no backbone '{name}'.")


def _resnet(image: Any, stage4_blocks: int) -> list[Any]:
    """ResNet v1 with the stride in the first 1×1 convolution (He et al. 2015), named as the original."""
    x = layers.ZeroPadding2D(3, name="conv1_pad")(image)
    x = layers.Conv2D(64, 7, strides=2, name="conv1")(x)
    x = layers.Activation("relu")(_batch_norm("bn_conv1")(x))
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    outputs = []
    for stage, width, blocks in ((2, 64, 3), (3, 128, 4), (4, 256, stage4_blocks), (5, 512, 3)):
        for block in range(blocks):
            x = _bottleneck(x, width, f"{stage}{chr(ord('a') + block)}", stage, first=block == 0)
        outputs.append(x)
    return outputs


def _bottleneck(x: Any, width: int, suffix: str, stage: int, first: bool) -> Any:
    stride = 2 if first and stage > 2 else 1
    y = layers.Conv2D(width, 1, strides=stride, name=f"res{suffix}_branch2a")(x)
    y = layers.Activation("relu")(_batch_norm(f"bn{suffix}_branch2a")(y))
    y = layers.Conv2D(width, 3, padding="same", name=f"res{suffix}_branch2b")(y)
    y = layers.Activation("relu")(_batch_norm(f"bn{suffix}_branch2b")(y))
    y = layers.Conv2D(4 * width, 1, name=f"res{suffix}_branch2c")(y)
    y = _batch_norm(f"bn{suffix}_branch2c")(y)
    if first:
        x = layers.Conv2D(4 * width, 1, strides=stride, name=f"res{suffix}_branch1")(x)
        x = _batch_norm(f"bn{suffix}_branch1")(x)
    return layers.Activation("relu", name=f"res{suffix}_out")(layers.Add()([y, x]))


def _efficientnet_lite0(image: Any) -> list[Any]:
    x = layers.Rescaling(1 / 128, name="stem_scale")(image)
    x = layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False, name="stem_conv")(x)
    x = layers.ReLU(6)(_batch_norm("stem_bn")(x))
    outputs, block = [], 0
    for kernel, first_stride, expansion, channels, repeats in _LITE0_STAGES:
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            x = _inverted_residual(x, f"block{block}", kernel, stride, expansion, channels)
            if block in _LITE0_OUTPUTS:
                outputs.append(x)
            block += 1
    return outputs


def _inverted_residual(x: Any, name: str, kernel: int, stride: int, expansion: int, channels: int) -> Any:
    y = x
    if expansion > 1:
        y = layers.Conv2D(expansion * x.shape[-1], 1, use_bias=False, name=f"{name}_expand_conv")(y)
        y = layers.ReLU(6)(_batch_norm(f"{name}_expand_bn")(y))
    y = layers.DepthwiseConv2D(kernel, strides=stride, padding="same", use_bias=False, name=f"{name}_depthwise_conv")(y)
    y = layers.ReLU(6)(_batch_norm(f"{name}_depthwise_bn")(y))
    y = layers.Conv2D(channels, 1, use_bias=False, name=f"{name}_project_conv")(y)
    y = _batch_norm(f"{name}_project_bn")(y)
    return layers.Add()([y, x]) if stride == 1 and x.shape[-1] == channels else y


def _batch_norm(name: str) -> layers.BatchNormalization:
    return layers.BatchNormalization(epsilon=1e-3, momentum=0.99, name=name)
