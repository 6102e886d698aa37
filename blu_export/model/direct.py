"""The subnetworks, written as ONNX directly from the tensors: they are a closed set of layers.

The result is that of ``learned``, which traces the Keras model and is the independent check: same names, same
layout, batch normalization folded into the layer before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from blu_export.anchors import pyramid_anchors
from blu_export.graph.builder import Graph, Value
from blu_export.model.h5 import Layers
from blu_export.model.layers import LITE0_OUTPUTS, MASK_CONVS, RESNET_STAGES, block_name, lite0_blocks
from blu_export.spec import ModelSpec, resnet_blocks

NORM_EPSILON = 1e-3
"""Of every batch normalization of the original."""
LEVELS = (2, 3, 4, 5, 6)

Shape = Sequence[int | str | None]


def subnetworks(layers: Layers, spec: ModelSpec, opset: int) -> dict[str, onnx.ModelProto]:
    """The three subnetworks of a model, as ``learned.subnetworks`` describes them.

    Args:
        layers: tensors that passed ``model.weights.check_weights`` for this spec.
    """
    return {
        "trunk": _trunk(layers, spec, opset),
        "box_head": _box_head(layers, spec, opset),
        "mask_head": _mask_head(layers, spec, opset),
    }


class _Part:
    """One subnetwork while it is written: layers of the file become nodes of their names."""

    def __init__(self, name: str, layers: Layers, opset: int) -> None:
        self.name = name
        self.layers = layers
        self.graph = Graph(opset)
        self.graph._stage = f"{name}/"

    def conv(
        self,
        x: Value,
        layer: str,
        norm: str | None = None,
        stride: int = 1,
        padding: Sequence[int] | None = None,
        depthwise: bool = False,
        output: str | None = None,
    ) -> Value:
        """A convolution with the normalization after it; ``SAME`` padding unless ``padding`` is given."""
        kernel, bias = self.folded(layer, norm, depthwise)
        size = kernel.shape[0]
        kernel = kernel.transpose(2, 3, 0, 1) if depthwise else kernel.transpose(3, 2, 0, 1)
        pads = same_padding(size, stride) if padding is None else list(padding)
        value = self.graph.op(
            "Conv",
            x,
            *self.weights(layer, kernel, bias),
            name=layer,
            dilations=[1, 1],
            group=len(kernel) if depthwise else 1,
            kernel_shape=[size, size],
            strides=[stride, stride],
            **({"pads": pads} if any(pads) else {}),
        )
        return self.renamed(value, output)

    def product(self, x: Value, layer: str, norm: str | None = None, output: str | None = None) -> Value:
        """A dense layer, or a convolution that sees one position only: ONNX Runtime is far faster on the product."""
        kernel, bias = self.folded(layer, norm)
        weights = self.weights(layer, kernel.reshape(-1, kernel.shape[-1]), bias)
        return self.renamed(self.graph.op("Gemm", x, *weights, name=layer), output)

    def upsampling(self, x: Value, layer: str, side: int) -> Value:
        """A 2×2 transposed convolution of stride 2 and its ReLU, with one row per position of the 2×2.

        [R, C, h, w] becomes [R × 4, D, h, w]: a 1×1 convolution to four times the channels, and a view.
        """
        kernel, bias = self.folded(layer, None)  # [2, 2, D, C]
        taps, (depth, channels) = kernel.shape[0] * kernel.shape[1], kernel.shape[2:]
        wide = kernel.reshape(taps * depth, channels, 1, 1)
        x = self.graph.op("Conv", x, *self.weights(layer, wide, np.tile(bias, taps)), name=layer)
        shape = self.graph.const(np.array([-1, depth, side, side], np.int64), "one_row_per_tap")
        return self.graph.op("Reshape", self.relu(x), shape)

    def relu(self, x: Value) -> Value:
        return self.graph.op("Relu", x)

    def folded(
        self, layer: str, norm: str | None, depthwise: bool = False
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Kernel and bias with the normalization after them taken over, computed in float64."""
        kernel, *rest = (tensor for _, tensor in self.layers[layer])
        if norm is None:
            return kernel, rest[0]
        gamma, beta, mean, variance = (np.asarray(tensor, np.float64) for _, tensor in self.layers[norm])
        scale = gamma / np.sqrt(variance + NORM_EPSILON)
        bias = (np.asarray(rest[0], np.float64) if rest else 0.0) - mean
        factor = scale[:, None] if depthwise else scale
        return np.asarray(kernel * factor, np.float32), np.asarray(bias * scale + beta, np.float32)

    def weights(self, layer: str, kernel: NDArray[np.float32], bias: NDArray[np.float32]) -> tuple[Value, Value]:
        """Initializers ``part/layer/kernel`` and ``part/layer/bias``; a layer that is used again has them already."""
        values = []
        for kind, array in (("kernel", kernel), ("bias", bias)):
            name = f"{self.name}/{layer}/{kind}"
            if name not in self.graph.initializers:
                self.graph.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
            values.append(self.graph.value(name))
        return values[0], values[1]

    def renamed(self, value: Value, output: str | None) -> Value:
        """The last node's output under another name."""
        if output is None:
            return value
        self.graph.nodes[-1].output[0] = f"{self.name}/{output}"
        return self.graph.value(f"{self.name}/{output}")

    def model(self, source: str, shape: Shape, outputs: Mapping[str, Shape]) -> onnx.ModelProto:
        """The part as a model; shapes are without the first, dynamic dimension."""
        first = {"mask_head": "rows"}.get(self.name, "batch")
        return self.graph.model(
            self.name,
            [_info(f"{self.name}/{source}", ["batch", *shape])],
            [_info(f"{self.name}/{name}", [first, *sizes]) for name, sizes in outputs.items()],
        )


