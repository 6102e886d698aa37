"""GPTQ rounding of kernels to fp16.

The nearest half is the best for each weight alone, not for a layer, which sums many products of inputs that
resemble each other (neighboring pixels, channels that are never negative): what one weight loses, those after it
can make up for. This is GPTQ's rounding (Frantar et al., 2023): a column at a time, each error spread over the
columns that are left by the inverse of the inputs' second moments, here in diagonal blocks. What remains of the
error in the mean goes into the bias.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from blu_export.quantize.half import round_to_half
from blu_export.quantize.sensitivity import correct_biases, open_session

ROWS = 1024
"""Positions of each photo at which a layer's inputs are looked at."""
BLOCK = 576
"""Most columns that share errors: 64 channels under a 3×3 kernel. The cost of a block grows with its cube."""
STRIPE = 32
"""Columns whose errors are spread over the rest of a block at once."""
DAMPING = 0.01
"""Added to the second moments' diagonal, as a share of its mean: few rows do not describe all inputs."""


def round_kernels(
    part: onnx.ModelProto, samples: Sequence[NDArray[np.float32]], keep: Collection[str] = ()
) -> onnx.ModelProto:
    """The part with every kernel on half's grid, in float32.

    Args:
        part: float32, as ``subnetworks`` makes it.
        samples: inputs of the part, as many as there are photos to measure on.
        keep: names of nodes whose kernels stay as they are.
    """
    rounded = onnx.ModelProto()
    rounded.CopyFrom(part)
    tensors = {t.name: t for t in rounded.graph.initializer}
    kernels = {k.name: k for k in _kernels(part, tensors, keep)}
    for name, columns in _columns_of(part, kernels, samples):
        kernels[name].see(columns)
    shifts: dict[str, NDArray[np.float64]] = {}
    for kernel in kernels.values():
        weights, shift = kernel.rounded()
        tensors[kernel.name].CopyFrom(numpy_helper.from_array(weights, kernel.name))
        shifts |= {node.name: shift for node in kernel.nodes}
    return correct_biases(rounded, shifts)


