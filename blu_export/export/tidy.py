"""Cleanup of tf2onnx's output: named weights, no shape arithmetic, no layout changes.

Every rule keeps the function that the graph computes; the exporter's parity check would tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from blu_export.graph.builder import IR_VERSIONS

Shape: TypeAlias = "Sequence[int | str | None]"
Weights: TypeAlias = Mapping[str, tuple[str, NDArray[np.float32]]]
UPSAMPLING = 2
"""Factor of every Resize in a Mask R-CNN: the pyramid's way down."""


def tidy(
    model: onnx.ModelProto,
    part: str,
    input_names: Mapping[str, str],
    outputs: Mapping[str, Shape],
    weights: Weights,
    opset: int,
) -> onnx.ModelProto:
    """A traced part with its weights attached and its names in order.

    Args:
        part: prefix of every name.
        input_names: new names of the inputs that stay inputs.
        outputs: new names and the shapes of the outputs, in order.
        weights: for each input that becomes an initializer, its name (``layer/kernel``) and value.
    """
    graph = _Graph(model, weights)
    graph.fold_constants()
    for node in list(graph.nodes):
        _RULES.get(node.op_type, lambda *_: None)(graph, node)
    graph.fuse_biases()
    graph.drop_unused()
    return graph.export(part, input_names, outputs, opset)


class _Graph:
    """Nodes and constants of a traced part while it is rewritten."""

    def __init__(self, model: onnx.ModelProto, weights: Weights) -> None:
        self.source = model
        self.nodes = list(model.graph.node)
        self.constants: dict[str, NDArray[Any]] = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.labels: dict[str, str] = {}
        for name, (label, value) in weights.items():
            self.constants[name], self.labels[name] = value, label
        self.outputs = [o.name for o in model.graph.output]

    def fold_constants(self) -> None:
        """Evaluate the nodes that depend on constants only; results keep their weight's label."""
        for node in list(self.nodes):
            if not node.input or not all(n in self.constants for n in node.input if n):
                continue
            feeds = {n: self.constants[n] for n in node.input if n}
            values: list[NDArray[Any]] = ReferenceEvaluator(node).run(None, feeds)  # type: ignore[no-untyped-call, unused-ignore]
            for name, value in zip(node.output, values, strict=True):
                self.constants[name] = value
                if node.input[0] in self.labels:
                    self.labels[name] = self.labels[node.input[0]]
            self.nodes.remove(node)

    def fuse_biases(self) -> None:
        """``Conv`` or ``MatMul`` followed by the addition of a vector: one node."""
        uses = Counter(n for node in self.nodes for n in node.input)
        maker = {name: node for node in self.nodes for name in node.output}
        for add in [n for n in self.nodes if n.op_type == "Add"]:
            constant = next((n for n in add.input if n in self.constants), None)
            other = next((n for n in add.input if n not in self.constants), None)
            source = maker.get(other or "")
            if constant is None or source is None or uses[source.output[0]] != 1 or len(source.input) > 2:
                continue
            if source.op_type not in ("Conv", "MatMul"):
                continue
            self.constants[constant] = self.constants[constant].reshape(-1)
            source.input.append(constant)
            source.op_type = {"MatMul": "Gemm"}.get(source.op_type, source.op_type)
            source.output[0] = add.output[0]
            self.nodes.remove(add)

    def drop_unused(self) -> None:
        """Keep what the outputs depend on."""
        needed, kept = set(self.outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        self.nodes = kept[::-1]

    def new_constant(self, near: str, label: str, value: NDArray[Any]) -> str:
        """Add a constant; ``near`` makes its name unique."""
        name = f"{near}::{label}"
        self.constants[name], self.labels[name] = value, label
        return name

    def export(
        self,
        part: str,
        input_names: Mapping[str, str],
        outputs: Mapping[str, Shape],
        opset: int,
    ) -> onnx.ModelProto:
        """Rename everything and write the model."""
        names = {old: f"{part}/{new}" for old, new in input_names.items()}
        names |= {old: f"{part}/{new}" for old, new in zip(self.outputs, outputs, strict=True)}
        initializers: dict[str, onnx.TensorProto] = {}
        taken: Counter[str] = Counter()

        def constant(name: str) -> str:
            label = f"{part}/{self.labels.get(name, 'const')}"
            value, candidate, count = (
                np.ascontiguousarray(self.constants[name]),
                label,
                1,
            )
            while candidate in initializers and not np.array_equal(
                numpy_helper.to_array(initializers[candidate]), value
            ):
                count += 1
                candidate = f"{label}_{count}"
            initializers.setdefault(candidate, numpy_helper.from_array(value, candidate))
            return candidate

        nodes = []
        for node in self.nodes:
            inputs = []
            for name in node.input:
                if name in self.constants and name not in names:
                    names[name] = constant(name)
                inputs.append(names.get(name, name))
            layer = self.labels.get(node.input[1], "").rpartition("/")[0] if len(node.input) > 1 else ""
            base = f"{part}/{layer or node.op_type}"
            taken[base] += 1
            label = base if taken[base] == 1 else f"{base}_{taken[base]}"
            for index, name in enumerate(node.output):
                names.setdefault(name, label if len(node.output) == 1 else f"{label}:{index}")
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            nodes.append(
                helper.make_node(
                    node.op_type,
                    inputs,
                    [names[n] for n in node.output],
                    label,
                    **attributes,
                )
            )
        shapes: dict[str, Shape] = {
            i.name: [d.dim_value or None for d in i.type.tensor_type.shape.dim] for i in self.source.graph.input
        }
        shapes |= dict(zip(self.outputs, outputs.values(), strict=True))
        ends = [
            [helper.make_tensor_value_info(names[n], onnx.TensorProto.FLOAT, ["batch", *shapes[n][1:]]) for n in group]
            for group in (input_names, self.outputs)
        ]
        graph = helper.make_graph(nodes, part, *ends, list(initializers.values()))
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", opset)],
            ir_version=IR_VERSIONS[opset],
            producer_name="blu",
        )


