"""A small builder for ONNX nodes, so that authored stages read like the arithmetic they are.

Tensors are ``Value``s: names of ONNX tensors with Python's operators. Python floats stand for float32
constants and Python ints for int64 constants; NumPy arrays keep their type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import DTypeLike, NDArray
from onnx import helper, numpy_helper

Operand: TypeAlias = "Value | NDArray[Any] | float | int | bool | None"

IR_VERSIONS = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10}
"""The oldest ONNX file format that knows an operator set: older runtimes then read the file."""
OPSETS = tuple(IR_VERSIONS)


@dataclass(frozen=True)
class Value:
    """A tensor of a graph under construction."""

    graph: Graph
    name: str

    def __add__(self, other: Operand) -> Value:
        return self.graph.op("Add", self, other)

    def __radd__(self, other: Operand) -> Value:
        return self.graph.op("Add", other, self)

    def __sub__(self, other: Operand) -> Value:
        return self.graph.op("Sub", self, other)

    def __rsub__(self, other: Operand) -> Value:
        return self.graph.op("Sub", other, self)

    def __mul__(self, other: Operand) -> Value:
        return self.graph.op("Mul", self, other)

    def __rmul__(self, other: Operand) -> Value:
        return self.graph.op("Mul", other, self)

    def __truediv__(self, other: Operand) -> Value:
        return self.graph.op("Div", self, other)

    def __floordiv__(self, other: Operand) -> Value:
        """Integer division (towards zero, as ONNX Div on integers)."""
        return self.graph.op("Div", self, other)

    def __mod__(self, other: Operand) -> Value:
        return self.graph.op("Mod", self, other)

    def __gt__(self, other: Operand) -> Value:
        return self.graph.op("Greater", self, other)

    def __ge__(self, other: Operand) -> Value:
        return self.graph.op("GreaterOrEqual", self, other)

    def __and__(self, other: Operand) -> Value:
        return self.graph.op("And", self, other)

    def __or__(self, other: Operand) -> Value:
        return self.graph.op("Or", self, other)

    def equals(self, other: Operand) -> Value:
        """Element-wise ``==`` (bool)."""
        return self.graph.op("Equal", self, other)

    def cast(self, dtype: DTypeLike, name: str | None = None) -> Value:
        """The same numbers as ``dtype``."""
        return self.graph.op("Cast", self, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), name=name)

    def reshape(self, *shape: int, name: str | None = None) -> Value:
        """ONNX Reshape: 0 keeps the dimension at that place, -1 is inferred."""
        return self.graph.op("Reshape", self, np.array(shape, np.int64), name=name)

    def transpose(self, *order: int) -> Value:
        """Axes in a new order."""
        return self.graph.op("Transpose", self, perm=list(order))

    def unsqueeze(self, *axes: int) -> Value:
        """New axes of size 1 at these places of the result."""
        return self.graph.op("Unsqueeze", self, np.array(axes, np.int64))

    def slice(self, start: int, stop: int, axis: int) -> Value:
        """Elements ``start`` to ``stop`` of one axis."""
        bounds = [np.array([v], np.int64) for v in (start, stop, axis)]
        return self.graph.op("Slice", self, *bounds)

    def split(self, *sizes: int, axis: int = -1) -> list[Value]:
        """Consecutive pieces of one axis."""
        return self.graph.ops("Split", self, np.array(sizes, np.int64), axis=axis, outputs=len(sizes))

    def rows(self, index: Value) -> Value:
        """Gather along the first axis."""
        return self.graph.op("Gather", self, index, axis=0)

    def rows_of_batch(self, index: Value) -> Value:
        """``self`` [B, N, …] and ``index`` int64 [B, M] to [B, M, …]: each image picks its own rows."""
        return self.graph.op("GatherND", self, index.unsqueeze(2), batch_dims=1)


class Graph:
    """Nodes and initializers in the order of their making.

    Args:
        opset: version of the ONNX operator set, one of OPSETS.
    """

    def __init__(self, opset: int, parent: Graph | None = None) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = parent.initializers if parent else {}
        self._constants: dict[tuple[Any, ...], str] = parent._constants if parent else {}
        self._used: set[str] = parent._used if parent else set()
        self._stage: str = parent._stage if parent else ""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Names made inside begin with ``name/``; stages nest."""
        outer, self._stage = self._stage, f"{self._stage}{name}/"
        try:
            yield
        finally:
            self._stage = outer

    def value(self, name: str) -> Value:
        """The tensor of this name."""
        return Value(self, name)

    def op(self, op_type: str, *inputs: Operand, name: str | None = None, **attributes: Any) -> Value:
        """Add a node with one output; ``name`` names node and output (within the stage)."""
        return self.ops(op_type, *inputs, name=name, **attributes)[0]

    def ops(
        self,
        op_type: str,
        *inputs: Operand,
        outputs: int = 1,
        name: str | None = None,
        **attributes: Any,
    ) -> list[Value]:
        """Add a node with several outputs."""
        node_name = self.unique(self._stage + (name or op_type))
        names = [node_name] if outputs == 1 else [f"{node_name}:{i}" for i in range(outputs)]
        node = helper.make_node(
            op_type,
            [self._input(v) for v in inputs],
            names,
            name=node_name,
            **attributes,
        )
        self.nodes.append(node)
        return [Value(self, n) for n in names]

    def reduce(self, kind: str, x: Value, *axes: int, keepdims: bool = True) -> Value:
        """``kind`` (Max, Sum, …) over ``axes``; Reduce operators took their axes as attribute before opset 18."""
        if self.opset < 18 and kind != "Sum":
            return self.op(f"Reduce{kind}", x, axes=list(axes), keepdims=int(keepdims))
        return self.op(f"Reduce{kind}", x, np.array(axes, np.int64), keepdims=int(keepdims))

    def concat(self, values: Sequence[Value], axis: int, name: str | None = None) -> Value:
        """Join along an axis; a single value is returned as it is."""
        return values[0] if len(values) == 1 and name is None else self.op("Concat", *values, axis=axis, name=name)

    def where(self, condition: Value, yes: Operand, no: Operand) -> Value:
        """``yes`` where the condition holds, else ``no``."""
        return self.op("Where", condition, yes, no)

    def clip(self, x: Value, low: float, high: float) -> Value:
        """Limit to [low, high]."""
        return self.op("Clip", x, low, high)

    def const(self, array: NDArray[Any], name: str | None = None) -> Value:
        """An initializer; equal constants of a stage are stored once."""
        array = np.ascontiguousarray(array) if array.ndim else array
        part = self._stage.partition("/")[0] or "outputs"
        key = (part, name, array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            shown = f"{array.item()}" if array.size == 1 else "x".join(map(str, array.shape))
            tensor_name = self.unique(f"{part}/{name or f'const_{array.dtype}_{shown}'}")
            self.initializers[tensor_name] = numpy_helper.from_array(array, tensor_name)
            self._constants[key] = tensor_name
        return Value(self, self._constants[key])

    def loop(
        self,
        trips: int,
        state: Value,
        shape: Sequence[int | str],
        body: Callable[[Graph, Value], tuple[Value, Value]],
    ) -> Value:
        """Repeat ``body(graph, state) -> (go on, new state)``, at most ``trips`` times.

        ``state`` is float32 of ``shape``, which does not change. The body may use values of this graph.
        """
        inner = Graph(self.opset, self)
        with inner.stage("loop"):
            trip, going, before = (inner.unique(inner._stage + n) for n in ("trip", "going", "state"))
            go_on, after = body(inner, Value(inner, before))
        body_graph = helper.make_graph(
            inner.nodes,
            inner.unique(f"{self._stage}body"),
            [
                helper.make_tensor_value_info(trip, onnx.TensorProto.INT64, []),
                helper.make_tensor_value_info(going, onnx.TensorProto.BOOL, []),
                helper.make_tensor_value_info(before, onnx.TensorProto.FLOAT, shape),
            ],
            [
                helper.make_tensor_value_info(go_on.name, onnx.TensorProto.BOOL, []),
                helper.make_tensor_value_info(after.name, onnx.TensorProto.FLOAT, shape),
            ],
        )
        return self.op("Loop", trips, np.array(True), state, body=body_graph)

    def inline(self, part: onnx.ModelProto, inputs: Mapping[str, Value]) -> list[Value]:
        """Append a whole model, whose names are already unique; its outputs in order.

        Args:
            inputs: what replaces each input of the part, by name.
        """
        renamed = {name: value.name for name, value in inputs.items()}
        for tensor in part.graph.initializer:
            self._used.add(tensor.name)
            self.initializers[tensor.name] = tensor
        for source in part.graph.node:
            node = onnx.NodeProto()
            node.CopyFrom(source)
            node.input[:] = [renamed.get(n, n) for n in source.input]
            self._used.update([node.name, *node.output])
            self.nodes.append(node)
        return [Value(self, output.name) for output in part.graph.output]

    def model(
        self,
        name: str,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
    ) -> onnx.ModelProto:
        """Everything so far as a model; initializers that nothing uses are left out."""
        used = set(_inputs_of(self.nodes))
        initializers = [t for n, t in self.initializers.items() if n in used]
        graph = helper.make_graph(self.nodes, name, inputs, outputs, initializers)
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self.opset)],
            ir_version=IR_VERSIONS[self.opset],
            producer_name="blu",
        )

    def unique(self, name: str) -> str:
        """``name``, or the first of ``name_2``, ``name_3``, … that is free."""
        candidate, count = name, 1
        while candidate in self._used:
            count += 1
            candidate = f"{name}_{count}"
        self._used.add(candidate)
        return candidate

    def _input(self, operand: Operand) -> str:
        if operand is None:
            return ""
        if isinstance(operand, Value):
            return operand.name
        if isinstance(operand, float):
            operand = np.array(operand, np.float32)
        elif isinstance(operand, int):
            operand = np.array(operand, np.int64)
        return self.const(np.asarray(operand)).name


def _inputs_of(nodes: Sequence[onnx.NodeProto]) -> Iterator[str]:
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _inputs_of(attribute.g.node)