def _trunk(layers: Layers, spec: ModelSpec, opset: int) -> onnx.ModelProto:
    part = _Part("trunk", layers, opset)
    image = part.graph.value("trunk/image")
    blocks = resnet_blocks(spec.backbone)
    features = _resnet(part, image, blocks) if blocks else _lite0(part, image)
    pyramid = _feature_pyramid(part, features)
    _region_proposals(part, pyramid, spec)
    height, width = spec.canvas or (None, None)
    sizes: dict[str, Shape] = {
        f"P{level}": (spec.top_down_pyramid_size, *((side and side >> level) for side in (height, width)))
        for level in LEVELS[:4]
    }
    anchors = len(pyramid_anchors(spec, spec.canvas)) if spec.canvas else None
    sizes |= {"rpn_class_logits": (anchors, 2), "rpn_bbox": (anchors, 4)}
    return part.model("image", (spec.image_channel_count, height, width), sizes)


def _resnet(part: _Part, image: Value, blocks: Sequence[int]) -> list[Value]:
    """C2..C5 of a ResNet v1 with the stride in the first 1×1 convolution (He et al. 2015)."""
    x = part.relu(part.conv(image, "conv1", "bn_conv1", stride=2, padding=(3, 3, 3, 3)))
    x = part.graph.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=same_padding(3, 2))
    outputs = []
    for stage, count in zip(RESNET_STAGES, blocks, strict=True):
        for block in range(count):
            branch = f"{block_name(stage, block)}_branch"
            stride = 2 if block == 0 and stage > RESNET_STAGES[0] else 1
            y = part.relu(part.conv(x, f"res{branch}2a", f"bn{branch}2a", stride))
            y = part.relu(part.conv(y, f"res{branch}2b", f"bn{branch}2b"))
            y = part.conv(y, f"res{branch}2c", f"bn{branch}2c")
            if block == 0:
                x = part.conv(x, f"res{branch}1", f"bn{branch}1", stride)
            x = part.relu(y + x)
        outputs.append(x)
    return outputs