def _attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    return next(
        (helper.get_attribute_value(a) for a in node.attribute if a.name == name),
        default,
    )


def _set(node: onnx.NodeProto, **attributes: Any) -> None:
    kept = [a for a in node.attribute if a.name not in attributes]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items() if v is not None)


def _explicit_pads(graph: _Graph, node: onnx.NodeProto) -> None:
    """``SAME`` padding as numbers: sides of the canvas are multiples of 64, so every stride divides them."""
    auto = _attribute(node, "auto_pad", b"NOTSET").decode()
    if auto == "SAME_UPPER":
        kernel = _attribute(node, "kernel_shape") or graph.constants[node.input[1]].shape[2:]
        strides = _attribute(node, "strides", [1] * len(kernel))
        total = [max(k - s, 0) for k, s in zip(kernel, strides, strict=True)]
        _set(
            node,
            auto_pad=None,
            pads=[t // 2 for t in total] + [t - t // 2 for t in total],
        )
    else:
        _set(node, auto_pad=None)


def _doubling(graph: _Graph, node: onnx.NodeProto) -> None:
    """Nearest up-sampling with constant scales, the form that ONNX Runtime has a fast kernel for."""
    scales = np.array([1, 1, UPSAMPLING, UPSAMPLING], np.float32)
    del node.input[1:]
    node.input.extend(["", graph.new_constant(node.output[0], "scales", scales)])
    _set(
        node,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _sub_pixel(graph: _Graph, node: onnx.NodeProto) -> None:
    """A 2×2 transposed convolution of stride 2 as a 1×1 convolution and a view of its channels as rows.

    [R, C, h, w] becomes [R × 4, D, h, w], where the plain form gives [R, D, 2 h, 2 w]; later layers must
    work on single pixels. It runs as a convolution (and quantizes as one), and nothing is moved.
    """
    kernel = graph.constants[node.input[1]]  # [C, D, 2, 2]
    channels, depth, *taps = kernel.shape
    activation = next(n for n in graph.nodes if node.output[0] in n.input)
    if list(_attribute(node, "strides")) != taps or any(_attribute(node, "pads", [0])) or activation.op_type != "Relu":
        raise ValueError(f"{node.name} is not an up-sampling by its own kernel's size with a ReLU after it.")
    count = int(np.prod(taps))
    wide = kernel.transpose(2, 3, 1, 0).reshape(count * depth, channels, 1, 1)
    labels = [graph.labels[n] for n in node.input[1:]]
    convolution = helper.make_node(
        "Conv",
        [
            node.input[0],
            graph.new_constant(node.output[0], labels[0], wide),
            graph.new_constant(
                node.output[0],
                labels[1],
                np.tile(graph.constants[node.input[2]], count),
            ),
        ],
        list(node.output),
    )
    size = [d.dim_value for d in graph.source.graph.input[0].type.tensor_type.shape.dim[2:]]
    shape = graph.new_constant(node.output[0], "one_row_per_tap", np.array([-1, depth, *size], np.int64))
    view = helper.make_node("Reshape", [f"{node.output[0]}::wide", shape], list(activation.output))
    activation.output[0] = view.input[0]
    graph.nodes[graph.nodes.index(node)] = convolution
    graph.nodes.insert(graph.nodes.index(activation) + 1, view)


_RULES = {
    "Conv": _explicit_pads,
    "ConvTranspose": _sub_pixel,
    "MaxPool": _explicit_pads,
    "Resize": _doubling,
}
