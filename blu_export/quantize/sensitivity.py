"""What a subnetwork does to real photos: sample inputs, ranges, and what rounding costs each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from blu_export.contract import SUBNETWORKS
from blu_export.graph.compose import compose
from blu_export.quantize.half import round_to_half
from blu_export.spec import ModelSpec

WEIGHTED = ("Conv", "Gemm", "MatMul")
"""Operators that hold weights: what is counted as a layer."""
_CHANNEL_AXES = {"Conv": (0, 2, 3), "Gemm": (0,), "MatMul": (0,)}
"""Everything but the output channels."""
_AXES_OPSET = 18
"""The first in which all reductions take their axes as an input."""
SAMPLE_ROIS = 64
"""ROIs of each photo that the heads are measured on, evenly spaced by rank."""

Samples: TypeAlias = Mapping[str, Sequence[NDArray[np.float32]]]
Rounded: TypeAlias = "tuple[list[onnx.NodeProto], list[onnx.TensorProto], list[str]]"
"""Nodes, initializers, and the names that replace a layer's inputs."""


@dataclass(frozen=True)
class LayerError:
    """What rounding costs one layer, given exact inputs."""

    name: str
    largest: float
    """The largest magnitude among its inputs and outputs."""
    error: float
    """Root mean square of the rounding error over that of the output; infinite where a number overflows."""
    shift: NDArray[np.float64]
    """[outputs], mean of the rounding error of each output channel."""


def sample_inputs(
    parts: Mapping[str, onnx.ModelProto], spec: ModelSpec, canvases: Iterable[tuple[NDArray[Any], NDArray[Any]]]
) -> dict[str, list[NDArray[np.float32]]]:
    """What each subnetwork is given on these photos: a list with one float32 array per photo, by part.

    Args:
        parts: float32, from ``subnetworks`` or ``split``.
        canvases: (canvas uint8 [1, H, W, 3], window float32 [1, 4]) of each photo.
    """
    model = compose(parts, spec)
    boundaries = {}
    for part in SUBNETWORKS:
        nodes = [n for n in model.graph.node if n.name.startswith(f"{part}/")]
        made = {name for node in nodes for name in node.output} | {t.name for t in model.graph.initializer}
        boundaries[part] = next(name for node in nodes for name in node.input if name and name not in made)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in boundaries.values())
    session = open_session(model)
    samples: dict[str, list[NDArray[np.float32]]] = {part: [] for part in SUBNETWORKS}
    for canvas, window in canvases:
        found = session.run(list(boundaries.values()), {"canvas": canvas, "window": window})
        for part, array in zip(boundaries, found, strict=True):
            some = np.linspace(0, len(array) - 1, min(len(array), SAMPLE_ROIS)).astype(int)
            samples[part].append(np.ascontiguousarray(array[some]))
    return samples


def half_errors(part: onnx.ModelProto, samples: Sequence[NDArray[np.float32]]) -> list[LayerError]:
    """What half precision costs each layer of a float32 part."""
    weights = {t.name: t for t in part.graph.initializer}

    def rounded(node: onnx.NodeProto) -> Rounded:
        nodes, tensors, names = [], [], []
        for name in node.input:
            if name in weights:
                halves = round_to_half(numpy_helper.to_array(weights[name])).astype(np.float32)
                tensors.append(numpy_helper.from_array(halves, f"{node.name}/rounded/{name}"))
                names.append(tensors[-1].name)
            else:
                nodes += _through_half(name, f"{node.name}/rounded_input")
                names.append(f"{node.name}/rounded_input")
        return nodes, tensors, names

    return layer_errors(part, samples, rounded)


def layer_errors(
    part: onnx.ModelProto, samples: Sequence[NDArray[np.float32]], rounded: Callable[[onnx.NodeProto], Rounded]
) -> list[LayerError]:
    """Each layer of a float32 part beside a rounded copy of itself, both given the exact input.

    Args:
        rounded: how a layer's inputs are rounded; its output is rounded to half.
    """
    model = onnx.ModelProto()
    model.CopyFrom(part)
    model.opset_import[0].version = max(model.opset_import[0].version, _AXES_OPSET)
    graph = model.graph
    layers = [node for node in graph.node if node.op_type in WEIGHTED]
    known = {t.name for t in graph.initializer}
    added: list[onnx.NodeProto] = []
    measured: list[str] = []
    axes = {op: numpy_helper.from_array(np.array(a, np.int64), f"axes/{op}") for op, a in _CHANNEL_AXES.items()}
    graph.initializer.extend(axes.values())

    def measure(op_type: str, source: str, name: str, axes: Sequence[str] = ()) -> None:
        # None means all axes.
        added.append(helper.make_node(op_type, [source, *axes], [name], keepdims=0))
        measured.append(name)

    for node in layers:
        nodes, tensors, names = rounded(node)
        graph.initializer.extend(tensors)
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:], copy.output[:], copy.name = names, [f"{node.name}/copy"], f"{node.name}/copy"
        added += [*nodes, copy, *_through_half(f"{node.name}/copy", f"{node.name}/rounded")]
        added.append(helper.make_node("Sub", [f"{node.name}/rounded", node.output[0]], [f"{node.name}/difference"]))
        measure("ReduceSumSquare", f"{node.name}/difference", f"{node.name}/error")
        measure("ReduceSumSquare", node.output[0], f"{node.name}/power")
        for side, name in (("input", next(n for n in node.input if n not in known)), ("output", node.output[0])):
            added.append(helper.make_node("Abs", [name], [f"{node.name}/abs_{side}"]))
            measure("ReduceMax", f"{node.name}/abs_{side}", f"{node.name}/largest_{side}")
        measure("ReduceMean", f"{node.name}/difference", f"{node.name}/shift", [axes[node.op_type].name])
    graph.node.extend(added)
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in measured)
    session = open_session(model)
    runs = [
        dict(zip(measured, session.run(measured, {graph.input[0].name: sample}), strict=True)) for sample in samples
    ]
    return [_layer_error(node.name, runs) for node in layers]