def spread_errors(weights: NDArray[np.float64], moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round weights to half, column by column, the most important first.

    Args:
        weights: [blocks, outputs, columns].
        moments: [blocks, columns, columns], second moments of the inputs.

    Returns:
        As ``weights``, each a half-precision number.
    """
    diagonal = np.einsum("bkk->bk", moments)
    mean = diagonal.mean(axis=1)
    damped = moments + np.eye(moments.shape[1]) * (DAMPING * np.where(mean > 0, mean, 1))[:, None, None]
    order = np.argsort(-diagonal, axis=1, kind="stable")
    damped = np.take_along_axis(np.take_along_axis(damped, order[:, :, None], 1), order[:, None, :], 2)
    # The upper factor U of the inverse (inverse = Uᵀ·U): row k says how the columns after k make up for k.
    upper = np.linalg.cholesky(np.linalg.inv(damped)).transpose(0, 2, 1)
    left = np.take_along_axis(weights, order[:, None, :], 2)
    rounded = np.empty_like(left)
    for start in range(0, left.shape[2], STRIPE):
        end = min(start + STRIPE, left.shape[2])
        errors = np.empty((*left.shape[:2], end - start))
        for column in range(start, end):
            rounded[:, :, column] = round_to_half(left[:, :, column])
            error = (left[:, :, column] - rounded[:, :, column]) / upper[:, column, column, None]
            left[:, :, column:end] -= error[:, :, None] * upper[:, None, column, column:end]
            errors[:, :, column - start] = error
        left[:, :, end:] -= errors @ upper[:, start:end, end:]
    return np.take_along_axis(rounded, np.argsort(order, axis=1)[:, None, :], 2)


@dataclass
class _Kernel:
    """A kernel, the layers that share it, and what they see."""

    name: str
    nodes: list[onnx.NodeProto]
    values: NDArray[np.float32]
    """As the initializer is: Conv [O, C / groups, height, width], Gemm [C, O] or [O, C]."""
    groups: int
    transposed: bool
    """The initializer of a Gemm is [C, O]."""

    def __post_init__(self) -> None:
        blocks = len(self._in_blocks())
        columns = self.matrix.shape[1] * self.groups // blocks
        self.moments = np.zeros((blocks, columns, columns), np.float32)
        self.sums = np.zeros((blocks, columns), np.float64)
        self.rows = 0

    @property
    def matrix(self) -> NDArray[np.float32]:
        """[O, columns]."""
        values = self.values.T if self.transposed else self.values
        return values.reshape(len(values), -1)

    def _in_blocks(self) -> NDArray[np.float32]:
        """[blocks, outputs of a block, columns of a block]: groups of a depthwise layer, else stripes of columns."""
        outputs, columns = self.matrix.shape
        if self.groups > 1:
            return self.matrix.reshape(self.groups, outputs // self.groups, columns)
        count = next(n for n in range(-(-columns // BLOCK), columns + 1) if columns % n == 0)
        return self.matrix.reshape(outputs, count, -1).transpose(1, 0, 2)

    def see(self, columns: NDArray[np.float32]) -> None:
        """Accumulate statistics of inputs [rows, groups · columns]."""
        rows = columns.reshape(len(columns), len(self.moments), -1).transpose(1, 0, 2)
        self.moments += rows.transpose(0, 2, 1) @ rows
        self.sums += rows.sum(axis=1)
        self.rows += len(columns)

    def rounded(self) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """The initializer's new values, and by how much the mean of each output moves [O]."""
        before = self._in_blocks().astype(np.float64)
        after = spread_errors(before, self.moments.astype(np.float64) / max(self.rows, 1))
        moved = ((after - before) @ (self.sums / max(self.rows, 1))[:, :, None])[:, :, 0]
        shift = moved.reshape(-1) if self.groups > 1 else moved.sum(axis=0)
        matrix = after.reshape(self.matrix.shape) if self.groups > 1 else _from_blocks(after)
        values = matrix.T if self.transposed else matrix.reshape(self.values.shape)
        return np.ascontiguousarray(values, np.float32), shift


def _from_blocks(blocks: NDArray[np.float64]) -> NDArray[np.float64]:
    return blocks.transpose(1, 0, 2).reshape(blocks.shape[1], -1)


def _kernels(part: onnx.ModelProto, tensors: dict[str, Any], keep: Collection[str]) -> Iterator[_Kernel]:
    """Kernels of Conv and Gemm layers none of which is in ``keep``."""
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in part.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            users.setdefault(node.input[1], []).append(node)
    for name, nodes in users.items():
        if name not in tensors or any(node.name in keep for node in nodes):
            continue
        settings = _attributes(nodes[0])
        transposed = nodes[0].op_type == "Gemm" and not settings.get("transB", 0)
        yield _Kernel(name, nodes, numpy_helper.to_array(tensors[name]), settings.get("group", 1), transposed)


def _columns_of(
    part: onnx.ModelProto, kernels: dict[str, _Kernel], samples: Sequence[NDArray[np.float32]]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """(kernel, inputs [rows, groups · columns]) of each layer and sample, at ROWS random positions."""
    wanted = [(kernel, node) for kernel in kernels.values() for node in kernel.nodes]
    sessions: dict[tuple[int, ...], tuple[Any, list[str]]] = {}
    for sample in samples:
        if sample.shape not in sessions:
            sessions[sample.shape] = _looking(part, wanted, sample.shape)
        session, names = sessions[sample.shape]
        unique = list(dict.fromkeys(names))
        found = dict(zip(unique, session.run(unique, {part.graph.input[0].name: sample}), strict=True))
        for (kernel, node), name in zip(wanted, names, strict=True):
            array = found[name]
            if node.op_type == "Conv":
                taps = int(np.prod(kernel.values.shape[2:]))
                array = array.reshape(-1, taps, array.shape[-1]).transpose(0, 2, 1).reshape(len(array) // taps, -1)
            yield kernel.name, array


def _looking(
    part: onnx.ModelProto, wanted: list[tuple[_Kernel, onnx.NodeProto]], shape: tuple[int, ...]
) -> tuple[Any, list[str]]:
    """(session, names of its outputs): the part with the inputs of its layers as outputs, for inputs of one shape."""
    model = onnx.ModelProto()
    model.CopyFrom(part)
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        dim.dim_value = size
    shapes, random = _shapes(model), np.random.default_rng(0)
    names = [_look_at(model.graph, node, kernel.values.shape, shapes, random) for kernel, node in wanted]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names))
    return open_session(model), names


def _look_at(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    kernel: tuple[int, ...],
    shapes: dict[str, list[int]],
    random: np.random.Generator,
) -> str:
    """Add what gathers the inputs of one layer at random positions; returns the tensor: [rows · taps, channels]."""
    source = node.input[0]
    if node.op_type == "Gemm":
        return source  # a row is a position
    label = f"{node.name}/seen"
    settings = _attributes(node)
    strides, pads = settings.get("strides", [1, 1]), settings.get("pads", [0] * 4)
    dilations = settings.get("dilations", [1, 1])
    count, channels, height, width = shapes[source]
    height, width = height + pads[0] + pads[2], width + pads[1] + pads[3]
    reach = [(size - 1) * dilation for size, dilation in zip(kernel[2:], dilations, strict=True)]
    tops = np.arange(0, height - reach[0], strides[0])
    lefts = np.arange(0, width - reach[1], strides[1])
    image, top, left = random.integers(0, count, ROWS), random.choice(tops, ROWS), random.choice(lefts, ROWS)
    corner = (image * height + top) * width + left
    rows, columns = (np.arange(size) * dilation for size, dilation in zip(kernel[2:], dilations, strict=True))
    taps = (rows[:, None] * width + columns).reshape(-1)
    constants = {
        "pads": np.array([0, 0, pads[0], pads[1], 0, 0, pads[2], pads[3]], np.int64),
        "shape": np.array([-1, channels], np.int64),
        "places": (corner[:, None] + taps).reshape(-1).astype(np.int64),
    }
    graph.initializer.extend(numpy_helper.from_array(value, f"{label}/{name}") for name, value in constants.items())
    graph.node.extend([
        helper.make_node("Pad", [source, f"{label}/pads"], [f"{label}/padded"]),
        helper.make_node("Transpose", [f"{label}/padded"], [f"{label}/last"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", [f"{label}/last", f"{label}/shape"], [f"{label}/flat"]),
        helper.make_node("Gather", [f"{label}/flat", f"{label}/places"], [label]),
    ])  # fmt: skip
    return label


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    infos = [*graph.input, *graph.value_info, *graph.output]
    return {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in infos}


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}
