"""Half precision for a subnetwork: typed tensors, and a float32 emulation that rounds like them.

ONNX Runtime's CPU has no half-precision convolution. It computes such a file in float32 and drops the
casts in between, so that only the rounding of the weights would show there. ``emulate`` makes every
rounding explicit: what overflows or vanishes in half does so in the emulation too, on any machine. Sums
inside a layer are float32 in it; a GPU that sums in half is less accurate.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT_INPUTS = {"Resize": (1, 2), "QuantizeLinear": (), "DequantizeLinear": ()}
"""Operator to places of inputs that always stay float32: a Resize's region and scales."""
EXACT = frozenset({
    "Cast", "Clip", "Concat", "Identity", "MaxPool", "QuantizeLinear", "Relu", "Reshape", "Resize", "Slice", "Split",
    "Transpose",
})  # fmt: skip
"""Operators whose result is one of their inputs' numbers: nothing to round."""
HALF_SCALES_OPSET = 19
"""The first in which QuantizeLinear and DequantizeLinear take half-precision scales."""


def to_half(part: onnx.ModelProto, keep: Collection[str] = ()) -> onnx.ModelProto:
    """A part in half precision.

    Args:
        part: float32, as ``subnetworks`` makes it, or with Q/DQ nodes inside (then of opset 19 or later).
        keep: names of nodes that stay float32; neighbors among them pass float32 to each other.

    Returns:
        The same graph with a half-precision input. Its outputs are half too; if one of them is made by a
        fallback node all are float32, since ``compose`` treats the feature maps alike.
    """
    graph = part.graph
    initializers = {t.name: t for t in graph.initializer}
    kinds = _kinds(part)
    halves = {i.name for i in graph.input if kinds[i.name] == TensorProto.FLOAT}
    nodes: list[onnx.NodeProto] = []
    tensors: dict[str, onnx.TensorProto] = {}
    casts: dict[str, str] = {}

    def as_kind(name: str, half: bool) -> str:
        """The tensor in half or float32: another initializer, or a cast where its maker's kind differs."""
        if name in initializers:
            typed = f"{name}/half" if half and name in tensors and not _is_half(tensors[name]) else name
            typed = f"{name}/float" if not half and name in tensors and _is_half(tensors[name]) else typed
            tensors.setdefault(typed, _typed(initializers[name], typed, half))
            return typed
        if (name in halves) == half:
            return name
        if name not in casts:
            casts[name] = f"{name}/{'half' if half else 'float'}"
            to = TensorProto.FLOAT16 if half else TensorProto.FLOAT
            nodes.append(helper.make_node("Cast", [name], [casts[name]], casts[name], to=to))
        return casts[name]

    for source in graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(source)
        half = source.name not in keep
        for place, name in enumerate(source.input):
            if not name:
                continue
            fixed = place in FLOAT_INPUTS.get(source.op_type, ())
            if kinds[name] == TensorProto.FLOAT and not fixed:
                node.input[place] = as_kind(name, half)
            elif name in initializers:
                tensors.setdefault(name, initializers[name])
        if half:
            halves.update(n for n in source.output if kinds[n] == TensorProto.FLOAT)
        nodes.append(node)
    inputs = [_declared(i, TensorProto.FLOAT16) for i in graph.input]
    all_half = all(o.name in halves for o in graph.output)
    outputs = [_declared(o, TensorProto.FLOAT16 if all_half else TensorProto.FLOAT) for o in graph.output]
    if not all_half:
        nodes = list(_widened(nodes, [o.name for o in graph.output if o.name in halves]))
    return _model(part, nodes, inputs, outputs, tensors)


def emulate(part: onnx.ModelProto) -> onnx.ModelProto:
    """A half-precision part computed in float32, each result rounded to half.

    Weights are those of the half-precision part; overflow gives infinities, as it does there.
    """
    graph = part.graph
    kinds = _kinds(part)
    nodes: list[onnx.NodeProto] = []
    names: dict[str, str] = {}

    def rounded(name: str) -> Iterator[onnx.NodeProto]:
        yield helper.make_node("Cast", [name], [f"{name}/rounded"], f"{name}/rounded", to=TensorProto.FLOAT16)
        yield helper.make_node("Cast", [f"{name}/rounded"], [f"{name}/wide"], f"{name}/wide", to=TensorProto.FLOAT)
        names[name] = f"{name}/wide"

    for info in graph.input:
        if kinds[info.name] == TensorProto.FLOAT16:
            nodes.extend(rounded(info.name))
    for source in graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(source)
        node.input[:] = [names.get(n, n) for n in source.input]
        if source.op_type == "Cast":
            node.op_type = "Identity"
            del node.attribute[:]
        nodes.append(node)
        halves = [n for n in source.output if kinds[n] == TensorProto.FLOAT16]
        lossy = source.op_type not in EXACT or (source.op_type == "Cast" and halves)
        if halves and lossy:
            for name in halves:
                nodes.extend(rounded(name))
    outputs = [_declared(o, TensorProto.FLOAT) for o in graph.output]
    wide = [o.name for o in outputs if o.name in names]
    nodes = list(_widened(nodes, wide, names))
    inputs = [_declared(i, TensorProto.FLOAT) for i in graph.input]
    tensors = {t.name: _typed(t, t.name, half=False) if _is_half(t) else t for t in graph.initializer}
    return _model(part, nodes, inputs, outputs, tensors)


def round_to_half(weights: np.ndarray) -> np.ndarray:
    """Float32 numbers rounded to the nearest half; beyond ±65,504 they become infinite."""
    with np.errstate(over="ignore"):
        return weights.astype(np.float16)


def _widened(
    nodes: list[onnx.NodeProto], outputs: list[str], sources: dict[str, str] | None = None
) -> Iterator[onnx.NodeProto]:
    """The nodes with some output names handed to casts: the tensors under them are renamed ``name/inner``."""
    inner = {name: f"{name}/inner" for name in outputs}
    for node in nodes:
        node.input[:] = [inner.get(n, n) for n in node.input]
        node.output[:] = [inner.get(n, n) for n in node.output]
        yield node
    for name in outputs:
        source = (sources or inner)[name]
        yield helper.make_node("Cast", [source], [name], f"{name}/outer", to=TensorProto.FLOAT)


def _kinds(part: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor."""
    graph = onnx.shape_inference.infer_shapes(part, strict_mode=True).graph
    infos = [*graph.input, *graph.output, *graph.value_info]
    kinds = {i.name: i.type.tensor_type.elem_type for i in infos}
    return kinds | {t.name: t.data_type for t in graph.initializer}


def _is_half(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type == TensorProto.FLOAT16


def _typed(tensor: onnx.TensorProto, name: str, half: bool) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    return numpy_helper.from_array(round_to_half(values) if half else values.astype(np.float32), name)


def _declared(info: onnx.ValueInfoProto, kind: int) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(info)
    copy.type.tensor_type.elem_type = kind
    return copy


def _model(
    part: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    tensors: dict[str, onnx.TensorProto],
) -> onnx.ModelProto:
    used = {n for node in nodes for n in node.input}
    graph = helper.make_graph(
        nodes, part.graph.name, inputs, outputs, [t for n, t in tensors.items() if n in used]
    )  # fmt: skip
    return helper.make_model(
        graph, opset_imports=list(part.opset_import), ir_version=part.ir_version, producer_name="blu"
    )