def _layer_error(layer: str, runs: Sequence[Mapping[str, NDArray[Any]]]) -> LayerError:
    """What ``layer_errors`` measured of a layer, by name, in every run."""
    error, power = (sum(float(run[f"{layer}/{name}"]) for run in runs) for name in ("error", "power"))
    largest = max(float(run[f"{layer}/{name}"]) for run in runs for name in ("largest_input", "largest_output"))
    shift = np.asarray(np.mean([run[f"{layer}/shift"] for run in runs], axis=0, dtype=np.float64), np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = float(np.sqrt(np.float64(error) / power))
    if np.isnan(relative):
        relative = 0.0 if np.isfinite(error) else np.inf
    return LayerError(layer, largest, relative, shift)


def correct_biases(part: onnx.ModelProto, shifts: Mapping[str, NDArray[np.float64]]) -> onnx.ModelProto:
    """A float32 part whose biases make up for the mean error of its layers.

    Args:
        shifts: layer -> mean error of each output channel. Layers that share a bias share the mean of theirs.
    """
    moved = onnx.ModelProto()
    moved.CopyFrom(part)
    by_bias: dict[str, list[NDArray[np.float64]]] = {}
    for node in part.graph.node:
        if node.name in shifts and len(node.input) > 2:
            by_bias.setdefault(node.input[2], []).append(shifts[node.name])
    for tensor in moved.graph.initializer:
        if tensor.name in by_bias:
            bias = numpy_helper.to_array(tensor) - np.mean(by_bias[tensor.name], axis=0)
            tensor.CopyFrom(numpy_helper.from_array(bias.astype(np.float32), tensor.name))
    return moved


def outputs_of(part: onnx.ModelProto, samples: Sequence[NDArray[np.float32]]) -> list[list[NDArray[np.float32]]]:
    """All outputs of a part for each sample."""
    session = open_session(part)
    return [session.run(None, {part.graph.input[0].name: sample}) for sample in samples]


def output_error(
    exact: Sequence[Sequence[NDArray[np.float32]]], found: Sequence[Sequence[NDArray[np.float32]]]
) -> float:
    """Root mean square of the difference over that of the exact values, of the output that differs most."""
    errors = []
    for wanted, got in zip(zip(*exact, strict=True), zip(*found, strict=True), strict=True):
        lost = sum(float(np.sum((a - b) ** 2, dtype=np.float64)) for a, b in zip(wanted, got, strict=True))
        power = sum(float(np.sum(a**2, dtype=np.float64)) for a in wanted)
        errors.append((lost / power) ** 0.5 if power else 0.0)
    return max(errors)


def tensor_ranges(part: onnx.ModelProto, samples: Sequence[NDArray[np.float32]]) -> dict[str, float]:
    """The largest magnitude of each float32 tensor that a node of the part makes."""
    model = onnx.shape_inference.infer_shapes(part)
    graph = model.graph
    infos = [*graph.value_info, *graph.output]
    names = [i.name for i in infos if i.type.tensor_type.elem_type == TensorProto.FLOAT]
    for name in names:
        graph.node.append(helper.make_node("Abs", [name], [f"{name}/abs"]))
        graph.node.append(helper.make_node("ReduceMax", [f"{name}/abs"], [f"{name}/largest"], keepdims=0))
    del graph.output[:]
    measured = [f"{name}/largest" for name in names]
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in measured)
    session = open_session(model)
    table = np.array([session.run(measured, {graph.input[0].name: sample}) for sample in samples])
    return dict(zip(names, table.max(axis=0).tolist(), strict=True))


def _through_half(source: str, name: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Cast", [source], [f"{name}/half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", [f"{name}/half"], [name], to=TensorProto.FLOAT),
    ]


def open_session(model: onnx.ModelProto) -> Any:
    """ONNX Runtime on every core of this machine."""
    from blu_export.extras import import_extra
    from blu_export.runtime.cpu import usable_cores

    ort = import_extra("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = usable_cores()
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
