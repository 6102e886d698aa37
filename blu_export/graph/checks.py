"""Graph checks: what an exported graph must not contain, checked before it is written."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper, numpy_helper

from blu_export.contract import SUBNETWORKS, graph_outputs
from blu_export.errors import ModelFileError
from blu_export.graph.topk import TENSORRT_TOPK_LIMIT
from blu_export.spec import ModelSpec

LEARNED = tuple(f"{name}/" for name in SUBNETWORKS)
"""Prefixes of the nodes that hold weights; all others are box arithmetic."""
NMS_LOOP = "/nms/"
"""Part of the name of the one kind of Loop that is allowed: NMS until nothing changes, TensorRT only."""
HALF_MOVERS = frozenset({"Cast", "Concat", "Gather", "Identity", "Reshape", "Transpose"})
"""What box arithmetic may do with half-precision tensors: move them, and cast them."""
WITHOUT_PLUGIN = frozenset({"NonZero", "NonMaxSuppression", "RoiAlign", "Unique", "Compress"})
"""What TensorRT refuses, or runs with a plugin or a data-dependent shape only."""
SMALL_INITIALIZER = 1024
"""Elements; such a tensor may be a shape or an index, on which the shapes of others depend."""
PRODUCTS = frozenset({"MatMul", "Gemm", "Einsum"})
OUTPUT_RANKS = {tensor.name: len(tensor.shape) for tensor in graph_outputs(ModelSpec(class_names=("BG", "any")))}


@dataclass(frozen=True)
class _Found:
    """A node and the constants that it can see."""

    node: onnx.NodeProto
    constants: dict[str, onnx.TensorProto]

    @property
    def learned(self) -> bool:
        return self.node.name.startswith(LEARNED)


def check_graph(model: onnx.ModelProto, target: str) -> None:
    """Check a composed model against the rules of its target (``portable`` or ``tensorrt``).

    Raises:
        ModelFileError: with every rule that is broken, and by which node.
    """
    problems = [*_graph_problems(model)]
    for found in _nodes(model.graph, {}):
        problems += [f"{found.node.name or found.node.op_type}: {rule}" for rule in _node_problems(found, target)]
    problems += _half_problems(model)
    if problems:
        shown = "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise ModelFileError(
            f"The graph is not fit for target '{target}': {shown}.",
            "Export again from the weights; if blu made this graph, it is a bug worth reporting.",
        )


def _graph_problems(model: onnx.ModelProto) -> Iterator[str]:
    if any(t.data_location == TensorProto.EXTERNAL for t in model.graph.initializer):
        yield "initializers lie outside the file"
    if {o.name for o in model.graph.output} != set(OUTPUT_RANKS):
        yield f"outputs are not {', '.join(OUTPUT_RANKS)}"
        return
    for output in model.graph.output:
        kind = output.type.tensor_type
        if not kind.HasField("shape") or len(kind.shape.dim) != OUTPUT_RANKS[output.name]:
            yield f"output {output.name} has no fixed rank of {OUTPUT_RANKS[output.name]}"
        elif not all(d.dim_value > 0 for d in kind.shape.dim[1:]):
            yield f"output {output.name} has a dynamic dimension besides the batch"


def _node_problems(found: _Found, target: str) -> Iterator[str]:
    node = found.node
    attributes = {a.name: a for a in node.attribute}
    if node.domain not in ("", "ai.onnx"):
        yield f"operator {node.domain}.{node.op_type} is not a standard ONNX operator"
    if node.op_type in ("If", "Scan"):
        yield f"{node.op_type} is control flow"
    if node.op_type == "Loop" and not (target == "tensorrt" and NMS_LOOP in node.name):
        yield "a Loop is slow in every runtime, and only the NMS of the TensorRT form may have one"
    mode = attributes.get("coordinate_transformation_mode")
    if node.op_type == "Resize" and mode is not None and mode.s == b"tf_crop_and_resize":
        yield "Resize with tf_crop_and_resize is refused by TensorRT and slow elsewhere"
    if target != "tensorrt":
        return
    if node.op_type in WITHOUT_PLUGIN:
        yield f"TensorRT has no {node.op_type} without a plugin or a data-dependent shape"
    if node.op_type in PRODUCTS and not found.learned:
        yield f"{node.op_type} in the box arithmetic: TensorRT-RTX has no float32 product for Turing"
    if node.op_type == "TopK":
        k = found.constants.get(node.input[1])
        if k is None:
            yield "TopK with a computed k"
        elif int(numpy_helper.to_array(k).reshape(-1)[0]) > TENSORRT_TOPK_LIMIT:
            yield f"TopK asks for more than {TENSORRT_TOPK_LIMIT}"


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with large initializers as inputs: ONNX's checker and shape inference copy what they are given.

    A graph that passes with any such tensors passes with those that it has.
    """
    graph = model.graph
    large = [t for t in graph.initializer if math.prod(t.dims) > SMALL_INITIALIZER]
    bare = helper.make_graph(
        graph.node,
        graph.name,
        [*graph.input, *(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in large)],
        graph.output,
        [t for t in graph.initializer if math.prod(t.dims) <= SMALL_INITIALIZER],
        value_info=graph.value_info,
    )
    return helper.make_model(
        bare, opset_imports=model.opset_import, ir_version=model.ir_version, functions=model.functions
    )


def _half_problems(model: onnx.ModelProto) -> Iterator[str]:
    """Box arithmetic must be float32: half precision moves boxes by pixels."""
    half = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    inferred = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    infos = [*inferred.value_info, *inferred.input, *inferred.output]
    kinds = {i.name: i.type.tensor_type.elem_type for i in infos} | {t.name: t.data_type for t in inferred.initializer}
    for node in inferred.node:
        touched = any(kinds.get(n) in half for n in (*node.input, *node.output))
        if touched and not node.name.startswith(LEARNED) and node.op_type not in HALF_MOVERS:
            yield f"{node.name}: {node.op_type} of the box arithmetic is not float32"


def _nodes(graph: onnx.GraphProto, outer: dict[str, onnx.TensorProto]) -> Iterator[_Found]:
    """Every node, those of subgraphs included."""
    constants = outer | {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].name == "value":
            constants[node.output[0]] = helper.get_attribute_value(node.attribute[0])
    for node in graph.node:
        yield _Found(node, constants)
        for attribute in node.attribute:
            bodies = [attribute.g] if attribute.HasField("g") else attribute.graphs
            for body in bodies:
                yield from _nodes(body, constants)
