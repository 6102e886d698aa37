"""Floating-point work of an exported model, counted from its graph."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blu_export.contract import Metadata
from blu_export.spec import ModelSpec

if TYPE_CHECKING:
    import onnx

_COUNTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")


@dataclass(frozen=True)
class Flops:
    """Multiply and add each count as one operation; only convolutions and matrix products count."""

    by_stage: dict[str, float]
    """Stage (the first part of a node's name) to FLOPs, for one canvas."""

    @property
    def total(self) -> float:
        """FLOPs of the whole graph."""
        return sum(self.by_stage.values())


def count_flops(model: onnx.ModelProto, canvas: tuple[int, int], detections: int) -> Flops:
    """Count the work of one canvas.

    Args:
        model: a file that ``blu export onnx`` wrote, loaded.
        canvas: (height, width) in pixels.
        detections: rows that the mask head sees where their number depends on the image. Those of the box head, where
            shapes do not show them, are the spec's.
    """
    shapes = _shapes(model, canvas)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    rois = detections
    if Metadata.SPEC in metadata:
        rois = ModelSpec.from_json(metadata[Metadata.SPEC]).post_nms_rois_inference
    by_stage: dict[str, float] = defaultdict(float)
    for node in model.graph.node:
        if node.op_type in _COUNTED:
            stage = node.name.split("/")[0]
            if work := _node_flops(node, shapes, detections if stage.startswith("mask") else rois):
                by_stage[stage] += work
    return Flops(dict(by_stage))


_Shape = tuple[int | None, ...]


def _shapes(model: onnx.ModelProto, canvas: tuple[int, int]) -> dict[str, _Shape]:
    """Static shapes for batch 1; a size that depends on the data is None."""
    import onnx

    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    channels = model.graph.input[0].type.tensor_type.shape.dim[3].dim_value
    sizes = {"canvas": (1, *canvas, channels), "window": (1, 4)}
    for value in fixed.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, sizes[value.name], strict=True):
            dim.dim_value = size
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    del fixed.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    shapes: dict[str, _Shape] = {t.name: tuple(t.dims) for t in inferred.graph.initializer}
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
    return shapes


def _node_flops(node: onnx.NodeProto, shapes: dict[str, _Shape], rows: int) -> float:
    inputs = [shapes.get(name) for name in node.input]
    output = shapes.get(node.output[0])
    weights = inputs[1] if len(inputs) > 1 else None
    if not output or not weights:
        raise ValueError(f"the shapes of node {node.name} ({node.op_type}) are not known")
    cells = math.prod(size if size is not None else rows for size in output)
    if any(size is None for size in weights):
        weights = tuple(size if size is not None else rows for size in weights)
    known = [size for size in weights if size is not None]
    if node.op_type == "Conv":
        return 2.0 * cells * math.prod(known[1:])
    if node.op_type == "ConvTranspose":
        # Each input position makes one product with the whole kernel.
        data = inputs[0] or ()
        return 2.0 * math.prod(s if s is not None else rows for s in data) * math.prod(known[1:])
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 2.0 * cells * (known[-1] if transposed else known[-2])
