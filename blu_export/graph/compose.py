"""One graph from the subnetworks and the box arithmetic between them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from blu_export.contract import TARGETS, Tensor, graph_inputs, graph_outputs
from blu_export.errors import UsageError
from blu_export.graph.builder import Graph, Value
from blu_export.graph.canvas import Canvas
from blu_export.graph.detection import detect
from blu_export.graph.masks import masks
from blu_export.graph.proposals import distinct_rows, propose
from blu_export.graph.roi_align import join_pyramid, roi_align
from blu_export.spec import ModelSpec


def compose(parts: Mapping[str, onnx.ModelProto], spec: ModelSpec, target: str = "portable") -> onnx.ModelProto:
    """Join ``subnetworks`` into the model that runners load.

    Parts may be float32, float16 or quantized inside; where a part's input or output is float16, the
    cast to and from the float32 of the box arithmetic is put at that boundary.

    Args:
        parts: ``trunk``, ``box_head`` and ``mask_head``, as ``subnetworks`` makes them, all of one opset.
        target: ``portable`` (ONNX Runtime, OpenVINO) or ``tensorrt`` (no NonMaxSuppression, NonZero,
            nor MatMul outside the subnetworks; fixed row counts).

    Returns:
        Inputs ``canvas`` uint8 [B, H, W, 3] and ``window`` float32 [B, 4]; outputs ``detections``
        float32 [B, N, 6], ``masks`` float32 [B, N, h, w] and ``num_detections`` int32 [B].

    Raises:
        UsageError: there is no such target.
    """
    if target not in TARGETS:
        raise UsageError(f"There is no target '{target}'.", f"Targets are: {', '.join(TARGETS)}.")
    graph = Graph(parts["trunk"].opset_import[0].version)
    canvas, window = Canvas(graph, spec), graph.value("window")
    *pyramid, rpn_logits, rpn_deltas = _run(graph, parts["trunk"], canvas.image())
    half = _element_type(parts["trunk"].graph.output[0]) == TensorProto.FLOAT16
    rpn_logits, rpn_deltas = (_float(graph, v, parts["trunk"], i) for i, v in ((4, rpn_logits), (5, rpn_deltas)))
    rois, in_use = propose(graph, rpn_logits, rpn_deltas, canvas, spec, target)
    table = join_pyramid(graph, pyramid, spec.top_down_pyramid_size)

    def pool(boxes: Value, image_of: Value, size: int) -> Value:
        return roi_align(graph, boxes, image_of, table, canvas, size, target, half)

    with graph.stage("roi_align"):
        flat, place = rois.reshape(-1, 4), None
        row = graph.op("Range", 0, graph.op("Size", flat) // 4, 1)
        if target == "portable":
            row, place = distinct_rows(graph, in_use, spec.post_nms_rois_inference)
            flat = flat.rows(row)
        pooled = pool(flat, row // spec.post_nms_rois_inference, spec.pool_size).reshape(
            -1, spec.pool_size**2 * spec.top_down_pyramid_size, name="pooled"
        )
    logits, deltas = _run(graph, parts["box_head"], pooled)
    logits, deltas = (_float(graph, v, parts["box_head"], i) for i, v in enumerate((logits, deltas)))
    if place is not None:
        with graph.stage("detection"):
            logits, deltas = logits.rows(place), deltas.rows(place)
    detections, used = detect(graph, rois, logits, deltas, window, canvas, spec, target)

    def mask_logits(boxes: Value, image_of: Value) -> Value:
        side, channels = spec.mask_pool_size, spec.top_down_pyramid_size
        with graph.stage("mask_roi_align"):
            pooled = pool(boxes, image_of, side).reshape(-1, side * side, channels).transpose(0, 2, 1)
            pooled = pooled.reshape(-1, channels, side, side, name="pooled")
        return _float(graph, _run(graph, parts["mask_head"], pooled)[0], parts["mask_head"], 0)

    found = masks(graph, detections, used, mask_logits, spec, target)
    graph.nodes.append(helper.make_node("Identity", [detections.name], ["detections"], "outputs/detections"))
    graph.nodes.append(helper.make_node("Identity", [found.name], ["masks"], "outputs/masks"))
    count = graph.reduce("Sum", used, 1, 2, keepdims=False)
    graph.nodes.append(
        helper.make_node(
            "Cast",
            [count.name],
            ["num_detections"],
            "outputs/num_detections",
            to=TensorProto.INT32,
        )
    )
    inputs, outputs = ([_declared(tensor) for tensor in side] for side in (graph_inputs(spec), graph_outputs(spec)))
    return graph.model("mask_rcnn", inputs, outputs)


def _declared(tensor: Tensor) -> onnx.ValueInfoProto:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return helper.make_tensor_value_info(tensor.name, element, list(tensor.shape))


def _run(graph: Graph, part: onnx.ModelProto, x: Value) -> list[Value]:
    declared = part.graph.input[0]
    if _element_type(declared) == TensorProto.FLOAT16:
        x = x.cast(np.float16)
    return graph.inline(part, {declared.name: x})


def _float(graph: Graph, value: Value, part: onnx.ModelProto, output: int) -> Value:
    half = _element_type(part.graph.output[output]) == TensorProto.FLOAT16
    return value.cast(np.float32) if half else value


def _element_type(info: onnx.ValueInfoProto) -> int:
    return info.type.tensor_type.elem_type
