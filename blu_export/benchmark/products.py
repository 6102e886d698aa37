"""A graph of matrix products as an ONNX file, written by hand: the peak is measured without the package onnx too."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FLOAT, _UINT8, _INT8, _INT32 = 1, 2, 3, 6
"""Of onnx.proto's TensorProto.DataType."""
OPSET, IR_VERSION = 17, 9


def product_model(a: NDArray[np.float32], b: NDArray[np.float32], kind: str, count: int) -> bytes:
    """ONNX model of ``count`` products, whose input is ``a``; the right-hand matrix is a constant, as weights are.

    Args:
        a: float32 [N, N]; only its shape is used.
        b: float32 [N, N].
        kind: ``float32``: products in a row; ``int8``: uint8 by int8, whose results are of another type, so that each
            has the same left-hand matrix.
        count: of products.
    """
    if kind == "float32":
        names = ["a", *(f"c{i}" for i in range(count))]
        nodes = [_node("MatMul", [x, "b"], y) for x, y in itertools.pairwise(names)]
        weights, given, out, outputs = _tensor("b", b, _FLOAT), _FLOAT, _FLOAT, names[-1:]
    else:
        outputs = [f"c{i}" for i in range(count)]
        nodes = [_node("MatMulInteger", ["a", "b"], name) for name in outputs]
        small = (b * 30 * np.sqrt(len(b))).clip(-127, 127).astype(np.int8)
        weights, given, out = _tensor("b", small, _INT8), _UINT8, _INT32
    graph = b"".join([
        *(_field(1, node) for node in nodes),
        _field(2, "products"),
        _field(5, weights),
        _field(11, _value("a", given, a.shape)),
        *(_field(12, _value(name, out, a.shape)) for name in outputs),
    ])  # fmt: skip
    return _field(1, IR_VERSION) + _field(7, graph) + _field(8, _field(1, "") + _field(2, OPSET))


def _field(number: int, value: int | str | bytes) -> bytes:
    """A protobuf field: a number as varint, else its bytes after their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    digits = []
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


def _node(kind: str, inputs: Iterable[str], output: str) -> bytes:
    return b"".join(_field(1, name) for name in inputs) + _field(2, output) + _field(3, output) + _field(4, kind)


def _tensor(name: str, values: NDArray[Any], kind: int) -> bytes:
    dims = b"".join(_field(1, size) for size in values.shape)
    return dims + _field(2, kind) + _field(8, name) + _field(9, values.astype(values.dtype.newbyteorder("<")).tobytes())


def _value(name: str, kind: int, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(_field(1, _field(1, size)) for size in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, dims)))