def _lite0(part: _Part, image: Value) -> list[Value]:
    """C2..C5 of EfficientNet-Lite0 (Tan & Le 2019)."""

    def relu6(x: Value) -> Value:
        return part.graph.clip(x, 0.0, 6.0)

    x = relu6(part.conv(image * (1 / 128), "stem_conv", "stem_bn", stride=2))
    outputs = []
    for number, block in enumerate(lite0_blocks()):
        y, name = x, block.name
        if block.expansion > 1:
            y = relu6(part.conv(y, f"{name}_expand_conv", f"{name}_expand_bn"))
        y = relu6(part.conv(y, f"{name}_depthwise_conv", f"{name}_depthwise_bn", block.stride, depthwise=True))
        y = part.conv(y, f"{name}_project_conv", f"{name}_project_bn")
        x = y + x if block.is_residual else y
        if number in LITE0_OUTPUTS:
            outputs.append(x)
    return outputs


def _feature_pyramid(part: _Part, features: Sequence[Value]) -> list[Value]:
    """P2..P6 (Lin et al. 2017)."""
    above = part.conv(features[-1], "fpn_c5p5")
    pyramid: list[Value] = []
    scales = part.graph.const(np.array([1, 1, 2, 2], np.float32), "scales")
    for level in (5, 4, 3, 2):
        pyramid.insert(0, part.conv(above, f"fpn_p{level}", output=f"P{level}"))
        if level > LEVELS[0]:
            up = part.graph.op(
                "Resize",
                above,
                None,
                scales,
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            )
            above = up + part.conv(features[level - 3], f"fpn_c{level - 1}p{level - 1}")
    return [*pyramid, part.graph.op("MaxPool", pyramid[-1], kernel_shape=[1, 1], strides=[2, 2])]


def _region_proposals(part: _Part, pyramid: Sequence[Value], spec: ModelSpec) -> None:
    """``rpn_class_logits`` and ``rpn_bbox`` of all levels, one row for each anchor."""
    rows: dict[str, list[Value]] = {"rpn_class_logits": [], "rpn_bbox": []}
    for level, features in zip(LEVELS, pyramid, strict=True):
        hidden = part.relu(part.conv(features, "rpn_conv_shared", stride=spec.rpn_anchor_stride))
        logits = part.conv(hidden, "rpn_class_raw", output=f"logits_{level}")
        deltas = part.conv(hidden, "rpn_bbox_pred", output=f"deltas_{level}")
        for name, value, width in (("rpn_class_logits", logits, 2), ("rpn_bbox", deltas, 4)):
            rows[name].append(value.transpose(0, 2, 3, 1).reshape(0, -1, width))
    for name, levels in rows.items():
        part.graph.concat(levels, axis=1, name=name)


def _box_head(layers: Layers, spec: ModelSpec, opset: int) -> onnx.ModelProto:
    part = _Part("box_head", layers, opset)
    x = part.relu(part.product(part.graph.value("box_head/rois"), "mrcnn_class_conv1", "mrcnn_class_bn1"))
    x = part.relu(part.product(x, "mrcnn_class_conv2", "mrcnn_class_bn2"))
    part.product(x, "mrcnn_class_logits")
    part.product(x, "mrcnn_bbox_fc", output="mrcnn_bbox")
    size = spec.pool_size**2 * spec.top_down_pyramid_size
    outputs = {"mrcnn_class_logits": (spec.num_classes,), "mrcnn_bbox": (4 * spec.num_classes,)}
    return part.model("rois", (size,), outputs)


def _mask_head(layers: Layers, spec: ModelSpec, opset: int) -> onnx.ModelProto:
    part, side = _Part("mask_head", layers, opset), spec.mask_pool_size
    x = part.graph.value("mask_head/rois")
    for i in range(1, MASK_CONVS + 1):
        x = part.relu(part.conv(x, f"mrcnn_mask_conv{i}", f"mrcnn_mask_bn{i}"))
    part.conv(part.upsampling(x, "mrcnn_mask_deconv", side), "mrcnn_mask")
    shape = (spec.top_down_pyramid_size, side, side)
    return part.model("rois", shape, {"mrcnn_mask": (spec.num_classes, side, side)})


def same_padding(size: int, stride: int) -> list[int]:
    """Keras' ``same`` where the stride divides the side of the map: the odd pixel is padded at the end."""
    total = max(size - stride, 0)
    return [total // 2] * 2 + [total - total // 2] * 2


def _info(name: str, shape: Shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
