"""The subnetworks: from Keras layers to plain ONNX convolutions, through tf2onnx.

Three things keep the conversion to seconds and its result lean. Batch normalization is folded into
the layer before it in NumPy. The weights are *inputs* of the traced function, so that tf2onnx, which
copies its whole graph before every optimization, never sees them; ``tidy`` attaches them afterwards.
And layers whose natural ONNX form is slow are exchanged for equal ones before the trace.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnx
import tensorflow as tf
from keras import KerasTensor, Model, layers, models
from numpy.typing import NDArray

from blu_export.export.tidy import tidy
from blu_export.graph.builder import Graph
from blu_export.model.mask_rcnn import MaskRCNN
from blu_export.model.normalization import folded, norms_by_layer

PYRAMID = ("P2", "P3", "P4", "P5")
TRACE_OPSET = 18
"""tf2onnx writes up to this operator set; the operators of the subnetworks are the same in later ones."""


def subnetworks(model: MaskRCNN, opset: int) -> dict[str, onnx.ModelProto]:
    """Convert the three subnetworks of a model.

    Names of tensors and nodes begin with the part's name; initializers are ``part/layer/kernel`` and
    ``part/layer/bias``. All is float32, images and feature maps are NCHW, batches are dynamic.

    Returns:
        ``trunk``: ``trunk/image`` [B, 3, H, W] (mean subtracted) to ``trunk/P2`` … ``trunk/P5``
        [B, C, h, w], ``trunk/rpn_class_logits`` [B, A, 2] and ``trunk/rpn_bbox`` [B, A, 4].

        ``box_head``: ``box_head/rois`` [R, pool × pool × C] (a flattened [pool, pool, C]) to
        ``box_head/mrcnn_class_logits`` [R, K] and ``box_head/mrcnn_bbox`` [R, K × 4].

        ``mask_head``: ``mask_head/rois`` [R, C, pool, pool] to ``mask_head/mrcnn_mask``
        [R × 4, K, pool, pool], logits. The four maps of a ROI are the positions (0,0), (0,1), (1,0), (1,1)
        of the 2×2 up-sampling: a transposed convolution with stride 2 is a 1×1 convolution to four times
        the channels, and what follows it is per pixel.
    """
    return {
        "trunk": _trunk(model, opset),
        "box_head": _box_head(model, opset),
        "mask_head": _mask_head(model, opset),
    }


def _trunk(model: MaskRCNN, opset: int) -> onnx.ModelProto:
    trunk, spec = model.trunk, model.spec
    logits, deltas = (
        [_layer_of(flat).input for flat in trunk.get_layer(name).input] for name in ("rpn_class_logits", "rpn_bbox")
    )
    convolutions = Model(trunk.input, [*trunk.outputs[: len(PYRAMID)], *logits, *deltas])
    names = [
        *PYRAMID,
        *(f"{head}_{level}" for head in ("logits", "deltas") for level in range(2, 2 + len(logits))),
    ]
    traced = _convert(convolutions, "trunk", "image", names, opset)
    graph = Graph(opset)
    maps = graph.inline(traced, {})
    heads = {
        "rpn_class_logits": maps[len(PYRAMID) : -len(deltas)],
        "rpn_bbox": maps[-len(deltas) :],
    }
    outputs = list(traced.graph.output[: len(PYRAMID)])
    anchors = len(model.anchors(spec.canvas)) if spec.canvas else None
    with graph.stage("trunk"):
        for (name, levels), width in zip(heads.items(), (2, 4), strict=True):
            rows = [level.transpose(0, 2, 3, 1).reshape(0, -1, width) for level in levels]
            joined = graph.concat(rows, axis=1, name=name)
            shape = ["batch", anchors, width]
            outputs.append(onnx.helper.make_tensor_value_info(joined.name, onnx.TensorProto.FLOAT, shape))
    return graph.model("trunk", list(traced.graph.input), outputs)


def _box_head(model: MaskRCNN, opset: int) -> onnx.ModelProto:
    head = model.box_head
    names = ("mrcnn_class_logits", "mrcnn_bbox_fc")
    layers_only = Model(head.input, [head.get_layer(name).output for name in names])
    return _convert(
        layers_only,
        "box_head",
        "rois",
        ["mrcnn_class_logits", "mrcnn_bbox"],
        opset,
        flat=True,
    )


def _mask_head(model: MaskRCNN, opset: int) -> onnx.ModelProto:
    head = model.mask_head
    logits = Model(head.input, head.get_layer("mrcnn_mask").output)
    part = _convert(logits, "mask_head", "rois", ["mrcnn_mask"], opset)
    # Traced as [R, K, 2 × pool, 2 × pool]; tidy leaves the up-sampling's positions on the first axis.
    shape, pool = part.graph.output[0].type.tensor_type.shape, model.spec.mask_pool_size
    shape.dim[0].dim_param = "rows"
    shape.dim[2].dim_value = shape.dim[3].dim_value = pool
    return part


def _convert(
    model: Model,
    part: str,
    input_name: str,
    output_names: list[str],
    opset: int,
    flat: bool = False,
) -> onnx.ModelProto:
    """One Keras model (NHWC) as a tidy ONNX model (NCHW, or flat rows with ``flat``)."""
    import tf2onnx

    plain, weights = _inference_form(model, flat)
    shape = plain.input_shape if flat else [None, plain.input_shape[3], *plain.input_shape[1:3]]
    signature = [tf.TensorSpec(shape, tf.float32, name="x")]
    signature += [tf.TensorSpec(w.shape, tf.float32, name=f"w{i}") for i, w in enumerate(weights.values())]

    def forward(x: Any, *kernels: Any) -> list[Any]:
        x = x if flat else tf.transpose(x, [0, 2, 3, 1])
        found, _ = plain.stateless_call(list(kernels), [], x, training=False)
        found = found if isinstance(found, list | tuple) else [found]
        return list(found) if flat else [tf.transpose(y, [0, 3, 1, 2]) for y in found]

    function = tf.function(forward, input_signature=signature, autograph=False)
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    traced, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=TRACE_OPSET)
    named = {f"w{i}": (name, value) for i, (name, value) in enumerate(weights.items())}
    shapes = plain.output_shape if isinstance(plain.output_shape, list) else [plain.output_shape]
    shapes = [s if flat else (s[0], s[3], s[1], s[2]) for s in shapes]
    return tidy(
        traced,
        part,
        {"x": input_name},
        dict(zip(output_names, shapes, strict=True)),
        named,
        opset,
    )


def _inference_form(model: Model, flat: bool) -> tuple[Model, dict[str, NDArray[np.float32]]]:
    """The same function without batch normalization, and its weights as ``layer/kernel``, ``layer/bias``.

    With ``flat`` the input is a flattened map, and convolutions, which then see one position only, are
    matrix products: ONNX Runtime is seven times slower on such a convolution than on the product.
    """
    norm_of = norms_by_layer(model)

    def exchange(layer: layers.Layer) -> layers.Layer:
        if isinstance(layer, layers.BatchNormalization) or (flat and isinstance(layer, layers.Flatten)):
            return _Same(name=layer.name)
        if isinstance(layer, layers.UpSampling2D):
            return _Nearest(layer.size, name=layer.name)
        config = layer.get_config() | {"dtype": "float32"}
        if layer.name in norm_of:
            config["use_bias"] = True
        if flat and isinstance(layer, layers.Conv2D):
            return layers.Dense(layer.filters, activation=layer.activation, name=layer.name)
        return type(layer).from_config(config)

    inputs = layers.Input((int(np.prod(model.input_shape[1:])),)) if flat else None
    plain = models.clone_model(model, input_tensors=inputs, clone_function=exchange)
    originals = {layer.name: layer for layer in model.layers}
    weights: dict[str, NDArray[np.float32]] = {}
    for layer in plain.layers:
        if layer.weights:
            values = folded(originals[layer.name], norm_of.get(layer.name))
            for variable, value in zip(layer.weights, values, strict=True):
                weights[f"{layer.name}/{'bias' if 'bias' in variable.name else 'kernel'}"] = value.reshape(
                    variable.shape
                )
    return plain, weights


def _layer_of(tensor: KerasTensor) -> layers.Layer:
    return tensor._keras_history.operation


class _Same(layers.Layer):
    """Stands where a layer was that is folded away."""

    def call(self, x: Any, training: bool = False, mask: Any = None) -> Any:
        return x


class _Nearest(layers.Layer):
    """Nearest up-sampling as one operation; Keras' own is a dozen in the trace."""

    def __init__(self, factors: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factors = factors

    def call(self, x: Any) -> Any:
        return tf.raw_ops.ResizeNearestNeighbor(images=x, size=tf.shape(x)[1:3] * self.factors)

    def compute_output_shape(self, shape: tuple[Any, ...]) -> tuple[Any, ...]:
        sides = [s and s * f for s, f in zip(shape[1:3], self.factors, strict=True)]
        return (shape[0], *sides, shape[3])
