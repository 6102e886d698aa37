"""Weights stored in half: a file of half the size whose arithmetic stays float32.

Each kernel is a float16 initializer and a Cast to the float32 that the layer takes. Runtimes fold the
Casts when they load the file, so they cost nothing afterwards.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from blu_export.graph.checks import LEARNED

STORED = "/stored"
"""Ends the name of a stored initializer; without it, it is the float32 tensor's."""


def compress(model: onnx.ModelProto) -> onnx.ModelProto:
    """A composed model with its float32 kernels stored in half; rounds each to 11 bits.

    Biases and kernels that hold numbers beyond half's range stay as they are.
    """
    small = onnx.ModelProto()
    small.CopyFrom(model)
    casts = []
    for tensor in small.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2 or not tensor.name.startswith(LEARNED):
            continue
        values = numpy_helper.to_array(tensor)
        if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), name + STORED))
        casts.append(helper.make_node("Cast", [name + STORED], [name], name, to=TensorProto.FLOAT))
    nodes = [*casts, *small.graph.node]
    del small.graph.node[:]
    small.graph.node.extend(nodes)
    return small


def restore(model: onnx.ModelProto) -> onnx.ModelProto:
    """``compress`` undone, except for the rounding; a model that was not compressed is returned as it is."""
    stored = {tensor.name for tensor in model.graph.initializer if tensor.name.endswith(STORED)}
    if not stored:
        return model
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    for tensor in plain.graph.initializer:
        if tensor.name in stored:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name.removesuffix(STORED)))
    nodes = [node for node in plain.graph.node if not stored.issuperset(node.input) or not node.input]
    del plain.graph.node[:]
    plain.graph.node.extend(nodes)
    return plain
